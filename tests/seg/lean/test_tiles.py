"""Tiles against the whole: the same bits without norm, rounding with one, and what a budget allows."""

import dataclasses

import numpy as np
import pytest

import ncakern
from ncakern.arrays import ArrayParams, nca_rollout, perception_moments
from ncaseg.lean import tiles
from ncaseg.lean.disk import DiskState
from ncaseg.lean.plan import TilePlan, plan_tiles, tile_bytes

pytestmark = pytest.mark.skipif(ncakern.backends()["cpu"] is not None, reason="the extension is not built")

SIZE = (13, 9, 11)
STREAM: tiles.Stream = {"seed": 3, "first_step": 4, "first_sample": 2}


def draw_params(channels=5, hidden=9, kernel=(3, 3, 3), filters=1, norm="none", dense=False) -> ArrayParams:
    rng = np.random.default_rng(0)

    def draw(*shape: int, scale: float = 1.0) -> np.ndarray:
        return rng.normal(0, scale, shape).astype(np.float32)

    taps = (channels, channels) if dense else (channels,)
    return ArrayParams(
        perceive_weight=draw(filters, *taps, *kernel, scale=(np.prod(kernel) * len(taps)) ** -0.5),
        perceive_bias=draw(filters, channels, scale=0.3),
        hidden_weight=draw(hidden, (1 + filters) * channels, scale=channels**-0.5),
        hidden_bias=draw(hidden, scale=0.3),
        out_weight=draw(channels, hidden, scale=0.2),
        norm_weight=None if norm == "none" else draw(hidden),
        norm_bias=None if norm == "none" else draw(hidden, scale=0.3),
    )


def draw_state(channels=5) -> np.ndarray:
    # Far from zero: a variance from raw second moments would lose its digits.
    return np.random.default_rng(1).normal(3, 1, (1, *SIZE, channels)).astype(np.float32)


def run(folder, state, params, spec, steps, plan) -> np.ndarray:
    whole = tuple(slice(0, n) for n in SIZE)
    with DiskState(folder, SIZE, state.shape[-1]) as source, DiskState(folder, SIZE, state.shape[-1]) as target:
        source.write(whole, state[0])
        return tiles.run_tiles(source, target, params, spec, steps, plan, STREAM).read(whole)


@pytest.mark.parametrize(
    ("cuts", "at_once"), [((1, 1, 1), 5), ((2, 1, 1), 5), ((2, 3, 2), 1), ((3, 1, 2), 2), ((5, 3, 4), 1)]
)
@pytest.mark.parametrize("padding", ["reflect", "zeros", "replicate"])
def test_without_norm_tiles_have_the_bits_of_the_whole(tmp_path, cuts, at_once, padding):
    spec = ncakern.RolloutSpec(padding=padding, frozen_channels=1)
    params, state = draw_params(), draw_state()
    expected = nca_rollout(state, params, spec, 5, **STREAM)
    found = run(tmp_path, state, params, spec, 5, TilePlan(SIZE, cuts, at_once, 1.0))
    assert np.array_equal(found, expected) and not np.array_equal(found, state)


def test_large_dense_and_anisotropic_kernels(tmp_path):
    spec = ncakern.RolloutSpec(perception="dense", activation="leaky_relu")
    params, state = draw_params(kernel=(1, 3, 5), filters=2, dense=True), draw_state()
    expected = nca_rollout(state, params, spec, 2, **STREAM)
    assert np.array_equal(run(tmp_path, state, params, spec, 2, TilePlan(SIZE, (3, 2, 2), 2, 1.0)), expected)


@pytest.mark.parametrize("options", [{}, {"kernel": (5, 3, 3)}, {"filters": 2}], ids=str)
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_with_norm_tiles_agree_with_the_whole_up_to_rounding(tmp_path, norm, options):
    spec = ncakern.RolloutSpec(norm=norm, frozen_channels=1)
    params, state = draw_params(norm=norm, **options), draw_state()
    expected = nca_rollout(state, params, spec, 4, **STREAM)
    found = run(tmp_path, state, params, spec, 4, TilePlan(SIZE, (2, 3, 1), 1, 1.0))
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.array_equal(found[..., 0], state[..., 0])
    # The statistics of each tile alone, which would be cheaper, are something else.
    piece = nca_rollout(np.ascontiguousarray(state[:, :7]), params, spec, 1, **STREAM)
    assert np.abs(piece[:, :3] - nca_rollout(state, params, spec, 1, **STREAM)[:, :3]).max() > 1e-2


