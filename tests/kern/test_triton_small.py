"""Triton kernels for few channels, in the interpreter: shared functions on their own, and what one tile leaves out."""

import itertools
from types import ModuleType

import pytest
import torch
from helpers import Case, assert_matches, make_inputs, run_with_gradients

import ncakern
from ncakern.backends.triton import tiles

PADDINGS = ("reflect", "zeros", "replicate", "circular")


@pytest.fixture
def probes(triton_interpreter: None) -> ModuleType:
    from kern import triton_probes

    return triton_probes


@pytest.mark.parametrize(
    ("seed", "step", "rate"), [(7, 3, 0.5), (-5, 2**32 - 1, 1.0), (2**63 - 1, 0, 0.0), (1, 1, 0.3)]
)
def test_fire_bits_are_those_of_the_mask(probes: ModuleType, seed: int, step: int, rate: float) -> None:
    num_cells, threshold = 64, int(rate * 2**32)
    one, quads = torch.zeros(2, num_cells, dtype=torch.int8)
    probes.probe_fires[(1,)](one, quads, seed, step, 4, threshold, N=num_cells)
    mask = ncakern.fire_mask((1, 13, 8), seed=seed, step=step, fire_rate=rate, first_sample=4)[0, 5:].flatten()
    assert torch.equal(one.bool(), mask)
    assert torch.equal(quads.bool(), mask)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_storage_rounds_as_torch_does(probes: ModuleType, dtype: torch.dtype) -> None:
    values = torch.randn(256) * torch.logspace(-4, 4, 256)
    values[:4] = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.00390625])  # the last: a tie in bfloat16
    stored = torch.zeros(256, dtype=dtype)
    probes.probe_to_storage[(1,)](values, stored, N=256)
    assert torch.equal(stored.nan_to_num(nan=7.0), values.to(dtype).nan_to_num(nan=7.0))


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("size", "kernel"), [(1, 1), (5, 3), (4, 7), (2, 3), (7, 5)])
def test_adjoint_of_padding_lists_every_tap_once(probes: ModuleType, padding: str, size: int, kernel: int) -> None:
    radius = kernel // 2
    if padding == "reflect" and radius >= size:
        pytest.skip("reflection needs a smaller filter")
    positions = torch.arange(-radius, size + radius).clamp(0, size - 1)
    if padding == "reflect":
        positions = torch.arange(-radius, size + radius).abs()
        positions = torch.where(positions >= size, 2 * (size - 1) - positions, positions)
    if padding == "circular":
        positions = torch.arange(-radius, size + radius) % size
    is_shown = (torch.arange(-radius, size + radius) >= 0) & (torch.arange(-radius, size + radius) < size)
    expected = sorted(
        (int(positions[source + tap]), source, tap)
        for source, tap in itertools.product(range(size), range(kernel))
        if padding != "zeros" or is_shown[source + tap]
    )

    found = []
    for e in range(probes.common.num_entries(kernel, padding)):
        out = torch.zeros(2, 8, dtype=torch.int32)
        probes.probe_pad_entry[(1,)](out, e, size, N=8, K=kernel, PADDING=padding)
        found += [(i, int(out[0, i]), int(out[1, i])) for i in range(size) if out[0, i] >= 0]
        assert (out[0, size:] == -1).all()  # lanes beyond the axis
    assert sorted(found) == expected


@pytest.mark.parametrize("terms", [16, 192, 2048])
def test_three_products_are_as_exact_as_float32(probes: ModuleType, tensor_cores: None, terms: int) -> None:
    a, b = torch.randn(16, terms), torch.randn(terms, 16)
    out = torch.zeros(16, 16)
    probes.probe_matmul[(1,)](a, b, out, terms, N=16, PRECISION="tf32x3")
    assert_matches(out, a @ b, a.double() @ b.double(), name="a @ b")


def test_three_products_keep_infinity_and_nan(probes: ModuleType, tensor_cores: None) -> None:
    values = torch.tensor([float("inf"), -float("inf"), float("nan"), -1.0003, 0.0, 1.0, 1e-3, 1.9995])
    diagonal, others = values.repeat(2).diag(), values.flip(0).repeat(2)[:, None] * torch.ones(16, 16).tril()
    largest = torch.finfo(torch.float32).max * torch.eye(16)
    for left, right in ((diagonal, others), (others, diagonal), (largest, 0.7 * torch.eye(16))):
        out = torch.zeros(16, 16)
        probes.probe_matmul[(1,)](left, right, out, 16, N=16, PRECISION="tf32x3")
        torch.testing.assert_close(out, left @ right, rtol=1e-6, atol=0, equal_nan=True)


