"""The segmenter without torch: numpy and the C++ extension. ``python -m ncaseg.edge MODEL INPUT -o OUT`` predicts.

A whole volume in memory gives the bits of the torch model alone on a CPU, since the kernel is the same. (An ensemble of
a model with norm differs in the last digits: members that run together are added up in another order.) What does not
fit into a memory budget goes through tiles and files, see :mod:`ncaseg.lean.tiled`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ncakern import RolloutSpec
from ncakern.arrays import ArrayParams, nca_rollout
from ncaseg.checkpoint.reader import check_shapes, read_weights
from ncaseg.config import Config, M3DConfig, ModelConfig
from ncaseg.lean.handover import enlarge_rows, image_rows
from ncaseg.lean.tiles import Stream
from ncaseg.levels import Triple, ceil_divide, check_reflection, factors_of, pad_size

if TYPE_CHECKING:
    from ncaseg.models.base import Segmenter

SLAB_BYTES = 16 * 2**20  # of a state, an image or an ensemble that are handled at once where memory is scarce


@dataclass(frozen=True)
class EdgeModel:
    """The segmenter :class:`ncaseg.models.m3d.M3D` as arrays: parameters of every level, coarse to fine."""

    cfg: M3DConfig
    levels: tuple[ArrayParams, ...]

    @property
    def spec(self) -> RolloutSpec:
        """The options of a step; norm "batch" over one sample is norm "instance"."""
        cfg = self.cfg
        norm = "none" if cfg.norm == "none" else "instance"
        return RolloutSpec(
            perception=cfg.perception,
            padding=cfg.padding,
            norm=norm,
            fire_rate=cfg.fire_rate,
            frozen_channels=cfg.in_channels,
        )

    def sizes(self, size: Triple) -> list[Triple]:
        """Cells of every level for an image of ``size``.

        Raises:
            ValueError: an axis is too short for a level's kernel.
        """
        full = pad_size(size, self.cfg.scales, self.cfg.pad)
        cells = [ceil_divide(full, factors) for factors in factors_of(self.cfg.scales)]
        if self.cfg.padding == "reflect":
            check_reflection(cells, self.cfg.kernel_sizes, self.cfg.ndim)
        return cells

    def rows(self, image: np.ndarray, level: int, rows: range) -> np.ndarray:
        """Rows of the image of a level, ``[rows, Y', Z', C_in]``."""
        full = pad_size(size_of(image), self.cfg.scales, self.cfg.pad)
        factors = factors_of(self.cfg.scales)[level]
        return image_rows(image, full, factors, rows, pad=self.cfg.pad, pool=self.cfg.pool)

    def stream(self, level: int, *, seed: int, member: int) -> Stream:
        """What names the fire bits: steps are numbered through all levels, members are samples."""
        return {"seed": seed, "first_step": sum(self.cfg.steps[:level]), "first_sample": member}


def load_edge_model(name_or_path: str | Path) -> tuple[EdgeModel, Config]:
    """Read a checkpoint, or a zoo entry by name.

    Raises:
        ValueError: it cannot be read, or its arrays do not fit its recipe; the message says which.
    """
    weights = read_weights(name_or_path)
    cfg = _as_m3d(weights.cfg.model)
    check_shapes(weights, _expected(cfg))
    return _build(cfg, weights.arrays), weights.cfg


def from_torch(model: Segmenter, cfg: ModelConfig) -> EdgeModel:
    """The same model on copies of its parameters, or views where they lie on the CPU.

    Raises:
        ValueError: it is no automaton.
    """
    return _build(_as_m3d(cfg), {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()})


def _as_m3d(cfg: ModelConfig) -> M3DConfig:
    if not isinstance(cfg, M3DConfig):
        raise ValueError(f"model.kind must be 'm3d' without torch or with a memory budget; got {cfg.kind!r}")
    return cfg


def _build(cfg: M3DConfig, arrays: Mapping[str, np.ndarray]) -> EdgeModel:
    levels = []
    for level in range(len(cfg.kernel_sizes)):
        own = {name: arrays.get(f"levels.{level}.{name}") for name in ArrayParams._fields}
        levels.append(ArrayParams(**own))  # type: ignore[arg-type]  # only those with a default may be None
    return EdgeModel(cfg, tuple(levels))


def run_member(model: EdgeModel, image: np.ndarray, *, seed: int, member: int) -> np.ndarray:
    """The logits ``[C_out, X, Y, Z]`` of one member of the ensemble, everything in memory.

    Args:
        image: ``[C_in, X, Y, Z]`` float32.
        seed: names the stream of fire bits.
        member: number of the member in it.

    Raises:
        ValueError: the image does not fit the model.
    """
    sizes = model.sizes(size_of(image))
    coarse = None
    for level, (size, params) in enumerate(zip(sizes, model.levels, strict=True)):
        state = np.empty((1, *size, model.cfg.channels), np.float32)
        for rows in slabs(size, model.cfg.channels):
            above = entry_source(model, level, rows)
            given = None if coarse is None else coarse[0, above.start : above.stop]
            state[0, rows.start : rows.stop] = entry_rows(model, image, level, size, rows, given)
        coarse = state  # the coarser one is needed no more
        stream, steps = model.stream(level, seed=seed, member=member), model.cfg.steps[level]
        if model.cfg.ndim == 3:
            nca_rollout(state, params, model.spec, steps, out=state, **stream)
        else:  # every slice of the third axis is a sample of its own
            slices = np.ascontiguousarray(np.moveaxis(state[0], 2, 0))
            stream["first_sample"] *= len(slices)
            nca_rollout(slices, params, model.spec, steps, out=slices, **stream)
            state[0] = np.moveaxis(slices, 0, 2)
    return np.ascontiguousarray(logits_of(model, state[0], size_of(image)))


def entry_source(model: EdgeModel, level: int, rows: range) -> range:
    """The rows of the coarser level that rows of a level lie in; none for the first level."""
    factor = model.cfg.scales[level - 1][0] if level else 1
    return range(rows.start // factor, (rows.stop - 1) // factor + 1)


def entry_rows(
    model: EdgeModel, image: np.ndarray, level: int, size: Triple, rows: range, coarse: np.ndarray | None
) -> np.ndarray:
    """Rows of the state that a level starts from ``[rows, *size[1:], C]``.

    ``coarse`` holds the rows :func:`entry_source` of the level before; None for the first, whose other channels are 0.
    """
    if coarse is None:
        state = np.zeros((len(rows), *size[1:], model.cfg.channels), np.float32)
    else:
        first = entry_source(model, level, rows).start
        state = enlarge_rows(coarse, model.cfg.scales[level - 1], size, rows, first)
    state[..., : model.cfg.in_channels] = model.rows(image, level, rows)
    return state


def logits_of(model: EdgeModel, state: np.ndarray, size: Triple) -> np.ndarray:
    """The logits ``[C_out, *size]`` in a state ``[X, Y, Z, C]`` (a view): the channels behind the image's."""
    first = model.cfg.in_channels
    cells = state[: size[0], : size[1], : size[2], first : first + model.cfg.out_channels]
    return np.moveaxis(cells, -1, 0)


