"""Each bad input: the type of the exception, and the name of the argument in its message."""

from typing import Any

import pytest
import torch

import ncakern
from ncakern import NCA, RolloutParams, RolloutSpec, fire_mask, nca_rollout

C, HIDDEN = 4, 6


def _params(**changes: Any) -> RolloutParams:
    tensors = {
        "perceive_weight": torch.zeros(1, C, 3, 3),
        "perceive_bias": torch.zeros(1, C),
        "hidden_weight": torch.zeros(HIDDEN, 2 * C),
        "hidden_bias": torch.zeros(HIDDEN),
        "out_weight": torch.zeros(C, HIDDEN),
    }
    return RolloutParams(**{**tensors, **changes})


def _call(**changes: Any) -> torch.Tensor:
    arguments = {
        "state": torch.zeros(2, 5, 6, C),
        "params": _params(),
        "spec": RolloutSpec(),
        "steps": 2,
        "seed": 0,
        "backend": "reference",
        **changes,
    }
    return nca_rollout(**arguments)


def test_the_good_call_is_good() -> None:
    assert _call().shape == (2, 5, 6, C)


CIRCULAR, BATCH = RolloutSpec(padding="circular"), RolloutSpec(norm="batch")
NORM = {"norm_weight": torch.ones(HIDDEN), "norm_bias": torch.zeros(HIDDEN)}
HALF_TILE = {"origin": (0, 0), "extent": (10, 6)}

