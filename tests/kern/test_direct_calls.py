"""The operators and the extension check what they are given: no wrong argument gets as far as a pointer."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers import Case, make_inputs

import ncakern
from ncakern import ops
from ncakern._kernel import MAX_THREADS, call_options

pytestmark = pytest.mark.skipif(ncakern.backends()["cpu"] is not None, reason="the extension is not built")

CASE = Case(size=(4, 5), channels=4, hidden=7, steps=3, keep_every=2, options={"norm": "instance"}, has_modulation=True)


def operator_arguments(**changes: Any) -> tuple:
    """What ``nca_rollout_bwd`` takes after d_out, kept and stats."""
    inputs = make_inputs(CASE)
    scale, shift = inputs.modulation
    named: dict[str, Any] = inputs.params._asdict()
    named |= {"state": inputs.state, "perceive_from": None, "scale": scale, "shift": shift}
    named = {name: None if t is None else t.detach() for name, t in named.items()}
    named |= {"seed": torch.tensor(5), "steps": 3, "first_step": 0, "first_sample": 0, "keep_every": 2}
    named |= {name: getattr(CASE.spec, name) for name in ops._SPEC_NAMES}
    named |= {"origin": [0, 0], "extent": [4, 5], "backend": "cpu", **changes}
    return tuple(named[name] for name in (*ops._TENSOR_NAMES, "seed", *ops._SPEC_NAMES, *ops._CALL_NAMES, "backend"))


BAD_FOR_OPERATORS = [
    ({"state": torch.zeros(2, 4, 5, 3)}, ValueError, "state has 3 channels"),
    ({"state": torch.zeros(2, 4, 5, 4, dtype=torch.int32)}, TypeError, "state must be float32"),
    ({"state": torch.zeros(4)}, ValueError, "state must be"),
    ({"state": torch.zeros(2, 4, 5, 4, dtype=torch.float64)}, ValueError, "cannot run this call: needs a state of"),
    ({"state": torch.zeros(3, 4, 5, 4)}, ValueError, "modulation scale must have shape"),
    ({"perceive_weight": torch.zeros(0)}, ValueError, "perceive_weight must be"),
    ({"perceive_weight": torch.zeros(1, 4, 3, 2)}, ValueError, "perceive_weight must have an odd"),
    ({"hidden_weight": torch.zeros(7, 9)}, ValueError, "hidden_weight must have shape"),
    ({"hidden_weight": torch.zeros(0, 8)}, ValueError, "hidden_weight must have at least one row"),
    ({"hidden_bias": torch.zeros(0)}, ValueError, "hidden_bias must have shape"),
    ({"out_weight": torch.zeros(4, 7, dtype=torch.bfloat16)}, TypeError, "out_weight must be"),
    ({"norm_weight": None}, TypeError, "norm_weight must be a torch.Tensor"),
    ({"norm": "none"}, ValueError, "norm_weight and norm_bias must be None"),
    ({"scale": None}, ValueError, "scale and shift must be given together"),
    ({"perceive_from": torch.zeros(2, 4, 5, 4)}, ValueError, "steps must be 1"),
    ({"perceive_from": torch.zeros(1)}, ValueError, "perceive_from must have shape"),
    (
        {"hidden_bias": torch.zeros(7, device="meta")},
        ValueError,
        "hidden_bias must be on the state's device cpu; got meta",
    ),
    ({"seed": torch.zeros(2, dtype=torch.int64)}, ValueError, "seed must be a 0-d tensor"),
    ({"seed": torch.tensor(1.0)}, TypeError, "seed must be"),
    ({"perception": "sparse"}, ValueError, "perception must be one of"),
    ({"padding": ""}, ValueError, "padding must be one of"),
    ({"fire_rate": float("nan")}, ValueError, "fire_rate must be in"),
    ({"frozen_channels": 5}, ValueError, "frozen_channels must be at most"),
    ({"clamp": [1.0, 0.0]}, ValueError, "clamp must be"),
    ({"out_bias": torch.zeros(5)}, ValueError, "out_bias must have shape"),
    ({"frozen_channels": -1}, ValueError, "frozen_channels must be at least 0"),
    ({"steps": 0}, ValueError, "steps must be at least 1"),
    ({"steps": -3}, ValueError, "steps must be at least 0"),
    ({"steps": 2**31}, ValueError, "steps must be at most"),
    ({"keep_every": 0}, ValueError, "keep_every must be at least 1"),
    ({"keep_every": -(2**32)}, ValueError, "keep_every must be at least 1"),
    ({"first_step": -1}, ValueError, "first_step must be at least 0"),
    ({"first_sample": -1}, ValueError, "first_sample must be at least 0"),
    ({"origin": []}, ValueError, "origin must have one entry"),
    ({"origin": [-1, 0]}, ValueError, "origin must be at least 0"),
    ({"extent": [3, 5]}, ValueError, "origin must place the tile"),
    ({"extent": [9, 9]}, ValueError, "extent must equal the state's size"),
    ({"backend": "reference"}, ValueError, "backend='reference' cannot run this call"),
    ({"backend": "none"}, ValueError, "backend='none' cannot run this call"),
]


@pytest.mark.parametrize(("changes", "error", "match"), BAD_FOR_OPERATORS, ids=lambda v: str(v)[:40])
def test_operators_refuse(changes: dict, error: type, match: str) -> None:
    good = operator_arguments()
    out, kept, stats = torch.ops.ncakern.nca_rollout(*good, True)
    with pytest.raises(error, match=match):
        torch.ops.ncakern.nca_rollout(*operator_arguments(**changes), True)
    with pytest.raises((error, ValueError, TypeError)):
        torch.ops.ncakern.nca_rollout_bwd(torch.ones_like(out), kept, stats, *operator_arguments(**changes))


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"d_out": torch.ones(1)}, ValueError, "d_out must have shape"),
        ({"d_out": torch.ones(2, 4, 5, 4, dtype=torch.float16)}, TypeError, "d_out must be float32"),
        ({"kept": torch.ones(3, 2, 4, 5, 4)}, ValueError, "kept must have shape"),
        ({"kept": torch.ones(1, 2, 4, 5, 4, dtype=torch.float64)}, TypeError, "kept must be float32"),
        ({"stats": torch.ones(3, 2, 72)}, TypeError, "stats must be float64"),
        ({"stats": torch.ones(2, 2, 72, dtype=torch.float64)}, ValueError, "stats must have shape"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_backward_operator_refuses(changes: dict, error: type, match: str) -> None:
    out, kept, stats = torch.ops.ncakern.nca_rollout(*operator_arguments(), True)
    given = {"d_out": torch.ones_like(out), "kept": kept, "stats": stats, **changes}
    with pytest.raises(error, match=match):
        torch.ops.ncakern.nca_rollout_bwd(*given.values(), *operator_arguments())


def test_operators_take_strided_tensors() -> None:
    out, kept, stats = torch.ops.ncakern.nca_rollout(*operator_arguments(), True)
    d_out = torch.randn_like(out)
    expected = torch.ops.ncakern.nca_rollout_bwd(d_out, kept, stats, *operator_arguments())
    strided = [t.repeat_interleave(2, -1)[..., ::2] for t in (d_out, kept, stats)]
    assert not any(t.is_contiguous() for t in strided)
    assert all(map(torch.equal, torch.ops.ncakern.nca_rollout_bwd(*strided, *operator_arguments()), expected))


# ---- the extension ---------------------------------------------------------------------------------------------------

SHAPES = {
    "state": (2, 4, 5, 4),
    "perceive_weight": (1, 4, 3, 3),
    "perceive_bias": (1, 4),
    "hidden_weight": (7, 8),
    "hidden_bias": (7,),
    "out_weight": (4, 7),
    "norm_weight": (7,),
    "norm_bias": (7,),
}
GRADIENTS = {f"d_{name}": shape for name, shape in SHAPES.items()}


def call_extension(name: str, *, arrays: dict | None = None, **options: Any) -> dict[str, np.ndarray]:
    from ncakern import _cpu

    shapes = dict(SHAPES)
    if name == "fwd":
        shapes["out"] = SHAPES["state"]
    if name == "bwd":
        shapes |= {"d_out": SHAPES["state"], "kept": (1, *SHAPES["state"]), **GRADIENTS}
    given = {key: np.full(shape, 0.1, np.float32) for key, shape in shapes.items()}
    if name != "fwd":
        given["stats"] = np.ones((1 if name == "moments" else 3, 2, 72))
    stream = {"seed": 1, "first_step": 0, "first_sample": 0, "origin": (0, 0), "extent": (4, 5)}
    steps = {"steps": 1 if name == "moments" else 3, "keep_every": 2, "storage": "float32", "threads": 1}
    settings = call_options(SHAPES["state"], SHAPES["perceive_weight"], 7, spec=CASE.spec, **stream, **steps)
    if name == "moments":
        settings |= {"inner_begin": [0, 0, 0], "inner_end": [1, 4, 5]}
    for key, value in (arrays or {}).items():
        given[key] = value
        if value is None:
            del given[key]
    getattr(_cpu, name)(given, settings | options)
    return given


@pytest.mark.parametrize("name", ["fwd", "bwd", "moments"])
def test_the_good_call_is_good(name: str) -> None:
    result = call_extension(name)
    assert np.isfinite(result["out" if name == "fwd" else "d_hidden_weight" if name == "bwd" else "stats"]).all()


read_only = np.zeros(SHAPES["state"], np.float32)
read_only.flags.writeable = False
BAD_ARRAYS = [
    ("fwd", {"state": None}, ValueError, "state must be given"),
    ("fwd", {"state": [0.0] * 160}, TypeError, "state must be a numpy array; got list"),
    ("fwd", {"state": np.zeros(160, np.float64)}, TypeError, "state must have items of 4 bytes"),
    (
        "fwd",
        {"state": np.zeros(160, np.int32)},
        TypeError,
        "state must have items of 4 bytes, native floats; got int32",
    ),
    ("fwd", {"state": np.zeros(160, ">f4")}, TypeError, "native floats"),
    ("fwd", {"state": np.zeros(320, np.float32)[::2]}, ValueError, "state must be contiguous"),
    ("fwd", {"state": np.zeros(159, np.float32)}, ValueError, "state must have 160 values; got 159"),
    ("fwd", {"out": read_only}, ValueError, "out must be writeable"),
    ("fwd", {"out": None}, ValueError, "out must be given"),
    ("fwd", {"hidden_bias": None}, ValueError, "hidden_bias must be given"),
    ("fwd", {"norm_bias": None}, ValueError, "norm_bias must be given"),
    ("fwd", {"scale": np.zeros((2, 7), np.float32)}, ValueError, "shift must be given"),
    ("fwd", {"perceive_from": read_only}, ValueError, "steps must be 1"),
    ("fwd", {"kept": np.zeros((2, 160), np.float32)}, ValueError, "kept must have 160 values; got 320"),
    ("fwd", {"stats": np.zeros((3, 1, 72))}, ValueError, "stats must have 432 values"),
    ("fwd", {"d_out": read_only}, ValueError, "d_out must not be given in this call"),
    ("fwd", {7: read_only}, ValueError, "7 must not be given"),
    ("bwd", {"kept": None}, ValueError, "kept must be given"),
    ("bwd", {"kept": np.zeros(0, np.float32)}, ValueError, "kept must have 160 values; got 0"),
    ("bwd", {"stats": None}, ValueError, "stats must be given"),
    ("bwd", {"d_state": read_only}, ValueError, "d_state must be writeable"),
    ("bwd", {"d_out_weight": None}, ValueError, "d_out_weight must be given"),
    ("bwd", {"d_norm_weight": None}, ValueError, "d_norm_weight must be given"),
    ("bwd", {"d_scale": np.zeros((2, 7), np.float32)}, ValueError, "d_scale must not be given"),
    ("moments", {"stats": None}, ValueError, "stats must be given"),
]


@pytest.mark.parametrize(("name", "arrays", "error", "match"), BAD_ARRAYS, ids=lambda v: str(v)[:30])
def test_extension_refuses_arrays(name: str, arrays: dict, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        call_extension(name, arrays=arrays)


LARGE = 2**31 - 1
BAD_OPTIONS = [
    ("threads", [0, -1, MAX_THREADS + 1, 2**31, 2**80, True, None, 1.0]),
    ("steps", [0, -1, 2**31, 2**32 + 1, 2**64, "3"]),
    ("keep_every", [0, -1, 2**31, 2**32, False]),
    ("seed", [-1, 2**64, None]),
    ("first_step", [-1, 2**32]),
    ("first_sample", [-1, 2**32]),
    ("fire_threshold", [-1, 2**32 + 1]),
    ("batch", [0, -1, LARGE, 2**32 + 2]),
    ("channels", [0, -4, LARGE, 2**32 + 4]),
    ("filters", [0, -1, LARGE]),
    ("hidden", [0, -7, LARGE]),
    ("frozen_channels", [-1, 5]),
    ("clamp_low", [1, None, float("nan")]),
    ("clamp_high", [True, float("nan")]),
    ("size", [[1, 4], [0, 4, 5], [1, 4, -5], [LARGE] * 3, [1, 4, 2**32 + 5], None, "145"]),
    ("kernel", [[1, 3, 2], [1, 3, 0], [LARGE] * 3, [1, 99, 3]]),
    ("origin", [[0, -1, 0], [0, 2**63, 0], [0, 1, 0], [0, 0]]),
    ("extent", [[1, 4, 0], [1, 4, 2**63], [1, 3, 5]]),
    ("isa", ["avx9", "", 3]),
    ("use_amx", [True, 1, None]),
    ("norm", ["layer", None]),
    ("storage", ["float64", "int8"]),
]


@pytest.mark.parametrize(("option", "value"), [(name, value) for name, values in BAD_OPTIONS for value in values])
@pytest.mark.parametrize("name", ["fwd", "bwd"])
def test_extension_refuses_options(name: str, option: str, value: Any) -> None:
    if (name, option) == ("bwd", "use_amx"):
        pytest.skip("not read in the backward pass")
    # Where a size is wrong but possible, it is the array that does not fit.
    with pytest.raises((ValueError, TypeError), match=rf"{option}|must have .* values|2\*\*56|origin"):
        call_extension(name, **{option: value})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"norm": "none"}, "norm must be"),
        ({"steps": 2}, "steps must be 1"),
        ({"inner_begin": [0, 4, 0]}, "inner_begin and inner_end"),
        ({"inner_end": [1, 5, 5]}, "inner_begin and inner_end"),
        ({"inner_end": [1, 2**31, 5]}, "inner_end must be in"),
    ],
    ids=str,
)
def test_extension_refuses_moments(options: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call_extension("moments", **options)


def test_other_functions_of_the_extension_refuse() -> None:
    from ncakern import _cpu

    for arguments in ((0, 1), (-1, 1), (2**40, 1), (1, 0), (1, 2**31), (True, 1)):
        with pytest.raises((ValueError, TypeError), match="threads|rounds"):
            _cpu.fma_peak(*arguments)
    with pytest.raises(KeyError, match="options lacks perception"):
        _cpu.fwd({}, {})
