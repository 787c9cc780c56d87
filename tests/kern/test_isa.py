"""Every instruction set of the C++ kernel that this machine has gives the same quality."""

import pytest
import torch
from helpers import Case, assert_matches, make_inputs, run_with_gradients

import ncakern
from ncakern._env import VARIABLES

CASES = [
    Case(size=(9, 11), channels=16, hidden=64, options={"norm": "batch", "frozen_channels": 1}),
    Case(size=(3, 5, 7), channels=5, hidden=9, kernel=(3, 5, 3)),
    Case(size=(7, 5), channels=32, hidden=128, num_filters=2, options={"perception": "dense"}),
    Case(size=(9, 11), channels=16, hidden=64, dtype=torch.bfloat16),
    Case(size=(9, 11), channels=16, options={"clamp": (-0.9, 0.8)}),
    Case(size=(7, 9), channels=5, hidden=70, has_out_bias=True, options={"activation": "silu"}),
    Case(size=(3, 5, 7), channels=5, hidden=9, options={"activation": "gelu", "norm": "batch"}),
    Case(size=(7, 5), channels=6, options={"activation": "tanh", "perception": "dense"}),
]


@pytest.mark.parametrize("isa", [name for name in VARIABLES["NCAKERN_ISA"][1] if name != "auto"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_each_instruction_set_matches_float64(isa: str, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    if ncakern.backends()["cpu"] is not None:
        pytest.skip(ncakern.backends()["cpu"])
    from ncakern.backends.cpu import variants

    if not variants().get(isa):
        pytest.skip(f"this machine does not run {isa}")
    inputs = make_inputs(case).to(case.dtype, torch.float32)
    exact = run_with_gradients(case, inputs.to(torch.float64, torch.float64), backend="reference")
    plain = run_with_gradients(case, inputs, backend="reference")
    monkeypatch.setenv("NCAKERN_ISA", isa)
    for name, tensor in run_with_gradients(case, inputs, backend="cpu").items():
        assert_matches(tensor, plain[name], exact[name], name=name)


def test_an_instruction_set_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    if ncakern.backends()["cpu"] is not None:
        pytest.skip(ncakern.backends()["cpu"])
    from ncakern.backends.cpu import variants

    absent = next(n for n in VARIABLES["NCAKERN_ISA"][1] if n != "auto" and not variants().get(n))
    monkeypatch.setenv("NCAKERN_ISA", absent)
    case = Case(size=(3, 3))
    with pytest.raises(ValueError, match=rf"NCAKERN_ISA must be one that this machine can run .*; got '{absent}'"):
        run_with_gradients(case, make_inputs(case), backend="cpu")
