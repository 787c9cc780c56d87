"""A call on an accelerator hands over what it has, whatever becomes of its items; tried with small programs."""

import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from benchmarks.gpu import check, items
from benchmarks.gpu.check import FAILED, LATE, PASSED, SKIPPED, UNFINISHED, Item, call, pack
from benchmarks.harness.source import ROOT

pytest.importorskip("triton", reason="the stand-in stands where Triton launches")


def program(name, code, *, seconds=30.0, **options):
    return Item(name, seconds, (sys.executable, "-c", code), **options)


def outcomes(out, number="1"):
    """Name -> (outcome, last words) of the page's table."""
    rows = [
        line.split(" | ") for line in (out / f"check-{number}.md").read_text().splitlines() if line.startswith("| ")
    ]
    return {row[0].removeprefix("| "): (row[1], row[3].removesuffix(" |")) for row in rows[2:]}


@pytest.fixture
def quick(monkeypatch):
    """No time is kept for the end, and none given to items that do not end when asked."""
    monkeypatch.setattr(check, "PACKING_SECONDS", 0.0)
    monkeypatch.setattr(check, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(check, "LEAST_SECONDS", 0.1)


def test_a_call_goes_on_after_a_failure_and_says_what_failed(quick, tmp_path):
    chosen = [
        program("good", "print('fine'); open('{scratch}/good.md', 'w').write('a table')"),
        program("bad", "import sys; print('a | b'); sys.exit(7)"),
        program("late", f"import sys; print('more to do'); sys.exit({UNFINISHED})"),
        Item("absent", 1.0, ("no-such-program",), why_not="no-such-program is not on this machine"),
        program("env", "import os; print(os.environ['WHERE'])", env={"WHERE": "{scratch}/x"}),
    ]
    assert call("1", chosen, tmp_path, seconds=60) == 1
    found = outcomes(tmp_path)
    assert found["good"] == (PASSED, "fine") and found["bad"] == (FAILED, "code 7: a / b")
    assert found["late"] == (LATE, "more to do") and found["absent"][0] == SKIPPED
    assert found["env"][1].endswith("/x") and not Path(found["env"][1]).parent.exists()
    assert "2 passed, 1 failed, 1 time ran out, 1 skipped." in (tmp_path / "check-1.md").read_text()
    assert "## good\n\na table" in (tmp_path / "check-1.md").read_text()
    with tarfile.open(tmp_path / "check-1.tar.gz") as tar:
        assert {"good.log", "good.md", "bad.log", "env.log"} <= set(tar.getnames())


def test_an_item_that_cannot_be_started_is_a_failure_of_its_own(quick, tmp_path):
    assert (
        call("1", [Item("broken", 5.0, ("/no/such/program",)), program("next", "print(1)")], tmp_path, seconds=60) == 1
    )
    assert outcomes(tmp_path)["broken"][0] == FAILED and outcomes(tmp_path)["next"] == (PASSED, "1")


def test_time_bounds_an_item_with_all_that_it_started_and_the_call(quick, tmp_path):
    nested = "import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', '{}'])"
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    chosen = [program("long", nested.replace("{}", deaf), seconds=3.0), program("never", "print(1)", seconds=50.0)]
    began = time.monotonic()
    assert call("2", chosen, tmp_path, seconds=3.0) == UNFINISHED
    assert time.monotonic() - began < 20
    assert outcomes(tmp_path, "2") == {"long": (LATE, "begun"), "never": (LATE, "not begun")}


def test_a_call_that_is_told_to_end_hands_over_what_it_has(tmp_path):
    code = (
        "import sys; from pathlib import Path; from benchmarks.gpu import check, items\n"
        "def wait(*, is_dry): return [check.Item('first', 60, (sys.executable, '-c', 'print(1)')),"
        " check.Item('second', 60, (sys.executable, '-c', 'import time; print(2, flush=True); time.sleep(60)')),"
        " check.Item('third', 60, (sys.executable, '-c', 'print(3)'))]\n"
        "items.CALLS['1'] = wait; check.main()"
    )
    env = os.environ | {"OUT": str(tmp_path), "PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT)])}
    child = subprocess.Popen([sys.executable, "-c", code, "1"], env=env, stdout=subprocess.PIPE, cwd=ROOT, text=True)
    assert child.stdout.readline().startswith(PASSED)
    time.sleep(1)
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=60)
    assert child.returncode == UNFINISHED
    told = (LATE, "the call was told to end: SIGTERM")
    assert outcomes(tmp_path) == {"first": (PASSED, "1"), "second": told, "third": told}
    with tarfile.open(tmp_path / "check-1.tar.gz") as tar:
        assert "second.log" in tar.getnames()


def test_an_archive_takes_what_fits_and_no_caches(tmp_path):
    for name, size in {"a.log": 10, "b/rows.jsonl": 500, "large.bin": 2000, "caches/triton/x": 1}.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(os.urandom(size))
    assert pack(tmp_path / "in", tmp_path / "out.tar.gz", most=1000) == ["large.bin"]
    with tarfile.open(tmp_path / "out.tar.gz") as tar:
        assert sorted(tar.getnames()) == ["a.log", "b/rows.jsonl"]


@pytest.mark.parametrize("number", items.CALLS)
def test_items_have_names_of_their_own_and_know_their_modules(number):
    chosen = items.CALLS[number](is_dry=True)
    assert len({item.name for item in chosen}) == len(chosen)
    for item in chosen:
        modules = [part for part in item.command if part.startswith("benchmarks.")]
        assert all((ROOT / f"{name.replace('.', '/')}.py").exists() for name in modules)
    assert sum(item.seconds for item in items.CALLS[number](is_dry=False)) <= 470 - check.PACKING_SECONDS


def test_an_item_gets_what_earlier_ones_left_and_leaves_later_ones_their_own(quick, tmp_path):
    said = "print({seconds})"
    chosen = [
        program("first", said, seconds=10.0),
        program("second", said, seconds=30.0),
        program("third", said, seconds=20.0),
        Item("absent", 90.0, ("x",), why_not="not here"),
    ]
    assert call("1", chosen, tmp_path, seconds=100.0) == 0
    found = [int(outcomes(tmp_path)[name][1]) for name in ("first", "second", "third")]
    assert 45 <= found[0] < 50 and 70 <= found[1] < 80 and 80 <= found[2] < 100


@pytest.mark.slow
def test_a_dry_call_runs_to_its_end(tmp_path):
    script = ROOT / "benchmarks" / "gpu" / "check.sh"
    env = os.environ | {"PYTHON": sys.executable, "OUT": str(tmp_path)}
    done = subprocess.run(["bash", str(script), "3", "--dry"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert outcomes(tmp_path, "3")["probe-volume"][0] == PASSED
    assert "| volume | kernel |" in (tmp_path / "check-3.md").read_text()
