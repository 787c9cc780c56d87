"""The whole way in one call and without a download: synthetic volumes, training, scores, a prediction, pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ncaseg.checkpoint.model import load_model
from ncaseg.config import load_recipe
from ncaseg.data.dataset import load_case
from ncaseg.data.index import find_cases
from ncaseg.data.phantom import write_phantoms
from ncaseg.evaluation.cases import evaluate, restrict
from ncaseg.inference.case import answer, native_image
from ncaseg.inference.files import save_labels
from ncaseg.report import volumes
from ncaseg.report.charts import draw_loss_curve
from ncaseg.training.loop import train

MINIMUM_DICE = 0.90


class DemoResult(NamedTuple):
    """Files of a demo run: the checkpoint, one validation image, and the mean hard Dice of the validation cases."""

    model: Path
    image: Path
    hard_dice: float


def run_demo(
    out: str | Path,
    *,
    overrides: Sequence[str] = (),
    count: int = 20,
    size: tuple[int, int, int] = (24, 28, 24),
    minimum_dice: float = MINIMUM_DICE,
) -> DemoResult:
    """Train the recipe ``demo`` on synthetic volumes and show what comes out, all under ``out``.

    Writes ``data/`` (volumes and labels), ``run/`` (checkpoint, split, log), ``scores.json``, ``<case>_seg.nii.gz`` for
    the first validation case, ``overlay.png``, ``variance.png`` and ``loss.png``, and prints the validation Dice.

    Args:
        out: folder; repeating the call with the same folder goes on where the training stopped.
        overrides: changes to the recipe, ``section.key=value``.
        count: number of synthetic cases.
        size: their cells per axis.
        minimum_dice: the mean hard Dice below which something must be wrong.

    Raises:
        RuntimeError: the validation Dice is below ``minimum_dice``.
    """
    out = Path(out)
    data, run = out / "data", out / "run"
    write_phantoms(data, count, seed=0, size=size)
    train(load_recipe("demo", overrides), data, run)

    name = run / "model.safetensors"
    model, cfg, _ = load_model(name)
    cases = restrict(find_cases(data), run / "split.json", "validation")
    samples, seed = cfg.predict.samples, cfg.predict.seed
    file = out / "scores.json"
    scores = evaluate(model, cfg, cases, name=name.name, samples=samples, seed=seed, show=True, json_file=file)

    volume = load_case(cases[0], cfg.data)
    answered = answer(model, volume, cfg, samples, seed, with_spread=True)
    labels, variance = answered.labels, answered.variance
    assert volume.label is not None and variance is not None  # phantoms have labels, and the variance was asked for
    save_labels(out / f"{cases[0].id}_seg.nii.gz", labels, volume)
    image, spacing = native_image(volume), volume.spacing_mm
    volumes.draw_overlay(out / "overlay.png", image, labels, volume.label > 0, spacing_mm=spacing)
    volumes.draw_triptych(out / "variance.png", image, labels, variance, spacing_mm=spacing)
    draw_loss_curve(run / "log.csv", out / "loss.png")
    print(f"wrote {out}/: overlay.png, variance.png, loss.png, {cases[0].id}_seg.nii.gz, scores.json, run/{name.name}")

    dice = scores["mean"]["hard_dice"]
    print(f"validation Dice (hard, mean of {len(cases)} volumes not trained on): {dice:.4f}")
    if not dice >= minimum_dice:
        raise RuntimeError(f"the validation Dice is {dice:.4f}, expected at least {minimum_dice}; see `ncaseg doctor`")
    return DemoResult(model=name, image=cases[0].image, hard_dice=dice)
