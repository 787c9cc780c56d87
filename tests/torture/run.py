"""Kills, full disks and long soaks: nothing may be lost, and nothing may grow; `make torture`.

python tests/torture/run.py [kills-training] [kills-prediction] [full-disk] [soak] [--short]

Every part prints one line of figures, and raises an AssertionError where the promise does not hold. The part about full
disks mounts a small memory disk, which needs root; without it the part is skipped and says so.
"""

import contextlib
import gc
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

import ncakern
from ncaseg import config, files
from ncaseg.checkpoint.reader import read_weights
from ncaseg.data.phantom import write_phantoms
from ncaseg.inference.files import predict_path
from ncaseg.training.logs import read_rows
from ncaseg.training.loop import train

TINY = ["model.channels=6", "model.hidden=16", "model.steps=[6]", "train.validate_every=7", "predict.samples=2"]
RUN = [*TINY, "train.steps=60", "train.checkpoint_every=3", "data.validation_fraction=0.25", "train.ema_decay=0.9"]
PAGE = os.sysconf("SC_PAGE_SIZE")


def in_child(work: Callable[[], object], *, killed_after: float | None = None) -> int | None:
    """Run `work` in a forked process; None if it was killed after so many seconds, else its exit code."""
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
            code = 1
            try:
                work()
                code = 0
            finally:
                os._exit(code)
    if killed_after is not None:
        time.sleep(killed_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return None if code == -signal.SIGKILL else code


def until_done(work: Callable[[], object], kills: int, seconds: float, seed: int) -> int:
    """Kill `work` so often at random moments, then let it finish; return how often it was killed before its end."""
    moments, done = np.random.default_rng(seed).uniform(0.0, seconds, kills), 0
    for moment in moments:
        code = in_child(work, killed_after=moment)
        assert code in (None, 0), f"exit code {code} after {done} kills"
        done += code is None
    assert in_child(work) == 0
    return done


def duration(work: Callable[[], object]) -> float:
    began = time.monotonic()
    assert in_child(work) == 0
    return time.monotonic() - began


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if "tmp" in path.name)


def kills_training(folder: Path, count: int) -> str:
    """Killed and resumed runs end with the bits of one that nothing disturbed."""
    data, cfg, total = write_phantoms(folder / "data", 6, seed=0, size=(16, 16, 12)), config.load_recipe("demo", RUN), 0
    seconds = duration(lambda: train(cfg, data, folder / "whole"))
    expected = read_weights(folder / "whole" / "model.safetensors").arrays
    runs = 0
    while total < count:
        out = folder / f"run{runs}"
        total += until_done(lambda out=out: train(cfg, data, out), 10, 0.5 * seconds, runs)
        found = read_weights(out / "model.safetensors").arrays
        assert all(np.array_equal(found[name], array) for name, array in expected.items()), f"other weights in {out}"
        assert [row["step"] for row in read_rows(out / "log.jsonl")] == list(range(1, 61))
        assert not leftovers(out), leftovers(out)
        runs += 1
    return f"{total} kills in {runs} runs of {seconds:.1f} s: weights equal bit for bit, every step in the log once"


