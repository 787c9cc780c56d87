"""What has a clear meaning is taken: numpy's numbers, an empty batch, tensors without data."""

import numpy as np
import pytest
import torch
from helpers import Case, available_backends, make_inputs, run_case, run_with_gradients

import ncakern
from ncakern.arrays import ArrayParams

needs_extension = pytest.mark.skipif(ncakern.backends()["cpu"] is not None, reason="the extension is not built")


@pytest.mark.parametrize("backend", available_backends())
@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint8, np.intp])
def test_integers_of_numpy_are_ints(backend: str, kind: type) -> None:
    nca, state = ncakern.NCA(2, 4, 6), torch.rand(1, 5, 6, 4)
    torch.nn.init.normal_(nca.out_weight)
    tile = {"origin": (kind(2), kind(1)), "extent": [kind(30), kind(40)]}
    numbers = {"first_step": kind(4), "first_sample": kind(5), "keep_every": kind(2), "seed": kind(3), **tile}
    plain = {"first_step": 4, "first_sample": 5, "keep_every": 2, "seed": 3, "origin": (2, 1), "extent": (30, 40)}
    found, expected = nca(state, kind(3), backend=backend, **numbers), nca(state, 3, backend=backend, **plain)
    assert torch.equal(found, expected)


def test_numbers_of_numpy_in_options() -> None:
    spec = ncakern.RolloutSpec(fire_rate=np.float32(0.25), frozen_channels=np.int64(2))
    assert spec == ncakern.RolloutSpec(fire_rate=0.25, frozen_channels=2)
    assert (type(spec.fire_rate), type(spec.frozen_channels)) == (float, int)
    nca = ncakern.NCA(2, np.int64(4), np.int32(6), num_filters=np.int8(1), kernel_size=np.int64(3))
    assert nca.perceive_weight.shape == (1, 4, 3, 3)
    mask = ncakern.fire_mask((np.int64(1), 4, 5), seed=np.int64(1), step=np.int32(2), fire_rate=np.float64(0.5))
    assert torch.equal(mask, ncakern.fire_mask((1, 4, 5), seed=1, step=2, fire_rate=0.5))


@needs_extension
def test_integers_of_numpy_for_arrays() -> None:
    params = ArrayParams(*[np.full(s, 0.1, np.float32) for s in ((1, 4, 3, 3), (1, 4), (8, 8), (8,), (4, 8))])
    state, spec = np.ones((1, 5, 6, 4), np.float32), ncakern.RolloutSpec()
    found = ncakern.arrays.nca_rollout(state, params, spec, np.int64(3), seed=np.uint32(7), threads=np.int64(1))
    assert np.array_equal(found, ncakern.arrays.nca_rollout(state, params, spec, 3, seed=7, threads=1))


def test_indices_beyond_32_bits_wrap_around() -> None:
    nca, state = ncakern.NCA(2, 4, 6), torch.rand(2, 5, 6, 4)
    torch.nn.init.normal_(nca.out_weight)
    for backend in available_backends():
        for far in (2**32, 2**62):
            found = nca(state, 2, seed=1, first_step=far + 1, first_sample=far + 2, backend=backend)
            assert torch.equal(found, nca(state, 2, seed=1, first_step=1, first_sample=2, backend=backend))
        # One step before the end of the counter.
        found = nca(state, 2, seed=1, first_step=2**32 - 1, backend=backend)
        assert torch.equal(
            found, nca(nca(state, 1, seed=1, first_step=2**32 - 1, backend=backend), 1, seed=1, backend=backend)
        )


EMPTY = [
    Case(size=(3, 5), batch=0, steps=3, keep_every=2),
    Case(size=(3, 4), batch=0, steps=2, options={"norm": "batch"}, has_modulation=True),
    Case(size=(2, 3, 3), batch=0, steps=2, options={"norm": "instance"}),
    Case(size=(3, 3), batch=0, steps=1, has_perceive_from=True, options={"perception": "dense"}),
    Case(size=(3, 3), batch=0, steps=2, dtype=torch.bfloat16),
]


@pytest.mark.parametrize("backend", available_backends())
@pytest.mark.parametrize("case", EMPTY, ids=lambda case: case.id)
def test_an_empty_batch_is_returned_and_has_gradients_of_zero(case: Case, backend: str) -> None:
    inputs = make_inputs(case).to(case.dtype, torch.float32)
    found = run_with_gradients(case, inputs, backend=backend)
    assert found["out"].shape == inputs.state.shape and found["out"].dtype == case.dtype
    for name, tensor in inputs.named().items():
        assert found[f"d_{name}"].shape == tensor.shape and not found[f"d_{name}"].any(), name


@needs_extension
def test_an_empty_batch_of_arrays() -> None:
    shapes = ((1, 4, 3, 3), (1, 4), (8, 8), (8,), (4, 8), (8,), (8,))
    params, spec = ArrayParams(*[np.zeros(s, np.float32) for s in shapes]), ncakern.RolloutSpec(norm="batch")
    assert ncakern.arrays.nca_rollout(np.ones((0, 5, 6, 4), np.float32), params, spec, 3, seed=0).shape == (0, 5, 6, 4)
    with pytest.raises(ValueError, match="state must hold at least one sample"):
        ncakern.arrays.perception_moments(np.ones((0, 5, 6, 4), np.float32), params, spec)


@pytest.mark.parametrize(
    "case",
    [Case(size=(7, 9), options={"norm": "batch"}), Case(size=(3, 4, 5), dtype=torch.float16)],
    ids=lambda case: case.id,
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_tensors_without_data_have_results_without_data(case: Case, backend: str) -> None:
    inputs = make_inputs(case).to(case.dtype, torch.float32, "meta")
    out = run_case(case, inputs, backend=backend)
    assert out.is_meta and out.shape == inputs.state.shape and out.dtype == case.dtype
    for name, gradient in run_with_gradients(case, inputs, backend=backend).items():
        assert gradient.is_meta, name
