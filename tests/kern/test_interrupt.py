"""Signals are heard inside a long rollout; a forked child computes on one thread."""

import os
import subprocess
import sys
import textwrap

import pytest

import ncakern

pytestmark = [
    pytest.mark.skipif(ncakern.backends()["cpu"] is not None, reason="the extension is not built"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs signals and fork as POSIX has them"),
]

# Idle cores hear a signal within 0.1 s, busy ones may take their time.
SECONDS = 1.0

INTERRUPTED = """
    import os, signal, sys, threading, time
    import torch, ncakern
    direction, threads, options = sys.argv[1], int(sys.argv[2]), eval(sys.argv[3])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    nca = ncakern.NCA(2, 16, 64, **options)
    torch.nn.init.normal_(nca.out_weight, std=1e-3)
    small, state, sent = torch.rand(1, 9, 9, 16), torch.rand(1, 96, 96, 16), []
    expected = nca(small, 3, seed=0, backend="cpu")
    grads = torch.autograd.grad(expected.square().sum(), list(nca.parameters()))

    def interrupt():
        time.sleep(0.15)
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    if direction == "bwd":  # of a second or two
        out = nca(state.requires_grad_(), 400, seed=0, keep_every="sqrt", backend="cpu").sum()
    elif direction == "arrays":
        from ncakern.arrays import ArrayParams, nca_rollout
        params = ArrayParams(*[None if p is None else p.detach().numpy() for p in nca.params])
    threading.Thread(target=interrupt).start()
    try:
        if direction == "bwd":
            out.backward()
        elif direction == "arrays":  # of minutes, as the last one
            nca_rollout(state.numpy(), params, nca.spec, 10**6, seed=0, threads=threads)
        else:
            with torch.no_grad():
                nca(state, 10**6, seed=0, backend="cpu")
    except KeyboardInterrupt:
        print(time.monotonic() - sent[0])
    again = nca(small, 3, seed=0, backend="cpu")
    assert torch.equal(again, expected)
    assert all(map(torch.equal, torch.autograd.grad(again.square().sum(), list(nca.parameters())), grads))
"""


def run_python(script: str, *arguments: str) -> str:
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    ("direction", "threads", "options"),
    [
        ("fwd", 2, {"norm": "batch"}),
        ("fwd", 2, {"perception": "dense"}),
        ("bwd", 1, {}),
        ("bwd", 2, {"norm": "instance"}),
        ("bwd", 2, {"perception": "dense"}),
        ("arrays", 1, {}),
    ],
    ids=lambda value: str(value),
)
def test_a_signal_ends_a_long_rollout(direction: str, threads: int, options: dict) -> None:
    assert float(run_python(INTERRUPTED, direction, str(threads), repr(options))) < SECONDS


def test_one_large_step_is_interrupted_inside() -> None:
    # A step of half a minute, which has no end to wait for.
    script = """
        import os, signal, threading, time
        import torch, ncakern
        nca = ncakern.NCA(2, 64, 2048, perception="dense", num_filters=3)
        state = torch.rand(1, 1024, 1024, 64).bfloat16().float()

        def interrupt():
            time.sleep(1.5)
            sent.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

        sent = []
        threading.Thread(target=interrupt).start()
        try:
            with torch.no_grad():
                nca(state, 1, seed=0, backend="cpu")
        except KeyboardInterrupt:
            print(time.monotonic() - sent[0])
    """
    assert float(run_python(script)) < SECONDS


def test_handlers_that_do_not_raise_change_nothing_and_may_not_call_back() -> None:
    script = """
        import signal
        import torch, ncakern
        torch.set_num_threads(2)
        torch.manual_seed(0)
        nca = ncakern.NCA(2, 16, 64)
        torch.nn.init.normal_(nca.out_weight, std=1e-3)
        state, errors = torch.rand(1, 96, 96, 16), []

        def roll():
            with torch.no_grad():
                return nca(state, 400, seed=0, backend="cpu")

        def handle(*_):
            try:
                nca(state, 1, seed=0, backend="cpu")
            except RuntimeError as error:
                errors.append(str(error))

        expected = roll()
        signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        found = roll()
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert torch.equal(found, expected)
        print(len([e for e in errors if "a signal handler must not call ncakern" in e]))
    """
    assert int(run_python(script)) > 0


def test_a_forked_child_computes_on_one_thread() -> None:
    script = """
        import os, sys
        import numpy as np
        from ncakern import RolloutSpec, _cpu
        from ncakern.arrays import ArrayParams, nca_rollout
        shapes = ((1, 16, 3, 3), (1, 16), (32, 32), (32,), (16, 32))
        params = ArrayParams(*[np.full(s, 0.01, np.float32) for s in shapes])
        state = np.random.default_rng(0).random((1, 40, 40, 16), np.float32)
        call = lambda: nca_rollout(state, params, RolloutSpec(), 8, seed=0, threads=4)
        expected = call()
        assert not _cpu.is_forked_child()
        child = os.fork()
        if child == 0:
            same = _cpu.is_forked_child() and np.array_equal(call(), expected)
            _cpu.fma_peak(4, 1, "scalar")
            os._exit(0 if same and len(os.listdir("/proc/self/task")) == 1 else 1)
        _, status = os.waitpid(child, 0)
        assert np.array_equal(call(), expected)
        print(os.waitstatus_to_exitcode(status))
    """
    assert run_python(script).strip() == "0"


def test_dataloaders_workers_compute() -> None:
    script = """
        import torch, ncakern
        torch.set_num_threads(2)
        nca = ncakern.NCA(2, 16, 32)
        torch.nn.init.normal_(nca.out_weight, std=0.1)

        class Rollouts(torch.utils.data.Dataset):
            def __len__(self):
                return 4
            def __getitem__(self, index):
                torch.set_num_threads(2)
                with torch.no_grad():
                    return nca(torch.ones(1, 30, 30, 16), 3, seed=index, backend="cpu")

        data = Rollouts()
        expected = [data[i] for i in range(4)]
        loader = torch.utils.data.DataLoader(data, num_workers=2, batch_size=None, multiprocessing_context="fork")
        print(all(map(torch.equal, loader, expected)))
    """
    assert run_python(script).strip() == "True"
