"""Runs the items of a call one after the other, each for a bounded time, and hands over what came of them.

    benchmarks/gpu/check.sh 1|2|3 [--out FOLDER] [--seconds 470] [--dry]

1: correctness. 2: speed. 3: training at full size (`items.py` lists what they do). A call needs nothing of an earlier
one, works in a folder of its own that it deletes, and does not stop at a failure: it says at the end what failed.
FOLDER (default: $OUT, else gpu-check) gets check-N.md, a table of the items with what they say of themselves, and
check-N.tar.gz, logs and rows; also when the call is told to end. --dry tries all that without a card.

Exit code: 0 all well, 1 an item failed, 3 none failed but time ran out.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from benchmarks.harness.source import ROOT, commit_here

PACKING_SECONDS = 15  # what is kept of a call's time for its end
GRACE_SECONDS = 5  # between asking an item to end and ending it
LEAST_SECONDS = 5  # an item is not begun with less
ARCHIVE_BYTES = 15 * 2**20
CACHES = "caches"  # of compilers, in the call's folder; they are not handed over
UNFINISHED = 3  # exit code of items that end by themselves when their time is up
PASSED, FAILED, LATE, SKIPPED = "passed", "failed", "time ran out", "skipped"


@dataclass(frozen=True)
class Item:
    """A command, the seconds that it has for sure, and why it cannot run here, if it cannot.

    `{scratch}` in the command is the call's folder; `{seconds}` what it may take. Whatever it writes to
    `{scratch}/NAME.md` is handed over in the table's page.
    """

    name: str
    seconds: float
    command: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    why_not: str | None = None


@dataclass(frozen=True)
class Outcome:
    name: str
    state: str
    seconds: float
    says: str


class Told(BaseException):
    """The call was told to end."""


def run(items: Sequence[Item], scratch: Path, *, deadline: float) -> Iterator[Outcome]:
    """Run the items until the deadline (of `time.monotonic`), and say of each what came of it.

    What earlier items did not need an item may use, but not what later ones may take.
    """
    for index, item in enumerate(items):
        later = sum(other.seconds for other in items[index + 1 :] if other.why_not is None)
        left = deadline - time.monotonic()
        left = min(left, max(item.seconds, left - later))
        if item.why_not is not None:
            yield Outcome(item.name, SKIPPED, 0.0, item.why_not)
        elif left < LEAST_SECONDS:
            yield Outcome(item.name, LATE, 0.0, "not begun")
        else:
            yield run_item(item, scratch, left)


def run_item(item: Item, scratch: Path, seconds: float) -> Outcome:
    """Run one item, with all processes that it starts, for so many seconds at most."""

    def fill(text: str) -> str:
        return text.replace("{scratch}", str(scratch)).replace("{seconds}", str(int(seconds - GRACE_SECONDS)))

    log, began = scratch / f"{item.name}.log", time.monotonic()
    command, env = [*map(fill, item.command)], {name: fill(value) for name, value in item.env.items()}
    with log.open("wb") as file:
        try:
            child = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | env, stdout=file, stderr=file, start_new_session=True
            )
        except OSError as error:
            return Outcome(item.name, FAILED, 0.0, f"cannot be started: {error}")
        try:
            code = child.wait(seconds)
        except subprocess.TimeoutExpired:
            code = UNFINISHED
        finally:
            says = last_words(log)  # before it says that it was interrupted
            end(child)
    state = {0: PASSED, UNFINISHED: LATE}.get(code, FAILED)
    return Outcome(item.name, state, time.monotonic() - began, says if state != FAILED else f"code {code}: {says}")


def last_words(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""


def end(child: subprocess.Popen) -> None:
    """End a process and those it started: asked first, so that it can write what it has."""
    for sign in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_SECONDS)


def page(title: str, outcomes: Sequence[Outcome], scratch: Path) -> str:
    """The outcomes as a table, then what items wrote for people."""
    lines = [f"# {title}", "", "| item | outcome | seconds | last words |", "| --- | --- | --- | --- |"]
    for outcome in outcomes:
        says = outcome.says[:160].replace("|", "/")
        lines.append(f"| {outcome.name} | {outcome.state} | {outcome.seconds:.0f} | {says} |")
    counts = [f"{sum(o.state == state for o in outcomes)} {state}" for state in (PASSED, FAILED, LATE, SKIPPED)]
    lines += ["", ", ".join(counts) + "."]
    for outcome in outcomes:
        said = scratch / f"{outcome.name}.md"
        if said.exists():
            lines += ["", f"## {outcome.name}", "", said.read_text().strip()]
    return "\n".join(lines) + "\n"


def pack(scratch: Path, archive: Path, *, most: int = ARCHIVE_BYTES) -> list[str]:
    """Put the files of a folder into one archive, small ones first, as many as fit; return the names of the others."""
    caches = scratch / CACHES
    files = [path for path in scratch.rglob("*") if path.is_file() and caches not in path.parents]
    files.sort(key=lambda path: path.stat().st_size)
    left_out, total = [], 0
    with tarfile.open(archive, "w:gz") as tar:
        for path in files:
            name = path.relative_to(scratch).as_posix()
            total += path.stat().st_size  # a compressed file is hardly ever larger
            if total > most:
                left_out.append(name)
            else:
                tar.add(path, arcname=name)
    return left_out


def call(number: str, items: Sequence[Item], out: Path, *, seconds: float) -> int:
    """Run the items of a call, write its two files whatever happens, and return the exit code."""
    deadline = time.monotonic() + seconds - PACKING_SECONDS
    out.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="ncakern-check-"))
    commit, is_dirty = commit_here()
    title = f"Check {number} of {commit}{' with changes' if is_dirty else ''}"
    outcomes: list[Outcome] = []
    report = out / f"check-{number}.md"
    try:
        for outcome in run(items, scratch, deadline=deadline):
            outcomes.append(outcome)
            print(f"{outcome.state:12} {outcome.name} ({outcome.seconds:.0f} s): {outcome.says}", flush=True)
            report.write_text(page(title, outcomes, scratch))
    except Told as told:
        begun = {outcome.name for outcome in outcomes}
        outcomes += [Outcome(item.name, LATE, 0.0, str(told)) for item in items if item.name not in begun]
    finally:
        left_out = pack(scratch, out / f"check-{number}.tar.gz")
        note = f"\nToo large for the archive: {', '.join(left_out)}.\n" if left_out else ""
        report.write_text(page(title, outcomes, scratch) + note)
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"\n{report.read_text()}")
    states = {outcome.state for outcome in outcomes}
    return 1 if FAILED in states else UNFINISHED if LATE in states else 0


def main() -> None:
    from benchmarks.gpu.items import CALLS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("call", choices=CALLS)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "gpu-check"), metavar="FOLDER")
    parser.add_argument("--seconds", type=float, default=470, help="of the whole call (default: 470)")
    parser.add_argument("--dry", action="store_true", help="without a card: a stand-in takes its place")
    options = parser.parse_args()

    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def tell(number: int, _: FrameType | None) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)  # once is enough: the end must not be cut short
        raise Told(f"the call was told to end: {signal.Signals(number).name}")

    for number in signals:
        signal.signal(number, tell)
    sys.exit(call(options.call, CALLS[options.call](is_dry=options.dry), options.out, seconds=options.seconds))


if __name__ == "__main__":
    main()
