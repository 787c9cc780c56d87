"""Memory and time of MedSegDiffNCA, ours against plain autograd, and time against torch.compile of its step.

    python -m benchmarks.segmentation.denoiser saved peak    # bytes kept for backward, and resident peaks (Linux)
    python -m benchmarks.segmentation.denoiser time    # a training iteration and a sampled picture, by turns
    python -m benchmarks.segmentation.denoiser time --providers kernel eager    # without torch.compile
    python -m benchmarks.segmentation.denoiser table    # the records as DENOISER.md; with names, these alone

Each call of the first two appends a record below results/denoiser.
"""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from benchmarks.harness import peak, record
from benchmarks.harness.measure import make_call, saved_bytes, time_interleaved
from benchmarks.segmentation.denoiser_eager import Answers, CompiledDenoiser, EagerDenoiser
from ncaseg import config
from ncaseg.models import build_model
from ncaseg.models.medsegdiffnca.model import MedSegDiffNCA
from ncaseg.report.markdown import table

RECORDS = record.RESULTS / "denoiser"
PAGE = Path(__file__).with_name("DENOISER.md")
PUBLISHED = (256, 8)  # side and batch of the paper
WARM_UP_SIDE = 16


class Network(NamedTuple):
    """A recipe with changes, as the rows name it."""

    recipe: str
    overrides: tuple[str, ...] = ()


