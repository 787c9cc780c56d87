"""The triton backend on an accelerator: cases of all backends, large ones, TF32, addresses, streams, graphs."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from helpers import Case, Inputs, assert_matches, is_for_triton, make_inputs, run_case, run_with_gradients
from kern.test_backends import BF16, CASES

import ncakern

pytestmark = [
    pytest.mark.gpu,
    # Some versions of torch name their newer switches for TF32 when the older ones, which all have, are set.
    pytest.mark.filterwarnings("ignore:Please use the new API settings to control TF32:UserWarning"),
]

# Many programs per kernel, ragged edges, every family of kernels.
LARGE = [
    Case(size=(129, 67, 45), channels=16, hidden=64, batch=1, options={"norm": "batch", "frozen_channels": 1}),
    Case(size=(64, 51, 33), channels=16, hidden=64, kernel=(7, 7, 7), batch=1, steps=2, options={"norm": "batch"}),
    Case(size=(65, 40, 33), channels=16, hidden=64, batch=3, options={"norm": "instance", "padding": "zeros"}),
    Case(size=(511, 513), channels=16, hidden=128, num_filters=2, batch=1, steps=8, keep_every="sqrt"),
    Case(size=(257, 255), channels=32, hidden=128, num_filters=2, batch=1, options={"perception": "dense"}),
    Case(size=(255, 129), channels=64, hidden=512, num_filters=2, batch=1, options={"perception": "dense"}),
    Case(size=(97, 101), channels=64, hidden=512, num_filters=2, options={"perception": "dense", "norm": "batch"}),
    Case(size=(129, 131), channels=24, hidden=96, has_modulation=True, options={"padding": "circular"}),
    Case(size=(129, 67, 45), channels=16, hidden=64, batch=1, dtype=BF16, options={"norm": "batch"}),
    Case(
        size=(255, 129), channels=64, hidden=512, num_filters=2, dtype=torch.bfloat16, options={"perception": "dense"}
    ),
]
# Sizes that torch, too, gives to the TF32 units.
TF32 = [
    Case(size=(64, 64, 32), channels=16, hidden=64, steps=1, options={"norm": "batch"}),
    Case(size=(128, 128), channels=64, hidden=512, num_filters=2, steps=1, options={"perception": "dense"}),
]


@pytest.fixture(autouse=True)
def _ieee_float32_in_torch() -> Iterator[None]:
    """The bound is the error of float32, so torch must not compute the plain result in TF32, its default for cuDNN."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def _on_device(case: Case) -> Inputs:
    return make_inputs(case).to(case.dtype, torch.float32, "cuda")


def _reference(case: Case, inputs: Inputs) -> dict[str, torch.Tensor]:
    # For some paddings torch has no deterministic backward pass on an accelerator, and refuses in that mode.
    torch.use_deterministic_algorithms(False)
    found = run_with_gradients(case, inputs, backend="reference")
    torch.use_deterministic_algorithms(True)
    return found


def _assert_matches_float64(case: Case) -> None:
    inputs = _on_device(case)
    exact, plain = _reference(case, inputs.to(torch.float64, torch.float64)), _reference(case, inputs)
    for name, tensor in run_with_gradients(case, inputs, backend="triton").items():
        assert tensor.is_cuda and tensor.dtype == plain[name].dtype
        assert_matches(tensor, plain[name], exact[name], name=name)


@pytest.mark.parametrize("case", [*filter(is_for_triton, CASES), *LARGE], ids=lambda case: case.id)
def test_result_and_gradients_match_float64(case: Case) -> None:
    _assert_matches_float64(case)


@pytest.mark.parametrize("case", [*filter(is_for_triton, CASES), *LARGE], ids=lambda case: case.id)
def test_the_cells_that_fire_are_those_of_the_cpu(case: Case) -> None:
    one_step = replace(case, steps=1)
    inputs = _on_device(one_step)
    out = run_case(one_step, inputs, backend="triton")
    stream = dict(case.call)
    first_step = stream.pop("first_step", 0)
    fires = ncakern.fire_mask(
        tuple(inputs.state.shape[:-1]), seed=7, step=first_step, fire_rate=case.spec.fire_rate, **stream
    ).cuda()
    frozen = case.spec.frozen_channels
    assert torch.equal(out[~fires], inputs.state[~fires])
    assert torch.equal(out[..., :frozen], inputs.state[..., :frozen])
    moved = (out != inputs.state)[fires][:, frozen:]
    assert moved.numel() == 0 or moved.float().mean() > 0.5


