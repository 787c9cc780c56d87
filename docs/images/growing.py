"""Draw how an automaton grows a segmentation, step by step, as an animated GIF.

    make demo
    .venv/bin/python docs/images/growing.py demo docs/images/growing.gif

The picture shows the middle slice of the first validation volume of `ncaseg demo`, in every step: the image with the
outline of the segmentation so far, three directions of the other 15 channels as colours, the cells that fired, and the
probability of foreground. The model must have one level.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

import ncakern
from ncaseg import find_cases, load_case, load_model
from ncaseg.report.volumes import load_font

CELL_PX, GAP_PX, CAPTION_PX = 8, 10, 24
BACKGROUND, INK, OUTLINE = (24, 24, 24), (230, 230, 230), (255, 140, 0)
FRAME_MS, LAST_MS = 220, 2500
COLOURS = 96  # of the palette: enough for these panels, and the file stays small


def rollout(nca: ncakern.NCA, image: torch.Tensor, steps: int) -> list[torch.Tensor]:
    """The states ``[*S, C]`` after 0, 1, ..., ``steps`` steps on an image ``[C_in, *S]``; the bits of one call."""
    first, channels = image.movedim(0, -1)[None], len(nca.out_weight)
    state = torch.cat([first, first.new_zeros((*first.shape[:-1], channels - first.shape[-1]))], dim=-1)
    states = [state[0]]
    with torch.no_grad():
        for step in range(steps):
            state = nca(state, steps=1, seed=0, first_step=step)
            states.append(state[0])
    return states


def as_colours(planes: list[np.ndarray]) -> list[np.ndarray]:
    """``[H, W, C]`` channels as RGB: their three strongest directions over all steps, on one scale."""
    cells = np.concatenate([plane.reshape(-1, plane.shape[-1]) for plane in planes])
    centre = np.median(planes[0].reshape(-1, cells.shape[1]), axis=0)
    directions = np.linalg.svd(cells - centre, full_matrices=False)[2][:3].T  # [C, 3]
    shown = [(plane - centre) @ directions for plane in planes]
    scale = np.percentile(np.abs(np.concatenate(shown)), 99.5, axis=(0, 1))
    return [(255 * np.clip(0.5 + 0.5 * plane / scale, 0, 1)).astype(np.uint8) for plane in shown]


def as_grey(plane: np.ndarray, low: float, high: float) -> np.ndarray:
    return (255 * np.clip((plane - low) / (high - low), 0, 1)).astype(np.uint8)


def magnify(plane: np.ndarray) -> Image.Image:
    """A plane ``[X, Y]`` or ``[X, Y, 3]``, its second axis upwards, every cell a square."""
    turned = np.ascontiguousarray(np.swapaxes(plane, 0, 1)[::-1].repeat(CELL_PX, 0).repeat(CELL_PX, 1))
    return Image.fromarray(turned).convert("RGB")


def outline(panel: Image.Image, mask: np.ndarray) -> None:
    """Draw the border of a mask along the edges of its cells."""
    cells = np.pad(np.swapaxes(mask, 0, 1)[::-1], 1)
    draw = ImageDraw.Draw(panel)
    for axis in (0, 1):
        for row, column in np.argwhere(np.diff(cells.astype(int), axis=axis) != 0):
            y, x = (row + (axis == 0) - 1) * CELL_PX, (column + (axis == 1) - 1) * CELL_PX
            end = (x + CELL_PX, y) if axis == 0 else (x, y + CELL_PX)
            draw.line([(x, y), end], fill=OUTLINE, width=2)


def sheet(panels: list[tuple[str, Image.Image]]) -> Image.Image:
    """Panels side by side, each under its caption."""
    width = sum(panel.width + GAP_PX for _, panel in panels) + GAP_PX
    page = Image.new("RGB", (width, panels[0][1].height + CAPTION_PX + 2 * GAP_PX), BACKGROUND)
    draw, left = ImageDraw.Draw(page), GAP_PX
    for caption, panel in panels:
        draw.text((left, GAP_PX - 2), caption, fill=INK, font=load_font(15))
        page.paste(panel, (left, GAP_PX + CAPTION_PX))
        left += panel.width + GAP_PX
    return page


def frames(folder: Path) -> list[Image.Image]:
    """One picture per step, from the folder that `ncaseg demo` wrote."""
    model, cfg, _ = load_model(folder / "run" / "model.safetensors")
    name = json.loads((folder / "run" / "split.json").read_text())["validation"][0]
    case = next(case for case in find_cases(folder / "data") if case.id == name)
    image = torch.from_numpy(load_case(case, cfg.data).image)  # [1, X, Y, Z]
    (nca,), (steps,) = model.levels, cfg.model.steps
    states = rollout(nca, image, steps)
    with torch.no_grad():
        assert torch.equal(states[-1][..., 1], model(image[None], seed=0)[0, 0])  # what the model itself answers

    probability = [torch.sigmoid(state[..., 1]).numpy() for state in states]
    z = int((probability[-1] > 0.5).sum((0, 1)).argmax())
    fired = [np.zeros(image.shape[1:], bool)]
    for step in range(steps):
        bits = ncakern.fire_mask((1, *image.shape[1:]), seed=0, step=step, fire_rate=nca.spec.fire_rate)
        fired.append(bits[0].numpy())
    grey = as_grey(image[0, :, :, z].numpy(), 0.0, 1.0)
    colours = as_colours([state[:, :, z, 1:].numpy() for state in states])

    pages = []
    for step in range(steps + 1):
        shown = magnify(grey)
        outline(shown, probability[step][:, :, z] > 0.5)
        panels = [
            (f"image, step {step} of {steps}", shown),
            ("state, as colours", magnify(colours[step])),
            ("cells that fired", magnify(as_grey(fired[step][:, :, z], 0, 2))),
            ("probability", magnify(as_grey(probability[step][:, :, z], 0.0, 1.0))),
        ]
        pages.append(sheet(panels))
    return pages


def save(pages: list[Image.Image], path: Path) -> None:
    """Write an endless GIF with one palette, that of all pages together."""
    strip = Image.new("RGB", (pages[0].width, sum(page.height for page in pages)))
    for number, page in enumerate(pages):
        strip.paste(page, (0, number * page.height))
    palette = strip.quantize(COLOURS)
    reduced = [page.quantize(palette=palette, dither=Image.Dither.NONE) for page in pages]
    durations = [FRAME_MS] * (len(reduced) - 1) + [LAST_MS]
    reduced[0].save(path, save_all=True, append_images=reduced[1:], duration=durations, loop=0, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="folder that `ncaseg demo` wrote")
    parser.add_argument("gif", type=Path, help="file to write")
    options = parser.parse_args()
    save(frames(options.demo), options.gif)
    print(f"wrote {options.gif}: {options.gif.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
