"""Time and memory of one cDAL sample of a volume: whole, or in sliding windows as the published code samples.

    python -m benchmarks.segmentation.cdal_volume time peak    # seconds by turns, then resident peaks (Linux)
    python -m benchmarks.segmentation.cdal_volume table    # the records as CDAL.md; with names, these alone

Each call of the first two appends a record below results/cdal_volume. The weights are random: cost does not depend on
what a network has learned. A generator of two axes takes every slice as a sample of its own, whole or in its window.
"""

import argparse
from collections.abc import Callable, Iterable
from functools import partial
from math import prod
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.harness import peak, record
from benchmarks.harness.measure import time_interleaved
from ncaseg import config
from ncaseg.data.dataset import Volume
from ncaseg.levels import Triple
from ncaseg.models import build_model
from ncaseg.models.base import Segmenter
from ncaseg.models.cdal.nca import NCAGenerator
from ncaseg.report.markdown import table
from ncaseg.sampling.cdal import CELLS_AT_ONCE, generator_of, sample_volume
from ncaseg.sampling.windows import windows

RECORDS = record.RESULTS / "cdal_volume"
PAGE = Path(__file__).with_name("CDAL.md")
NETWORKS = {
    "automata 3D": "cdal-nca-hippocampus-3d",
    "automata 2D": "cdal-nca-hippocampus",
    "NCSN++ small": "cdal-hippocampus-small",
    "NCSN++": "cdal-hippocampus",
}
WINDOW = "cdal.window=[32,32,32]"
WAYS = {
    "whole": ("cdal.window=[]",),
    "windows, 1/2": (WINDOW, "cdal.overlap=0.5"),
    "windows, 3/4": (WINDOW, "cdal.overlap=0.75"),
}
HIPPOCAMPUS, LARGE = (40, 56, 40), (128, 128, 64)
WARM_UP = (16, 16, 16)


class Case(NamedTuple):
    """One line of the table; network and way are keys of NETWORKS and WAYS, size is in cells."""

    network: str
    way: str
    size: Triple


CASES = [
    *(Case(network, way, HIPPOCAMPUS) for network in NETWORKS for way in ("whole", "windows, 1/2")),
    Case("NCSN++", "windows, 3/4", HIPPOCAMPUS),
    *(Case(f"automata {axes}D", way, LARGE) for axes in (3, 2) for way in ("whole", "windows, 1/2")),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", metavar="time|peak|table", help="then, for table, records")
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="networks to measure")
    parser.add_argument("--size", nargs=3, type=int, metavar=("X", "Y", "Z"), help="measure these cells alone")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each call that is timed, in at least 3 rounds")
    options = parser.parse_args()
    if options.what[0] == "peak-here":  # what `peak` starts for each figure
        print(peak_here(Case(*options.what[1:], tuple(options.size))))
        return
    if options.what[0] == "table":
        rows = record.read_all(RECORDS, options.what[1:])
        if not rows:
            parser.error(f"table needs a record; there is none below {RECORDS}: run time and peak first")
        record.write_file(PAGE, page(rows))
        return
    makers: dict[str, Callable[[list[Case]], Iterable[dict]]] = {
        "time": partial(time_rows, seconds=options.seconds),
        "peak": peak_rows,
    }
    if unknown := [what for what in options.what if what not in makers]:
        parser.error(f"what must be time, peak or table; got {unknown[0]!r}")
    cases = choose(options.only, options.size)
    rows = [row for what in options.what for row in makers[what](cases)]
    print(record.write(rows, record.describe_run(), RECORDS))


def choose(networks: list[str], size: list[int] | None) -> list[Case]:
    """The cases of some networks; with a size, each network and way once, on so many cells."""
    chosen = [case for case in CASES if case.network in networks]
    if size is None:
        return chosen
    x, y, z = size
    return list(dict.fromkeys(case._replace(size=(x, y, z)) for case in chosen))


def time_rows(cases: list[Case], *, seconds: float) -> Iterable[dict]:
    """Median seconds of a sample; cases of one size take turns."""
    for size in dict.fromkeys(case.size for case in cases):
        calls = {case: sampling_call(case) for case in cases if case.size == size}
        timings = time_interleaved(calls, seconds=seconds, min_rounds=3, max_rounds=20)
        for case, timing in timings.items():
            spread = {"value_p20": timing.p20_ms / 1e3, "value_p80": timing.p80_ms / 1e3, "rounds": timing.num_rounds}
            yield row(case, "time", "s", timing.p50_ms / 1e3) | spread


def peak_rows(cases: list[Case]) -> Iterable[dict]:
    """Resident peak of a sample, from a fresh process each."""
    for case in cases:
        found = peak.run_alone(__spec__.name, "peak-here", case.network, case.way, "--size", *case.size)
        yield row(case, "peak", "bytes", int(found))


