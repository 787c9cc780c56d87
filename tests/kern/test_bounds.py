"""Numbers and buffers out of bounds are errors that name the argument, on every way into the kernel."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ncakern
from ncakern import RolloutSpec, nca_rollout, nca_rollout_reference
from ncakern import arrays as on_arrays
from ncakern.arrays import ArrayParams

C, HIDDEN = 4, 6
SHAPES = ((1, C, 3, 3), (1, C), (HIDDEN, 2 * C), (HIDDEN,), (C, HIDDEN))

needs_extension = pytest.mark.skipif(ncakern.backends()["cpu"] is not None, reason="the extension is not built")


def arrays_call(**changes: Any) -> np.ndarray:
    own = {name: changes.pop(name) for name in list(changes) if name in ArrayParams._fields}
    params = ArrayParams(*[np.full(shape, 0.1, np.float32) for shape in SHAPES])._replace(**own)
    given = {"state": np.ones((2, 5, 6, C), np.float32), "params": params, "spec": RolloutSpec(), "steps": 2, "seed": 0}
    return on_arrays.nca_rollout(**{**given, **changes})


def tensors_call(rollout: Any, **changes: Any) -> torch.Tensor:
    params = ncakern.RolloutParams(*[torch.full(shape, 0.1) for shape in SHAPES])
    given = {"state": torch.ones(2, 5, 6, C), "params": params, "spec": RolloutSpec(), "steps": 2, "seed": 0}
    return rollout(**{**given, **changes})


TILE = {"origin": (0, 0), "extent": (5, 6)}
NUMBERS = [
    ({"steps": 2**31}, ValueError, "steps must be at most 2147483647; got 2147483648"),
    ({"steps": 2**32}, ValueError, "steps must be at most"),
    ({"steps": 2**32 + 1}, ValueError, "steps must be at most"),
    ({"steps": 2**64}, ValueError, "steps must be at most"),
    ({"steps": True}, TypeError, "steps must be an int; got bool"),
    ({"steps": np.True_}, TypeError, "steps must be an int; got bool"),
    ({"steps": np.float32(3)}, TypeError, "steps must be an int; got float32"),
    ({"seed": 2**63}, ValueError, "seed must fit into 64 bits, signed"),
    ({"seed": -(2**63) - 1}, ValueError, "seed must fit into 64 bits, signed"),
    ({"seed": 2**70}, ValueError, "seed must fit into 64 bits, signed"),
    ({"seed": True}, TypeError, "seed must be .* int"),
    ({"first_step": 2**63}, ValueError, "first_step must be at most 9223372036854775807"),
    ({"first_sample": -1}, ValueError, "first_sample must be at least 0"),
    ({**TILE, "origin": (-1, 0)}, ValueError, "origin must be at least 0; got -1"),
    ({**TILE, "extent": (2**63, 6)}, ValueError, "extent must be at most"),
    ({**TILE, "extent": (5.0, 6)}, TypeError, "extent must be an int; got float"),
    ({**TILE, "origin": (2**63 - 1, 0)}, ValueError, "origin must place the tile inside extent"),
]


@needs_extension
@pytest.mark.parametrize(("changes", "error", "match"), NUMBERS, ids=str)
def test_numbers_for_arrays(changes: dict, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        arrays_call(**changes)


@pytest.mark.parametrize("rollout", [nca_rollout, nca_rollout_reference], ids=["auto", "reference"])
@pytest.mark.parametrize(("changes", "error", "match"), NUMBERS, ids=str)
def test_numbers_for_tensors(changes: dict, error: type, match: str, rollout: Any) -> None:
    with pytest.raises(error, match=match):
        tensors_call(rollout, **changes)


@needs_extension
@pytest.mark.parametrize(
    ("threads", "error", "match"),
    [
        (0, ValueError, "threads must be at least 1; got 0"),
        (-1, ValueError, "threads must be at least 1"),
        (1025, ValueError, "threads must be at most 1024"),
        (2**31, ValueError, "threads must be at most 1024"),
        (2**64, ValueError, "threads must be at most 1024"),
        (True, TypeError, "threads must be an int; got bool"),
        (2.0, TypeError, "threads must be an int; got float"),
    ],
)
def test_threads_for_arrays(threads: Any, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        arrays_call(threads=threads)


@needs_extension
def test_a_huge_number_of_threads_in_the_environment_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "99999999999999999999")
    assert on_arrays.default_threads() == 1024


@needs_extension
@pytest.mark.parametrize("keep_every", [2, 3, 2**31, 2**32, 2**70])
def test_states_kept_further_apart_than_the_rollout_is_long_are_none(keep_every: int) -> None:
    nca, state = ncakern.NCA(2, C, HIDDEN), torch.rand(1, 5, 6, C)
    torch.nn.init.normal_(nca.out_weight)
    far, near = (
        torch.autograd.grad(nca(state, 2, seed=1, keep_every=k).sum(), list(nca.parameters())) for k in (keep_every, 1)
    )
    assert all(map(torch.equal, far, near))


@needs_extension
@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"perceive_weight": np.zeros((0, C, 3, 3), np.float32)}, "perceive_weight must hold at least one filter"),
        ({"hidden_weight": np.zeros((0, 2 * C), np.float32)}, "hidden_weight must be .* h at least 1"),
        ({"perceive_weight": np.zeros((1, C, 0, 3), np.float32)}, "perceive_weight must have an odd kernel"),
        ({"perceive_weight": np.zeros((1, C, 3), np.float32)}, "perceive_weight must have 4 axes"),
        (
            {"perceive_weight": np.zeros((1, 5, 3, 3), np.float32)},
            "state has 4 channels .* this NCA has 5; channels last",
        ),
        ({"hidden_weight": np.zeros(8, np.float32)}, "hidden_weight must be"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_empty_and_misshapen_arrays(changes: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        arrays_call(**changes)


@pytest.mark.parametrize(("name", "value"), [("params", None), ("params", ()), ("spec", None), ("spec", {})])
def test_arrays_of_other_types_are_refused(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{name} must be an ncakern"):
        arrays_call(**{name: value})


@needs_extension
def test_read_only_memory_is_not_written(tmp_path: Path) -> None:
    text = bytes(4 * 2 * 5 * 6 * C)
    np.zeros((2, 5, 6, C), np.float32).tofile(tmp_path / "out")
    mapped = np.memmap(tmp_path / "out", np.float32, "r", shape=(2, 5, 6, C))
    frozen = np.zeros((2, 5, 6, C), np.float32)
    frozen.flags.writeable = False
    for out in (np.frombuffer(text, np.float32).reshape(2, 5, 6, C), mapped, frozen):
        for steps in (0, 2):
            with pytest.raises(ValueError, match="out must be writeable"):
                arrays_call(out=out, steps=steps)
    assert text == bytes(len(text)) and not mapped.any() and not frozen.any()


@needs_extension
def test_layout_of_what_is_read_does_not_matter() -> None:
    state, expected = np.random.default_rng(0).random((2, 5, 6, C), np.float32), None
    raw = bytearray(state.nbytes + 1)
    unaligned = np.frombuffer(raw, np.float32, offset=1, count=state.size).reshape(state.shape)
    unaligned[...] = state
    read_only = np.frombuffer(state.tobytes(), np.float32).reshape(state.shape)
    assert not unaligned.flags.aligned and not read_only.flags.writeable
    expected = arrays_call(state=state)
    for same in (unaligned, read_only, np.asfortranarray(state), state[:, ::-1][:, ::-1]):
        assert np.array_equal(arrays_call(state=same), expected)
    with pytest.raises(TypeError, match="out must be a contiguous float32 array, aligned"):
        arrays_call(out=unaligned)
    with pytest.raises(TypeError, match="state must be a numpy array; got MaskedArray"):
        arrays_call(state=np.ma.masked_less(state, 0.5))


@pytest.mark.parametrize(
    ("state", "match"),
    [
        (torch.ones(2, 5, 6, C).to_sparse(), "state must be a dense tensor; got a torch.sparse_coo one"),
        (torch.ones(2, 5, 6, C).to_mkldnn(), "state must be a dense tensor; got a torch._mkldnn one"),
    ],
)
def test_tensors_of_other_layouts_are_refused(state: torch.Tensor, match: str) -> None:
    with pytest.raises(TypeError, match=match):
        tensors_call(nca_rollout, state=state)


def test_tensors_without_memory_are_refused() -> None:
    state = torch.ones(2, 5, 6, C)
    state.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="state has no memory"):
        tensors_call(nca_rollout, state=state, backend="cpu")