@pytest.mark.parametrize("case", LARGE, ids=lambda case: case.id)
def test_two_runs_give_the_same_bits(case: Case) -> None:
    inputs = _on_device(case)
    first, second = (run_with_gradients(case, inputs, backend="triton") for _ in range(2))
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("case", TF32, ids=lambda case: case.id)
def test_tf32_is_as_exact_as_torch_with_tf32(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCAKERN_TRITON_PRECISION", "tf32")
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    _assert_matches_float64(case)


def test_auto_takes_triton() -> None:
    case = Case(size=(9, 9))
    inputs = _on_device(case)
    assert torch.equal(run_case(case, inputs, backend="auto"), run_case(case, inputs, backend="triton"))


def test_another_stream_waits_for_nothing_it_should_not() -> None:
    case = Case(size=(65, 67), channels=16, hidden=64, steps=20)
    inputs = _on_device(case)
    expected = run_case(case, inputs, backend="triton")
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        out = run_case(case, inputs, backend="triton")
    stream.synchronize()
    assert torch.equal(out, expected)


def test_rollout_can_be_captured_in_a_graph() -> None:
    case = Case(size=(33, 47), channels=16, hidden=64, steps=8, options={"norm": "batch"})
    inputs = _on_device(case)
    with torch.no_grad():
        expected = run_case(case, inputs, backend="triton")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = run_case(case, inputs, backend="triton")
        graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, expected)


GRAPHED = [
    Case(size=(33, 47), channels=16, hidden=64, batch=1, steps=8, options={"norm": "batch"}),
    Case(size=(17, 15, 13), channels=16, hidden=64, steps=5, has_modulation=True),
    Case(size=(33, 47), channels=32, hidden=128, num_filters=2, steps=4, options={"perception": "dense"}),
    Case(size=(33, 47), channels=32, hidden=128, dtype=BF16, steps=4, options={"perception": "dense", "norm": "batch"}),
]


@pytest.mark.parametrize("case", GRAPHED, ids=lambda case: case.id)
def test_graphs_change_no_bit(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    from ncakern.backends.triton import graphs

    inputs = _on_device(case)

    def run_all() -> list[torch.Tensor]:
        """Three calls until the graph is replayed, another seed, other parameters, both."""
        found = [run_case(replace(case, call={"seed": seed}), inputs, backend="triton") for seed in (1, 1, 1, 2)]
        for tensor in inputs.named().values():
            tensor.mul_(2)
        found += [run_case(replace(case, call={"seed": seed}), inputs, backend="triton") for seed in (1, 2)]
        for tensor in inputs.named().values():
            tensor.div_(2)
        return found

    graphs.CACHE.clear()
    with torch.no_grad():
        monkeypatch.setenv("NCAKERN_CUDA_GRAPHS", "1")
        graphed = run_all()
        assert len(graphs.CACHE) == 1
        monkeypatch.setenv("NCAKERN_CUDA_GRAPHS", "0")
        direct = run_all()
    graphs.CACHE.clear()
    for a, b in zip(graphed, direct, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(direct[0], direct[3]) and not torch.equal(direct[0], direct[4])


# 2.4e9 numbers, so that 32-bit offsets overflow; identical samples make the expected result cheap.
@pytest.mark.parametrize("perception", ["depthwise", "dense"])
def test_offsets_beyond_32_bits(perception: str) -> None:
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of free memory")
    case = Case(
        size=(530, 530, 530),
        channels=16,
        hidden=32,
        batch=1,
        steps=1,
        dtype=torch.bfloat16,
        options={"fire_rate": 1.0, "padding": "zeros", "perception": perception},
    )
    params = make_inputs(replace(case, size=(3, 3, 3))).to(case.dtype, torch.float32, "cuda").params
    corner = torch.randn(6, 6, 6, 16, device="cuda").to(case.dtype)
    state = torch.zeros(1, *case.size, 16, dtype=case.dtype, device="cuda")
    state[0, -6:, -6:, -6:] = corner
    with torch.no_grad():
        out = ncakern.nca_rollout(state, params, case.spec, 1, seed=7, backend="triton")
        alone = ncakern.nca_rollout(
            state[:, -8:, -8:, -8:].contiguous(), params, case.spec, 1, seed=7, backend="triton"
        )
    # At the inner edge the padding stands for the zeros that the whole volume holds there.
    assert torch.equal(out[:, -7:, -7:, -7:], alone[:, 1:, 1:, 1:])
    assert torch.equal(out[0, 3, 3, 3], out[0, -9, -9, -9])


def test_peak_memory_holds_states_only() -> None:
    case = Case(size=(64, 64, 64), channels=16, hidden=64, batch=1, steps=16, options={"norm": "batch"})
    inputs = _on_device(case)
    run_with_gradients(case, inputs, backend="triton")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run_with_gradients(case, inputs, backend="triton")
    states = (torch.cuda.max_memory_allocated() - before) / (inputs.state.numel() * inputs.state.itemsize)
    # 15 kept, the result, its gradient, the state's, two between steps, the gradient of the perception, partial sums.
    assert states < 24