BAD_CALLS = [
    # state
    ({"state": [1.0]}, TypeError, "state must be a torch.Tensor; got list"),
    ({"state": torch.zeros(2, 5, 6, C, dtype=torch.int32)}, TypeError, "state must be float32 or"),
    ({"state": torch.zeros(5, 6, C)}, ValueError, r"state must be \[B, H, W, C\].*channel axis"),
    ({"state": torch.zeros(2, 0, 6, C)}, ValueError, "state must have no empty axis but the batch"),
    ({"state": torch.zeros(2, 5, 6, 3)}, ValueError, "state has 3 channels on its last axis, this NCA has 4$"),
    ({"state": torch.zeros(2, C, 6, 5)}, ValueError, r"5 channels .* has 4; channels last\? x.movedim\(1, -1\)$"),
    ({"state": torch.zeros(2, 5, 6, 7, C)}, ValueError, r"perceive_weight must be \[F, 4, k, k, k\]"),
    ({"state": torch.zeros(2, 1, 6, C)}, ValueError, "state must have at least 2 cells on spatial axis 0.*reflect"),
    (
        {
            "state": torch.zeros(2, 2, 6, C),
            "spec": CIRCULAR,
            "params": _params(perceive_weight=torch.zeros(1, C, 7, 3)),
        },
        ValueError,
        "state must have at least 3 cells on spatial axis 0.*circular",
    ),
    # params
    ({"params": tuple(_params())}, TypeError, "params must be an ncakern.RolloutParams; got tuple"),
    ({"params": _params(hidden_bias=None)}, TypeError, "hidden_bias must be a torch.Tensor; got NoneType"),
    ({"params": _params(perceive_weight=None)}, TypeError, "perceive_weight must be a torch.Tensor"),
    ({"params": _params(perceive_weight=torch.zeros(1, C, 2, 3))}, ValueError, r"perceive_weight.*odd.*\(2, 3\)"),
    ({"params": _params(perceive_weight=torch.zeros(0, C, 3, 3))}, ValueError, "perceive_weight.*at least one filter"),
    ({"params": _params(perceive_weight=torch.zeros(1, C, C, 3, 3))}, ValueError, "perceive_weight must be"),
    ({"spec": RolloutSpec(perception="dense")}, ValueError, r"perceive_weight must be \[F, 4, 4, k, k\] for dense"),
    ({"params": _params(perceive_bias=torch.zeros(C))}, ValueError, r"perceive_bias must have shape \(1, 4\)"),
    ({"params": _params(hidden_weight=torch.zeros(HIDDEN))}, ValueError, r"hidden_weight must be \[h"),
    ({"params": _params(hidden_weight=torch.zeros(0, 2 * C))}, ValueError, "hidden_weight must have at least one row"),
    ({"params": _params(hidden_weight=torch.zeros(HIDDEN, C))}, ValueError, r"hidden_weight must have shape \(6, 8\)"),
    ({"params": _params(hidden_bias=torch.zeros(1))}, ValueError, r"hidden_bias must have shape \(6,\)"),
    ({"params": _params(out_weight=torch.zeros(HIDDEN, C))}, ValueError, r"out_weight must have shape \(4, 6\)"),
    ({"params": _params(out_bias=torch.zeros(HIDDEN))}, ValueError, r"out_bias must have shape \(4,\)"),
    ({"params": _params(hidden_bias=torch.zeros(HIDDEN).double())}, TypeError, "hidden_bias must be float32"),
    (
        {
            "state": torch.zeros(2, 5, 6, C).bfloat16(),
            "params": _params(perceive_weight=torch.zeros(1, C, 3, 3).bfloat16()),
        },
        TypeError,
        "perceive_bias must be bfloat16.*got torch.float32",
    ),
    ({"params": _params(out_weight=torch.zeros(C, HIDDEN, device="meta"))}, ValueError, "out_weight must be on.*meta"),
    ({"params": _params(**NORM)}, ValueError, "norm_weight and norm_bias must be None"),
    ({"spec": BATCH}, TypeError, "norm_weight must be a torch.Tensor; got NoneType"),
    (
        {"spec": BATCH, "params": _params(**NORM | {"norm_bias": torch.zeros(1)})},
        ValueError,
        r"norm_bias must have shape \(6,\)",
    ),
    # spec, steps, stream
    ({"spec": "relu"}, TypeError, "spec must be an ncakern.RolloutSpec; got str"),
    ({"spec": RolloutSpec(frozen_channels=5)}, ValueError, "frozen_channels must be at most the state's 4 channels"),
    ({"steps": -1}, ValueError, "steps must be at least 0; got -1"),
    ({"steps": 2.0}, TypeError, "steps must be an int; got float"),
    ({"steps": True}, TypeError, "steps must be an int; got bool"),
    ({"seed": 1.5}, TypeError, "seed must be None, an int or a 0-d int64 tensor; got float"),
    ({"seed": torch.tensor(1.5)}, TypeError, "seed must be.*torch.float32"),
    ({"seed": torch.tensor([1])}, ValueError, r"seed must be a 0-d tensor; got shape \(1,\)"),
    ({"seed": 2**63}, ValueError, "seed must fit into 64 bits"),
    ({"first_step": -1}, ValueError, "first_step must be at least 0"),
    ({"first_sample": 0.5}, TypeError, "first_sample must be an int"),
    # tiles
    ({"origin": (0, 0)}, ValueError, "extent must be given together with origin"),
    ({"extent": (5, 6)}, ValueError, "origin must be given together with extent"),
    ({"origin": 3, "extent": (5, 6)}, TypeError, "origin must be a sequence of ints"),
    ({"origin": (0,), "extent": (5, 6)}, ValueError, r"origin must have one entry per spatial axis \(2\)"),
    ({"origin": (0, 0), "extent": (5, 6.0)}, TypeError, "extent must be an int"),
    ({"origin": (-1, 0), "extent": (5, 6)}, ValueError, "origin must be at least 0"),
    ({"origin": (1, 0), "extent": (5, 6)}, ValueError, "origin must place the tile inside extent"),
    ({**HALF_TILE, "spec": BATCH, "params": _params(**NORM)}, ValueError, "extent must equal.*norm='batch'"),
    ({**HALF_TILE, "spec": CIRCULAR}, ValueError, "extent must equal.*padding='circular'"),
    # optional tensors
    ({"perceive_from": torch.zeros(2, 5, 6, C)}, ValueError, "steps must be 1 when perceive_from is given"),
    (
        {"perceive_from": torch.zeros(1, 5, 6, C), "steps": 1},
        ValueError,
        r"perceive_from must have shape \(2, 5, 6, 4\)",
    ),
    ({"perceive_from": torch.zeros(2, 5, 6, C).half(), "steps": 1}, TypeError, "perceive_from must be float32"),
    ({"perceive_from": 0, "steps": 1}, TypeError, "perceive_from must be a torch.Tensor"),
    ({"modulation": torch.zeros(2, HIDDEN)}, TypeError, "modulation must be a pair"),
    ({"modulation": (torch.zeros(2, HIDDEN), 1.0)}, TypeError, "modulation shift must be a torch.Tensor"),
    (
        {"modulation": (torch.zeros(HIDDEN), torch.zeros(2, HIDDEN))},
        ValueError,
        r"modulation scale must have shape \(2, 6\)",
    ),
    ({"modulation": (torch.zeros(2, HIDDEN).int(),) * 2}, TypeError, "modulation scale must be float32"),
    # how
    ({"keep_every": 0}, ValueError, "keep_every must be at least 1; got 0"),
    ({"keep_every": "all"}, TypeError, "keep_every must be an int or 'sqrt'; got 'all'"),
    ({"keep_every": 1.0}, TypeError, "keep_every must be an int or 'sqrt'"),
    ({"backend": "gpu"}, ValueError, "backend must be one of auto, triton, cpu, reference; got 'gpu'"),
    ({"backend": None}, TypeError, "backend must be a string; got NoneType"),
    (
        {"backend": "triton"},
        RuntimeError if ncakern.backends()["triton"] else ValueError,
        "backend='triton' (is not available|cannot run this call: needs a CUDA tensor; got device=cpu)",
    ),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD_CALLS, ids=[m[:50] for _, _, m in BAD_CALLS])