SEAMS = [
    # Several tiles, marches and programs in each direction; hidden units in chunks; tiles that begin off a quad.
    ("ieee", Case(size=(3, 5, 19), channels=3, hidden=5, batch=1, steps=1, options={"norm": "batch"})),
    ("ieee", Case(size=(4, 66), channels=3, hidden=70, batch=2, steps=1, options={"norm": "instance"})),
    (
        "ieee",
        Case(size=(6, 33), channels=2, hidden=3, batch=1, steps=1, call={"origin": (2, 3), "extent": (11, 41)}),
    ),
    ("tf32x3", Case(size=(6, 33), channels=5, hidden=70, batch=1, steps=1, options={"norm": "batch"})),
    ("tf32x3", Case(size=(6, 35), channels=5, hidden=40, steps=1, has_modulation=True)),
    # 512 cells in one sum.
    ("tf32x3", Case(size=(16, 32), channels=3, hidden=5, batch=1, steps=1, options={"fire_rate": 1.0})),
]


@pytest.mark.parametrize(("precision", "case"), SEAMS, ids=lambda value: value if isinstance(value, str) else value.id)
def test_many_tiles_and_programs_match_float64(
    precision: str, case: Case, tensor_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ncakern.backends.triton import launch, launch_small

    monkeypatch.setattr(launch, "_choose_programs", lambda state: 1 if case.spec.fire_rate == 1.0 else 6)
    if precision == "tf32x3":
        monkeypatch.setattr(launch_small, "KEPT_TAPS", 1)  # as with large filters: perception is kept for the step
    monkeypatch.setenv("NCAKERN_TRITON_PRECISION", precision)
    inputs = make_inputs(case)
    exact = run_with_gradients(case, inputs.to(torch.float64, torch.float64), backend="reference")
    plain = run_with_gradients(case, inputs, backend="reference")
    actual = run_with_gradients(case, inputs, backend="triton")
    # Three TF32 products leave out 2**-22 of each product, four times the rounding of a float32.
    extra = {} if precision == "ieee" else {"floor": 4 * torch.finfo(torch.float32).eps}
    for name, tensor in actual.items():
        assert_matches(tensor, plain[name], exact[name], name=name, **extra)


def test_statistics_are_those_of_the_hidden_layer(triton_interpreter: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far from zero, where a variance from raw squares would be wrong, and over many programs."""
    from ncakern.backends.triton import launch

    monkeypatch.setattr(launch, "_choose_programs", lambda state: 6)
    case = Case(size=(9, 37), channels=3, hidden=5, batch=2, steps=1, options={"norm": "instance"})
    inputs = make_inputs(case)
    params = inputs.params
    state = inputs.state.detach() + 100
    out, _, stats = launch.fwd(
        state, *[p.detach() for p in params[:4]], *[params.norm_weight.detach(), params.norm_bias.detach()],
        params.out_weight.detach(), None, None, None, spec=case.spec, steps=1, seed=3, first_step=0, first_sample=0,
        origin=(0, 0), extent=case.size, keep_every=1, keep=True,
    )  # fmt: skip
    exact = state.double()
    padded = torch.nn.functional.pad(exact.movedim(-1, 1), (1, 1, 1, 1), mode="reflect")
    y = torch.nn.functional.conv2d(padded, params.perceive_weight[0, :, None].double(), groups=3).movedim(1, -1)
    v = torch.cat((exact, y), -1).flatten(1, 2)
    u = v @ params.hidden_weight.double().t()
    mean, variance, center = stats[0].split((5, 5, 6), dim=1)
    torch.testing.assert_close(mean, u.mean(1), rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(variance, u.var(1, correction=0), rtol=1e-4, atol=0)
    torch.testing.assert_close(center, v.mean(1), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1, 1), (40, 1, 3), (3, 70, 130), (320, 320, 24)], ids=str)
@pytest.mark.parametrize("precision", ["tf32x3", "tf32"])
def test_tiles_cover_the_grid_and_fit_a_dot(size: tuple[int, int, int], precision: str) -> None:
    chosen = tiles.choose_tiles(
        size,
        (3, 3, 3),
        features=32,
        padded_hidden=64,
        left=3,
        batch=2,
        programs=528,
        precision=precision,
        has_16_bits=False,
        has_norm=True,
    )
    for tile in chosen:
        assert tile.rows * tile.columns >= 16 and tile.columns % 4 == 0 and 64 % tile.chunk == 0
        tiles_of_plane = -(-size[1] // tile.rows) * -(-(size[2] + 3) // tile.columns)
        assert tile.count(size, left=3) == tiles_of_plane * -(-size[0] // tile.planes)
    assert 1 <= tiles.parts(chosen.sums.count(size), shares=2, programs=528) <= 528