NETWORKS = {
    "plain": Network("medsegdiff-plain"),
    "multicbam": Network("medsegdiff-multicbam"),
    "small": Network("medsegdiff-small"),
    "small-cbam": Network("medsegdiff-small", ("model.attention=true", "model.attention_reduction=4")),
}
PROVIDERS = ("kernel", "eager")  # of memory
TIMED = {"kernel": MedSegDiffNCA, "eager": EagerDenoiser, "compile": CompiledDenoiser}
SAVED = (("plain", 32), ("plain", 64), ("multicbam", 32), ("multicbam", 64), ("small", 64), ("small-cbam", 64))
PEAKS = (("plain", 128, 1), ("multicbam", 128, 1), ("small", 64, 8), ("small-cbam", 64, 8))
TIMES = (("plain", 64, 1), ("multicbam", 64, 1), ("small", 64, 8), ("small-cbam", 64, 8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", metavar="saved|peak|time|table", help="then, for table, records")
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="networks to time")
    parser.add_argument("--providers", nargs="+", choices=TIMED, default=list(TIMED), help="whom to time")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each call that is timed")
    options = parser.parse_args()
    if options.what[0] == "peak-here":  # what `peak` starts for each figure
        print(peak_here(*options.what[1:3], *map(int, options.what[3:5])))
        return
    if options.what[0] == "table":
        record.write_file(PAGE, page(record.read_all(RECORDS, options.what[1:])))
        return
    makers: dict[str, Callable[[], Iterable[dict]]] = {
        "saved": saved_rows,
        "peak": peak_rows,
        "time": lambda: time_rows(options.only, options.providers, options.seconds),
    }
    if unknown := [what for what in options.what if what not in makers]:
        parser.error(f"what must be saved, peak, time or table; got {unknown[0]!r}")
    rows = [row for what in options.what for row in makers[what]()]
    print(record.write(rows, record.describe_run(), RECORDS))


def saved_rows() -> Iterable[dict]:
    """Bytes that a forward pass keeps for one picture, and the cells and steps that they are shared by."""
    for name, side in SAVED:
        for provider in PROVIDERS:
            model = build(name, provider)
            count = saved_bytes(Answers(model), picture(side, 1))
            yield row(name, provider, side, 1, "saved", "bytes", count) | {"cell_steps": cell_steps(model, side)}


def peak_rows() -> Iterable[dict]:
    """Resident peak of a training iteration, from a fresh process each."""
    for name, side, batch in PEAKS:
        for provider in PROVIDERS:
            found = peak.run_alone(__spec__.name, "peak-here", name, provider, side, batch)
            yield row(name, provider, side, batch, "peak", "bytes", int(found))


def peak_here(name: str, provider: str, side: int, batch: int) -> int:
    """The most resident memory of one training iteration beyond parameters and picture; nothing may have run before."""
    module = Answers(build(name, provider))
    small, full = picture(WARM_UP_SIDE, 1), picture(side, batch)
    return peak.resident_peak(make_call(module, small, "training"), make_call(module, full, "training"))


def time_rows(names: Iterable[str], providers: Iterable[str], seconds: float) -> Iterable[dict]:
    """Median milliseconds of a training iteration, and of one picture sampled in ten DDIM steps.

    Whoever cannot compile is left out, with the reason in the row.
    """
    for name, side, batch in TIMES:
        if name not in names:
            continue
        models = {provider: build(name, provider) for provider in providers}
        calls: dict[tuple[str, int], dict[str, Callable[[], None]]] = {
            ("training", batch): {
                p: make_call(Answers(m), picture(side, batch), "training") for p, m in models.items()
            },
            ("sampling", 1): {p: sampling_call(m, picture(side, 1)) for p, m in models.items()},
        }
        for (mode, size), ours in calls.items():
            if "compile" in ours and (reason := why_not(ours["compile"])):
                del ours["compile"]
                yield row(name, "compile", side, size, mode, "ms", None) | {"reason": reason}
            for provider, timing in time_interleaved(ours, seconds=seconds, min_rounds=3, max_rounds=20).items():
                spread = {"value_p20": timing.p20_ms, "value_p80": timing.p80_ms, "rounds": timing.num_rounds}
                yield row(name, provider, side, size, mode, "ms", timing.p50_ms) | spread


def why_not(compiled: Callable[[], None]) -> str | None:
    """Compile, by calling for the first time; the first line of what was said if that fails."""
    try:
        compiled()
    except RuntimeError as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
    return None


def sampling_call(model: MedSegDiffNCA, image: torch.Tensor) -> Callable[[], None]:
    # It reads pictures and volumes, which needs libraries that training alone does without.
    from ncaseg.sampling.medsegdiff import sample_masks

    how = config.load_recipe("medsegdiff-small").diffusion
    return lambda: void(sample_masks(model, image, how, seed=0))


def void(_: object) -> None:
    """Drop a result."""


def build(name: str, provider: str) -> MedSegDiffNCA:
    """A network with random weights, the same for all providers; the last layers too, which would be zero."""
    network = NETWORKS[name]
    cfg = config.load_recipe(network.recipe, network.overrides)
    torch.manual_seed(0)
    ours = build_model(cfg.model)
    assert isinstance(ours, MedSegDiffNCA)
    for level in ours.levels:
        nn.init.normal_(level.out_weight, std=0.01)
    if provider == "kernel":
        return ours
    other = TIMED[provider](ours.cfg)
    other.load_state_dict(ours.state_dict())
    return other


def picture(side: int, batch: int) -> torch.Tensor:
    return torch.rand(batch, 3, side, side, 1, generator=torch.Generator().manual_seed(0))


def cell_steps(model: MedSegDiffNCA, side: int) -> int:
    """Cells times steps of one pass over one picture, over all levels."""
    total, cells = 0, side * side
    for level in reversed(range(len(model.steps))):
        total += cells * model.steps[level]
        if level > 0:
            x, y, _ = model.scales[level - 1]
            cells //= x * y
    return total


def row(name: str, provider: str, side: int, batch: int, metric: str, unit: str, value: float | None) -> dict:
    return {
        "network": name,
        "provider": provider,
        "side": side,
        "batch": batch,
        "metric": metric,
        "unit": unit,
        "value": value,
    }


def page(rows: list[dict]) -> str:
    """The records as a Markdown page."""
    found = newest(rows)
    parts = [
        "# MedSegDiffNCA: memory and time\n\nWritten by "
        "`python -m benchmarks.segmentation.denoiser table` from the records in "
        f"`results/denoiser`. {record.describe_origin(found.values())}\n\n"
        'eager is plain autograd (`denoiser_eager.py`). "small" is `medsegdiff-small`, "small-cbam" the same with '
        'attention; "plain" and "multicbam" are the published networks.',
        "## Kept for the backward pass\n\nCounted with hooks on saved tensors, one picture. The last columns multiply "
        "the bytes per cell and step at the larger side by cells, steps and batch of the paper's training: 256x256, "
        "batch 8. They are computed, not measured.",
        saved_table(found),
        "## Resident peak of a training iteration\n\nHigh-water mark of a process of its own, beyond parameters and "
        "libraries.",
        peak_table(found),
        "## Time\n\nMedians in milliseconds: a training iteration (forward and backward), and one picture sampled in "
        "ten DDIM steps, batch 1. compile is `torch.compile` of one eager step (static shapes, default mode), which a "
        'loop in Python repeats; the time that compiling takes is left out. "-": not measured.',
        time_table(found),
    ]
    return "\n\n".join(parts) + "\n"


def newest(rows: Iterable[dict]) -> dict[tuple, dict]:
    """Rows by what they are about; where a figure was measured more than once, the last one counts."""
    return {(r["network"], r["provider"], r["side"], r["batch"], r["metric"]): r for r in rows}


def saved_table(found: dict) -> str:
    header = "network, side|kernel, B per cell-step|eager, B per cell-step|ratio|kernel, 256x256 x 8|eager, 256x256 x 8"
    largest = {name: max(side for n, side in SAVED if n == name) for name, _ in SAVED}
    lines = []
    for name, side in SAVED:
        pair = [found.get((name, p, side, 1, "saved")) for p in PROVIDERS]
        if None in pair:
            continue
        each = [r["value"] / r["cell_steps"] for r in pair]
        cells = [f"{name}, {side}", *(f"{value:,.0f}" for value in each), f"{each[1] / each[0]:.1f}"]
        steps = cell_steps(build(name, "kernel"), PUBLISHED[0]) * PUBLISHED[1]
        is_published = side == largest[name] and not name.startswith("small")
        cells += [f"{value * steps / 1e9:.2f} GB" for value in each] if is_published else ["", ""]
        lines.append(cells)
    return table(header.split("|"), lines)


def peak_table(found: dict) -> str:
    lines = []
    for name, side, batch in PEAKS:
        pair = [found.get((name, p, side, batch, "peak")) for p in PROVIDERS]
        if None not in pair:
            ours, eager = (r["value"] for r in pair)
            shown = [f"{value / 1e6:,.0f} MB" for value in (ours, eager)]
            lines.append([f"{name}, {side}x{side}, batch {batch}", *shown, f"{eager / ours:.1f}"])
    return table(["network", "kernel", "eager", "ratio"], lines)


def time_table(found: dict) -> str:
    """A figure that there is no row of, or only a reason, is "-"; reasons stand below the table."""
    lines, reasons = [], []
    for name, side, batch in TIMES:
        for mode, size in (("training", batch), ("sampling", 1)):
            rows = [found.get((name, provider, side, size, mode), {}) for provider in TIMED]
            values = [r.get("value") for r in rows]
            if not any(values):
                continue
            case = f"{name}, {side}x{side}, batch {size}, {mode}"
            ours, *others = values
            ratios = [f"{other / ours:.2f}" if ours and other else "-" for other in others]
            lines.append([case, *("-" if value is None else f"{value:,.0f}" for value in values), *ratios])
            reasons += [f"Not compiled: {case}: {r['reason']}." for r in rows if "reason" in r]
    header = ["case", "kernel", "eager", "compile", "eager / kernel", "compile / kernel"]
    return "\n\n".join([table(header, lines), *reasons])


if __name__ == "__main__":
    main()