def test_bad_call_is_refused(changes: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _call(**changes)


OF_BOTH = [bad for bad in BAD_CALLS if not {"keep_every", "backend"} & set(bad[0])]  # the reference has neither


@pytest.mark.parametrize(("changes", "error", "message"), OF_BOTH, ids=[m[:50] for _, _, m in OF_BOTH])
def test_reference_refuses_the_same_calls(changes: dict, error: type[Exception], message: str) -> None:
    state, params, spec = torch.zeros(2, 5, 6, C), _params(), RolloutSpec()
    arguments = {"state": state, "params": params, "spec": spec, "steps": 2, "seed": 0, **changes}
    with pytest.raises(error, match=message):
        ncakern.nca_rollout_reference(**arguments)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"perception": "sparse"}, ValueError, "perception must be one of 'depthwise', 'dense'; got 'sparse'"),
        ({"padding": "mirror"}, ValueError, "padding must be one of"),
        ({"norm": "layer"}, ValueError, "norm must be one of"),
        ({"activation": "elu"}, ValueError, "activation must be one of"),
        ({"clamp": 1.0}, TypeError, "clamp must be None or two numbers"),
        ({"clamp": (0, "1")}, TypeError, "clamp must be None or two numbers"),
        ({"clamp": (0, 1, 2)}, ValueError, "clamp must be"),
        ({"clamp": (1, 0)}, ValueError, "clamp must be"),
        ({"clamp": (0, float("nan"))}, ValueError, "clamp must be"),
        ({"fire_rate": 1.1}, ValueError, r"fire_rate must be in \[0, 1\].*got 1.1"),
        ({"fire_rate": float("nan")}, ValueError, "fire_rate must be in"),
        ({"fire_rate": "half"}, TypeError, "fire_rate must be a number; got str"),
        ({"frozen_channels": -1}, ValueError, "frozen_channels must be at least 0"),
        ({"frozen_channels": 1.0}, TypeError, "frozen_channels must be an int"),
    ],
)
def test_bad_option_is_refused(changes: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RolloutSpec(**changes)
    with pytest.raises(error, match=message):
        NCA(2, 4, 6, **changes)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ndim": 1}, ValueError, "ndim must be 2 or 3; got 1"),
        ({"channels": 0}, ValueError, "channels must be at least 1; got 0"),
        ({"hidden": 6.0}, TypeError, "hidden must be an int; got float"),
        ({"num_filters": 0}, ValueError, "num_filters must be at least 1"),
        ({"kernel_size": 4}, ValueError, "kernel_size must be odd and positive.*got 4"),
        ({"kernel_size": (3, 3, 3)}, ValueError, "kernel_size must be odd and positive, one int or 2"),
        ({"kernel_size": 3.0}, TypeError, "kernel_size must be an int or a tuple of ints; got float"),
        ({"frozen_channels": 5}, ValueError, "frozen_channels must be at most channels=4; got 5"),
    ],
)
def test_bad_module_is_refused(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        NCA(**{"ndim": 2, "channels": 4, "hidden": 6, **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"shape": 5}, TypeError, "shape must be a tuple"),
        ({"shape": (2, 5)}, ValueError, r"shape must be \(B, H, W\)"),
        ({"shape": (2, 5, 6.0)}, TypeError, "shape must be an int"),
        ({"seed": None}, TypeError, "seed must be an int or a 0-d int64 tensor; got None"),
        ({"step": -1}, ValueError, "step must be at least 0"),
        ({"fire_rate": 2}, ValueError, "fire_rate must be in"),
        ({"origin": (1, 1)}, ValueError, "extent must be given"),
    ],
)
def test_bad_fire_mask_is_refused(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fire_mask(**{"shape": (1, 4, 5), "seed": 0, "step": 0, "fire_rate": 0.5, **arguments})