def slabs(size: Triple, channels: int) -> Iterator[range]:
    """The rows of the first axis in groups of about ``SLAB_BYTES``."""
    at_once = max(1, SLAB_BYTES // (4 * channels * size[1] * size[2]))
    for first in range(0, size[0], at_once):
        yield range(first, min(first + at_once, size[0]))


def size_of(image: np.ndarray) -> Triple:
    """The cells of an image ``[C, X, Y, Z]``."""
    x, y, z = image.shape[1:]
    return x, y, z


def _expected(cfg: M3DConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the arrays that a recipe asks for."""
    channels, hidden, filters = cfg.channels, cfg.hidden, cfg.num_filters
    seen = (channels,) if cfg.perception == "depthwise" else (channels, channels)
    shapes: dict[str, tuple[int, ...]] = {}
    for level, kernel in enumerate(cfg.kernel_sizes):
        own: dict[str, tuple[int, ...]] = {
            "perceive_weight": (filters, *seen, *(kernel,) * cfg.ndim),
            "perceive_bias": (filters, channels),
            "hidden_weight": (hidden, (1 + filters) * channels),
            "hidden_bias": (hidden,),
            "out_weight": (channels, hidden),
        }
        if cfg.norm != "none":
            own |= {"norm_weight": (hidden,), "norm_bias": (hidden,)}
        shapes |= {f"levels.{level}.{name}": shape for name, shape in own.items()}
    return shapes
