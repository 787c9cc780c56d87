"""Peak memory of a prediction and of a training step of whole volumes, without patches: ours against eager.

    python -m benchmarks.segmentation.peak_memory                                   # the table
    python -m benchmarks.segmentation.peak_memory --only prostate-2level training kernel

Each figure is the VmHWM of a process of its own: Python, torch and libraries included. "eager" puts the layers of
`benchmarks.rollout.providers.Eager` into the same segmenter. A training step is forward, Dice and cross-entropy,
backward and Adam. A prediction runs two steps per level, since its memory does not depend on their number.
"""

import argparse
import json
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness.peak import run_alone

MODES = ("prediction", "training")
PROVIDERS = ("kernel", "eager")
LIMIT_BYTES = 20 * 10**9  # what eager may take before its need is computed instead of measured
EAGER_BYTES = 1036  # kept per cell and step with 16 channels and 64 hidden, k = 3: see benchmarks/rollout/FIGURES.md


class Problem(NamedTuple):
    """A volume and the model for it; levels coarse to fine."""

    size: tuple[int, int, int]
    kernel_sizes: tuple[int, ...]
    steps: tuple[int, ...]
    keep_every: int
    scales: tuple[tuple[int, int, int], ...] = ()

    def cell_steps(self) -> int:
        """Cells times steps, over all levels."""
        from ncaseg.levels import working_sizes

        sizes = working_sizes(self.size, self.scales, [()] * len(self.steps))
        return sum(x * y * z * steps for (x, y, z), steps in zip(sizes, self.steps, strict=True))


PROBLEMS = {
    "hippocampus": Problem((35, 50, 36), (3,), (24,), 1),
    "prostate-1level": Problem((320, 320, 24), (3,), (20,), 4),
    "prostate-2level": Problem((320, 320, 24), (7, 3), (20, 40), 6, ((4, 4, 4),)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs=3, metavar=("PROBLEM", "MODE", "PROVIDER"), help="run one, print it as JSON")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here")
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(run(*arguments.only)))
        return
    rows = [measure(name, mode, provider) for name in PROBLEMS for mode in MODES for provider in PROVIDERS]
    print(table(rows))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def measure(name: str, mode: str, provider: str) -> dict:
    """One row, from a fresh process; or the computed need where eager would take too much."""
    need = PROBLEMS[name].cell_steps() * EAGER_BYTES
    if provider == "eager" and mode == "training" and need > LIMIT_BYTES:
        return {"problem": name, "mode": mode, "provider": provider, "needs_bytes": need}
    return json.loads(run_alone(__spec__.name, "--only", name, mode, provider))


def run(name: str, mode: str, provider: str) -> dict:
    """Predict or train one step in this process; its peak memory and CPU time."""
    import torch

    from ncaseg.budget import peak_bytes, resident_bytes
    from ncaseg.training.losses import dice_bce

    problem = PROBLEMS[name]
    if mode == "prediction":
        problem = problem._replace(steps=(2,) * len(problem.steps))
    model = build(problem, provider)
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, *problem.size, generator=generator)
    before, start = resident_bytes(), time.process_time()
    if mode == "prediction":
        with torch.no_grad():
            model(image, seed=0)
    else:
        target = (image > 0.9).float()
        optimizer = torch.optim.Adam(model.parameters())
        logits, target = model.crop_forward(image, target, seed=0, keep_every=problem.keep_every)
        dice_bce(logits, target).backward()
        optimizer.step()
    row = {"problem": name, "mode": mode, "provider": provider, "cpu_seconds": round(time.process_time() - start, 1)}
    return row | {"before_bytes": before, "peak_bytes": peak_bytes(), "steps": problem.steps}


def build(problem: Problem, provider: str):
    """The segmenter, with eager layers in place of the rollout if asked for."""
    import torch
    from torch import nn

    from benchmarks.rollout.providers import Eager
    from ncaseg.config import M3DConfig
    from ncaseg.models import build_model

    names = ("kernel_sizes", "steps", "scales")
    cfg = M3DConfig(**{name: getattr(problem, name) for name in names}, patches=((),) * len(problem.steps))
    torch.manual_seed(0)
    model = build_model(cfg)
    for level in model.levels:
        nn.init.normal_(level.out_weight, std=0.01)
    if provider == "kernel":
        return model

    class Level(Eager):
        def forward(self, state, steps, **_):  # as ncakern.NCA is called; eager draws its own fire mask
            return super().forward(state)

    model.levels = nn.ModuleList(Level(nca, case_of(problem, level)) for level, nca in enumerate(model.levels))
    return model


def case_of(problem: Problem, level: int):
    """A level as the problem that `benchmarks.rollout.providers.Eager` takes."""
    from benchmarks.harness.cases import Case

    return Case(
        name=f"level {level}",
        size=problem.size,
        channels=16,
        hidden=64,
        perception="depthwise",
        num_filters=1,
        kernel_size=problem.kernel_sizes[level],
        norm="batch",
        frozen_channels=1,
        steps=problem.steps[level],
    )


def table(rows: list[dict]) -> str:
    """The rows as Markdown, eager beside ours."""
    lines = ["| problem | pass | kernel | eager |", "| --- | --- | --- | --- |"]
    found = {(row["problem"], row["mode"], row["provider"]): row for row in rows}
    for name, problem in PROBLEMS.items():
        for mode in MODES:
            cells = " | ".join(show(found[name, mode, provider]) for provider in PROVIDERS)
            size = "x".join(map(str, problem.size))
            lines.append(f"| {name}, {size} | {mode} | {cells} |")
    return "\n".join(lines)


def show(row: dict) -> str:
    if "peak_bytes" in row:
        return f"{row['peak_bytes'] / 1e9:.2f} GB"
    return f"does not fit: {row['needs_bytes'] / 1e9:.0f} GB"


if __name__ == "__main__":
    main()