def peak_here(case: Case) -> int:
    """The most resident memory of one sample beyond weights and volume; nothing may have run before."""
    return peak.resident_peak(sampling_call(case._replace(size=WARM_UP)), sampling_call(case))


def sampling_call(case: Case) -> Callable[[], Tensor]:
    """One sample of the synthetic volume: probabilities ``[1, classes + 1, X, Y, Z]``."""
    model, cfg = build(case)
    return partial(sample_volume, model, synthetic(case.size), cfg, 1, 0)


def build(case: Case) -> tuple[Segmenter, config.Config]:
    """A network with random weights, the same for all ways and sizes; those of automata's last layers too."""
    cfg = config.load_recipe(NETWORKS[case.network], WAYS[case.way])
    torch.manual_seed(0)
    model = build_model(cfg.model, cfg.cdal).eval()
    generator = generator_of(model)
    if isinstance(generator, NCAGenerator):
        for level in generator.levels:
            nn.init.normal_(level.out_weight, std=0.01)
    return model, cfg


def synthetic(size: Triple) -> Volume:
    """A volume of uniform noise without a label, 1 mm cells."""
    image = np.random.default_rng(0).random((1, *size), dtype=np.float32)
    return Volume("synthetic", image, None, size, np.eye(4), nib.Nifti1Header(), (1.0, 1.0, 1.0))


def row(case: Case, metric: str, unit: str, value: float) -> dict:
    """A figure with what explains it: parameters, windows, cells of all windows over those of the volume."""
    model, cfg = build(case)
    parts = windows(case.size, cfg.cdal.window or (0, 0, 0), cfg.cdal.overlap)
    sampled = sum(prod(axis.stop - axis.start for axis in part) for part in parts)
    return {
        "network": case.network,
        "recipe": NETWORKS[case.network],
        "way": case.way,
        "size": list(case.size),
        "timesteps": cfg.cdal.timesteps,
        "parameters": sum(p.numel() for p in generator_of(model).parameters()),
        "windows": len(parts),
        "redundancy": sampled / prod(case.size),
        "metric": metric,
        "unit": unit,
        "value": value,
    }


def page(rows: list[dict]) -> str:
    """The records as a Markdown page; where a figure was measured more than once, the last one counts."""
    found = {(Case(r["network"], r["way"], tuple(r["size"])), r["metric"]): r for r in rows}
    steps = sorted({r["timesteps"] for r in found.values()})
    recipes = "; ".join(f"{network}: `{recipe}`" for network, recipe in NETWORKS.items())
    parts = [
        "# cDAL on a volume: whole against windows\n\nWritten by "
        "`python -m benchmarks.segmentation.cdal_volume table` from the "
        f"records in `results/cdal_volume`. {record.describe_origin(found.values())}\n\n"
        f"The cost of one sample (one member, T = {', '.join(map(str, steps))}) of one synthetic volume. The weights "
        "are random: this page says what sampling costs and nothing about how well it segments.\n\n"
        f"{recipes}. Networks of two axes sample every slice by itself. Windows have 32x32x32 cells, are sampled one "
        'after the other and averaged; "1/2" and "3/4" are the share that neighbours have in common, and 3/4 is what '
        "the recipe of the published network asks for. The last window of an axis is pushed back to its end.\n\n"
        f"At most {CELLS_AT_ONCE:,} cells of slices run at once. Seconds are medians. The peak is the high-water "
        "mark of a process of its own, beyond weights, volume and libraries. Against whole: over the same network's "
        "whole volume.",
    ]
    for size in sorted({case.size for case, _ in found}, key=prod):
        parts += [f"## {'x'.join(map(str, size))} cells", size_table(found, size)]
    return "\n\n".join(parts) + "\n"


def size_table(found: dict, size: Triple) -> str:
    """The lines of one size; a figure that there is no row of is "-"."""
    lines = []
    for case in (Case(network, way, size) for network in NETWORKS for way in WAYS):
        rows = {metric: found.get((case, metric)) for metric in ("time", "peak")}
        known = next((r for r in rows.values() if r is not None), None)
        if known is None:
            continue
        cells = [
            case.network,
            case.way,
            f"{known['parameters']:,}",
            str(known["windows"]),
            f"{known['redundancy']:.2f}",
        ]
        for metric, scale, digits in (("time", 1.0, 2), ("peak", 1e-6, 0)):
            own, whole = rows[metric], found.get((case._replace(way="whole"), metric))
            cells.append("-" if own is None else f"{own['value'] * scale:,.{digits}f}")
            cells.append("-" if own is None or whole is None else f"{own['value'] / whole['value']:.2f}")
        lines.append(cells)
    head = "network|way|parameters|windows|cells sampled / cells|s per sample|against whole|peak, MB|against whole"
    return table(head.split("|"), lines)


if __name__ == "__main__":
    main()