def test_statistics_of_tiles_are_those_of_the_whole(tmp_path):
    # Means that differ by tile: most of the variance lies between tiles, not in them.
    state = draw_state() + 40 * np.arange(SIZE[0], dtype=np.float32)[:, None, None, None]
    spec, params = ncakern.RolloutSpec(norm="batch"), draw_params(norm="batch")
    whole = tuple(slice(0, n) for n in SIZE)
    with DiskState(tmp_path, SIZE, 5) as source:
        source.write(whole, state[0])
        found = tiles._moments(source, params, spec, TilePlan(SIZE, (5, 2, 3), 1, 1.0))
    for own, expected in zip(found, perception_moments(state, params, spec), strict=True):
        assert np.abs(own - expected[0]).max() <= 1e-6 * np.abs(expected).max()


def test_files_vanish_also_after_an_error(tmp_path, monkeypatch):
    def fail(*args, **keywords):
        assert list(tmp_path.iterdir()) == []  # they are open and have no name: a killed process leaves nothing either
        raise RuntimeError("stop")

    monkeypatch.setattr(tiles, "nca_rollout", fail)
    with pytest.raises(RuntimeError, match="stop"):
        run(tmp_path, draw_state(), draw_params(), ncakern.RolloutSpec(), 1, TilePlan(SIZE, (2, 1, 1), 1, 1.0))
    assert list(tmp_path.iterdir()) == []


def test_boxes_cover_every_cell_once():
    seen = np.zeros(SIZE, int)
    for box in TilePlan(SIZE, (3, 2, 4), 1, 1.0).boxes():
        seen[box] += 1
    assert np.all(seen == 1)


def test_whole_is_taken_if_it_fits():
    params, spec = draw_params(), ncakern.RolloutSpec()
    plan = plan_tiles(SIZE, params, spec, 5, tile_bytes(SIZE, params, spec))
    assert plan == TilePlan(SIZE, (1, 1, 1), 5, 1.0)
    assert str(plan) == "13x9x11 in one piece"
    assert not plan_tiles(SIZE, params, spec, 5, tile_bytes(SIZE, params, spec) - 1).is_whole


def test_many_steps_at_a_time_when_tiles_are_large_and_few_when_they_are_small():
    params, spec = draw_params(channels=16, kernel=(7, 7, 7)), ncakern.RolloutSpec()
    size = (256, 256, 256)
    large, small = (plan_tiles(size, params, spec, 10, budget) for budget in (2 * 10**9, 10**8))
    assert large.steps_at_once > small.steps_at_once >= 1
    assert large.overhead < 1.5
    normed = dataclasses.replace(spec, norm="batch")
    assert plan_tiles(size, draw_params(16, kernel=(7, 7, 7), norm="batch"), normed, 10, 2 * 10**9).steps_at_once == 1


def test_overhead_is_the_work_with_halos_over_the_work_without():
    params, spec = draw_params(channels=16), ncakern.RolloutSpec()
    plan = plan_tiles((64, 64, 64), params, spec, 6, tile_bytes((64, 64, 64), params, spec) // 2)
    halo = plan.steps_at_once
    cells = [
        np.prod([min(s.stop + halo, 64) - max(s.start - halo, 0) for s in box]) for box in plan.boxes()
    ]  # with halos, cut at the borders
    assert plan.overhead == pytest.approx(sum(cells) / 64**3)
    assert f"{plan.overhead:.2f}x the work" in str(plan)


def test_budget_below_one_tile_is_refused_with_the_amount_that_is_missing():
    with pytest.raises(ValueError, match=r"memory must hold at least one tile with its halo: \d+ MB more than what"):
        plan_tiles((4000, 4000, 4000), draw_params(channels=16), ncakern.RolloutSpec(), 1, 10**6)


def test_circular_padding_needs_whole_levels():
    with pytest.raises(ValueError, match="memory must hold whole levels with padding='circular'"):
        plan_tiles(SIZE, draw_params(), ncakern.RolloutSpec(padding="circular"), 1, 10**4)