def kills_prediction(folder: Path, count: int) -> str:
    """A folder is predicted whole, every file once and equal, however often the command was killed."""
    data = write_phantoms(folder / "data", 12, seed=1, size=(32, 32, 24))
    model = train(config.load_recipe("demo", [*RUN, "train.steps=3"]), data, folder / "model")
    images = data / "imagesTr"
    seconds = duration(lambda: predict_path(model, images, folder / "whole", png=True))
    expected = {path.name: path.read_bytes() for path in (folder / "whole").iterdir()}
    total = runs = 0
    while total < count:
        out = folder / f"out{runs}"
        total += until_done(lambda out=out: predict_path(model, images, out, png=True), 5, seconds, 100 + runs)
        files.remove_stale(out, young_s=0.0)  # as the command does with what is a minute old
        found = {path.name: path.read_bytes() for path in out.iterdir()}
        other = [name for name in found | expected if found.get(name) != expected.get(name)]
        assert not other, f"other files in {out}: {other}"
        runs += 1
    return f"{total} kills in {runs} predictions of 12 cases: {len(expected)} files each, equal byte for byte"


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A memory disk of this size at `folder`."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "ncakern", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def full_disk(folder: Path, count: int) -> str:
    """Where the disk is full a command ends with 4, names the file, and leaves what was there before as it was."""
    if os.geteuid() != 0:
        return "skipped: mounting a small disk needs root"
    data = write_phantoms(folder / "data", 4, seed=2, size=(24, 24, 16))
    model = train(config.load_recipe("demo", [*RUN, "train.steps=3"]), data, folder / "model")
    scan = next((data / "imagesTr").iterdir())
    commands = {
        "train": ["train", "demo", *RUN, "--data", str(data), "--out", "DISK/run"],
        "predict": ["predict", str(model), str(scan), "-o", "DISK/seg.nii.gz", "--png"],
        "predict-folder": ["predict", str(model), str(data / "imagesTr"), "-o", "DISK/segs", "--png"],
        "evaluate": ["evaluate", str(model), "--data", str(data), "--json", "DISK/a.json", "--csv", "DISK/a.csv"],
        "qc": ["qc", str(model), str(data / "imagesTr"), "-o", "DISK/qc.csv", "--maps", "DISK/maps", "--png"],
        "reproduce": ["reproduce", "m3d", "-o", "DISK/tables"],
    }
    ended = dict.fromkeys(commands, 0)
    for name, command in commands.items():
        for step in range(count):
            with small_disk(folder / f"disk-{name}-{step}", 1024) as disk:
                kept = disk / "kept"
                kept.write_bytes(b"kept")
                with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
                    filler.write(bytes(1024 * 1024))
                room = step * PAGE
                os.truncate(disk / "filler", (disk / "filler").stat().st_size - room)
                argv = [part.replace("DISK", str(disk)) for part in command]
                done = subprocess.run([sys.executable, "-m", "ncaseg", *argv], capture_output=True, text=True)
                where = f"{name} with {room} bytes free"
                assert done.returncode in (0, 4), f"{where}: exit code {done.returncode}: {done.stderr}"
                assert "Traceback" not in done.stderr, f"{where}: {done.stderr}"
                assert done.returncode == 0 or str(disk) in done.stderr, f"{where} names no file: {done.stderr}"
                assert kept.read_bytes() == b"kept" and not leftovers(disk), f"{where} left {leftovers(disk)}"
                ended[name] += done.returncode == 4
    assert all(ended.values()), f"the disk was never full for {ended}"
    return "ended with exit code 4 and left nothing behind: " + ", ".join(f"{n} {c}x" for n, c in ended.items())


def resident_kilobytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE // 1024


def soak(folder: Path, count: int) -> str:
    """Memory does not grow with the number of calls."""
    del folder
    nca = ncakern.NCA(3, 8, 16, norm="batch")
    torch.nn.init.normal_(nca.out_weight, std=0.1)
    state = torch.rand(1, 9, 8, 7, 8)

    def forward(times: int) -> None:
        with torch.no_grad():
            for seed in range(times):
                nca(state, 2, seed=seed)

    def backward(times: int) -> None:
        for seed in range(times):
            nca(state, 4, seed=seed, keep_every=2).sum().backward()
            nca.zero_grad(set_to_none=True)

    grown = []
    for work, times in ((forward, count), (backward, count // 10)):
        work(times // 5)  # what libraries keep for good
        before = resident_kilobytes()
        work(times)
        grown.append(resident_kilobytes() - before)
    assert max(grown) < 1024, f"resident memory grew by {grown} kB"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return f"{count} rollouts grew by {grown[0]} kB, {count // 10} backward passes by {grown[1]} kB; peak {peak} MB"


PARTS: dict[str, tuple[Callable[[Path, int], str], int, int]] = {  # what runs, how often, and how often in short
    "kills-training": (kills_training, 50, 5),
    "kills-prediction": (kills_prediction, 25, 3),
    "full-disk": (full_disk, 12, 3),
    "soak": (soak, 10_000, 500),
}


def main(arguments: list[str]) -> int:
    is_short = "--short" in arguments
    wanted = [name for name in arguments if name != "--short"] or list(PARTS)
    if unknown := set(wanted) - PARTS.keys():
        print(f"parts are {', '.join(PARTS)}; got {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)  # OpenMP's threads would not survive a fork
    failed = False
    for name in wanted:
        work, often, short = PARTS[name]
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            try:
                said = work(Path(folder), short if is_short else often)
            except AssertionError as error:
                said, failed = f"FAILED: {error}", True
        print(f"| {name} | {time.monotonic() - began:.0f} s | {said} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
