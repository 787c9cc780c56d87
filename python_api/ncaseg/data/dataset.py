"""A case to arrays: read, checked, normalised; the geometry travels along."""

import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError

from ncaseg.config import DataConfig
from ncaseg.data.index import Case
from ncaseg.data.pictures import is_picture, open_mask, open_picture
from ncaseg.data.resample import resize_back, resize_image, resize_mask
from ncaseg.data.standard import standardise
from ncaseg.levels import Triple, or_native

AFFINE_TOLERANCE = 1e-3  # mm; well above the rounding of NIfTI's float32 geometry, well below a voxel


@dataclass(frozen=True)
class Volume:
    """One loaded case.

    ``image`` is float32 ``[C_in, *S]`` on the grid of the network: the native one, or, where the recipe has a size,
    zero-padded at the end of each axis or resized (``is_resized``); in [0, 1], or standardised where it has a mean.
    ``label`` is int64 (uint8 of a picture) on the native grid with the file's own values, or None.
    """

    id: str
    image: np.ndarray
    label: np.ndarray | None
    native_size: tuple[int, ...]
    affine: np.ndarray
    header: nib.Nifti1Header
    spacing_mm: tuple[float, ...]
    is_resized: bool = False
    mask_rule: str = "floor"

    @property
    def content_size(self) -> tuple[int, ...]:
        """The part of the network's grid, from its origin on, that holds the image; the rest is padding."""
        return self.image.shape[1:] if self.is_resized else self.native_size

    def to_content(self, masks: np.ndarray) -> np.ndarray:
        """Masks ``[C, *S]`` on the native grid, float32, as they lie under the content."""
        return resize_mask(masks, self.content_size, self.mask_rule) if self.is_resized else masks

    def to_native(self, values: np.ndarray) -> np.ndarray:
        """Values ``[..., *S]`` on the network's grid, on the native one."""
        if self.is_resized:
            return resize_back(values, self.native_size)
        x, y, z = self.native_size
        return values[..., :x, :y, :z]

    def require_label(self) -> np.ndarray:
        """The label; ValueError for a case without one."""
        if self.label is None:
            raise ValueError(f"case {self.id} must have a label; it has none")
        return self.label


def load_case(case: Case, cfg: DataConfig) -> Volume:
    """Read one case: clip to percentiles, min-max to [0, 1], pad or resize, clip again, standardise, as it is set.

    The order is that of M3D-NCA. Axes stay as stored; nothing is reoriented.

    Raises:
        ValueError: NaN or infinite voxels, a constant image, a missing modality, an image larger than ``cfg.size``, a
            label of another geometry, or label values outside ``cfg.labels``. The message names the file.
    """
    source, data = _read(case.image)
    image = _select_modalities(data, case, cfg)
    del data  # large volumes: one copy at a time
    native_size = image.shape[1:]
    image = standardise(_normalise(image, cfg, case), cfg)
    return Volume(
        id=case.id,
        image=image,
        label=None if case.label is None else _read_label(case.label, source, case, cfg),
        native_size=native_size,
        affine=source.affine,
        header=source.header.copy(),
        spacing_mm=tuple(float(z) for z in source.header.get_zooms()[:3]),
        is_resized=cfg.fit == "resize" and image.shape[1:] != native_size,
        mask_rule="centre" if cfg.resample == "area" else "floor",
    )


def loading_bytes(case: Case, cfg: DataConfig) -> int:
    """The most memory, in bytes, that :func:`load_case` takes for the image of a case, by the header of its file.

    Raises:
        ValueError: the header cannot be read.
    """
    source = _open(case.image)
    native = _native_size(source.shape, case)
    grid = or_native(cfg.size, native)
    stored, scalings = source.get_data_dtype().itemsize, 0
    if isinstance(source.dataobj, ArrayProxy):  # each of the two makes a float64 copy
        scalings = int(source.dataobj.slope != 1) + int(source.dataobj.inter != 0)
    voxels = math.prod(source.shape)
    image = 4 * len(cfg.modalities) * math.prod(max(pair) for pair in zip(native, grid, strict=True))
    # At once: the image and what percentiles sort; beside them the native image, and one that standardise is making.
    copies = 2 + int(grid != native) + int(cfg.mean != ())
    if cfg.fit == "resize" and grid != native:
        copies = 6  # a sum over taps, see resize_image
    return max(voxels * (stored + 8 * scalings), voxels * (8 if scalings else stored) + image, copies * image)


def encode_label(label: np.ndarray, labels: tuple[int, ...], out_channels: int) -> np.ndarray:
    """Label values ``[*S]`` to targets float32 ``[C_out, *S]``: the merged foreground, or one mask per value.

    Example:
        >>> encode_label(np.array([0, 2, 1]), (1, 2), 2).tolist()
        [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    """
    if out_channels == 1:
        return (label > 0)[None].astype(np.float32)
    return np.stack([label == value for value in labels]).astype(np.float32)


def pad_end(array: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Zero-pad the last ``len(size)`` axes at their end to ``size``."""
    lead = array.ndim - len(size)
    missing = [target - have for target, have in zip(size, array.shape[lead:], strict=True)]
    return np.pad(array, [(0, 0)] * lead + [(0, m) for m in missing])


def _read(path: Path) -> tuple[nib.Nifti1Image, np.ndarray]:
    """The image object and its voxels with the file's scaling applied."""
    source = _open(path)
    try:
        return source, np.asarray(source.dataobj)
    except (ImageFileError, OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error


def _open(path: Path) -> nib.Nifti1Image:
    """The image object: geometry, and voxels that are still in the file (those of a picture are not)."""
    if is_picture(path):
        return open_picture(path)
    try:
        source = nib.load(path)
    except FileNotFoundError:
        raise
    except (ImageFileError, OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error
    if not isinstance(source, nib.Nifti1Image):
        raise _unreadable(path, f"it is a {type(source).__name__}")
    return source


def _unreadable(path: Path, reason: object) -> ValueError:
    return ValueError(f"{path} must be a readable NIfTI file; it is not: {reason}")


def _select_modalities(data: np.ndarray, case: Case, cfg: DataConfig) -> np.ndarray:
    """``[C_in, *S]`` float32; NIfTI keeps modalities on the fourth axis."""
    size = _native_size(data.shape, case)
    if data.ndim == 3:
        data = data[..., None]
    if max(cfg.modalities) >= data.shape[3]:
        raise ValueError(f"{case.image} has {data.shape[3]} modalities; data.modalities asks for {cfg.modalities}")
    # Slice by slice as they lie in the file, so that no second copy of a large volume is made.
    slices = (data[:, :, z].astype(np.float32) for z in range(data.shape[2]))
    bad = sum(int(np.count_nonzero(~np.isfinite(plane))) for plane in slices)
    if bad:
        share = f"{bad} of {data.size} voxels are NaN or infinite"
        raise ValueError(f"{case.image} must be finite; {share}. Repair the file or drop the case")
    for axis, have, target in zip("XYZ", size, or_native(cfg.size, size), strict=True):
        if cfg.fit == "pad" and have > target:
            both = f"{case.image} of size {size} is larger than data.size {cfg.size} on axis {axis}"
            raise ValueError(f'{both}; enlarge data.size, or set data.fit="resize"')
    image = np.empty((len(cfg.modalities), *size), np.float32)
    for channel, modality in zip(image, cfg.modalities, strict=True):
        channel[...] = data[..., modality]
    return image


def _native_size(shape: tuple[int, ...], case: Case) -> Triple:
    if len(shape) not in (3, 4):
        raise ValueError(f"{case.image} must have 3 axes, or 4 with the modalities last; got shape {shape}")
    x, y, z = shape[:3]
    return x, y, z


def grid_sizes(cases: Iterable[Case], cfg: DataConfig) -> dict[str, Triple]:
    """The network's grid for every case, by id: from the headers of the files where the recipe leaves an axis native.

    Raises:
        ValueError: a header cannot be read, or has neither three nor four axes.
    """
    found = {}
    for case in cases:
        native = (0, 0, 0) if cfg.size and all(cfg.size) else _native_size(_open(case.image).shape, case)
        found[case.id] = or_native(cfg.size, native)
    return found


def _normalise(image: np.ndarray, cfg: DataConfig, case: Case) -> np.ndarray:
    """The image on the network's grid; large volumes are normalised in place."""
    low, high = 0.0, 1.0
    if cfg.intensity == "percentiles":
        for channel in image:
            _clip_min_max(channel, cfg, case)
    else:
        low, high = float(image.min()), float(image.max())
    size = or_native(cfg.size, image.shape[1:])
    if size != image.shape[1:]:
        image = pad_end(image, size) if cfg.fit == "pad" else resize_image(image, size, cfg.resample)
        if cfg.fit == "resize" and not cfg.clip_again:
            np.clip(image, low, high, out=image)
    if cfg.clip_again:
        for channel in image:
            _clip_min_max(channel, cfg, case)
    return image


def _clip_min_max(channel: np.ndarray, cfg: DataConfig, case: Case) -> None:
    """Clip to percentiles and scale to [0, 1], in place."""
    low, high = (np.float32(v) for v in np.percentile(channel, cfg.clip_percentiles))
    if not low < high:
        percentiles = f"percentiles {cfg.clip_percentiles} are {low} and {high}"
        raise ValueError(f"{case.image} is constant between its percentiles ({percentiles}); drop it or widen them")
    np.clip(channel, low, high, out=channel)
    channel -= low
    channel /= high - low


def _read_label(path: Path, source: nib.Nifti1Image, case: Case, cfg: DataConfig) -> np.ndarray:
    if is_picture(path):
        file = open_mask(path, cfg.labels)
        raw = np.asarray(file.dataobj)
    else:
        file, raw = _read(path)
    if raw.shape != source.shape[:3]:
        both = f"image size {source.shape[:3]}, label size {raw.shape}"
        raise ValueError(f"{case.id}: {both}; resample the label or drop the case")
    if not np.allclose(file.affine, source.affine, rtol=0, atol=AFFINE_TOLERANCE):
        both = f"image affine {source.affine.tolist()}, label affine {file.affine.tolist()}"
        raise ValueError(f"{case.id}: {both}; resample the label or drop the case")
    values = np.unique(raw)
    unexpected = [v for v in values.tolist() if v not in (0, *cfg.labels)]
    if unexpected:
        both = f"label values {values.tolist()}, expected {sorted((0, *cfg.labels))}"
        raise ValueError(f"{path}: {both}; set data.labels or map the values")
    return raw if raw.dtype == np.uint8 and is_picture(path) else raw.astype(np.int64)


class CaseStore:
    """Volumes by id, loaded on first use and kept when ``cfg.cache`` says so."""

    def __init__(self, cases: Iterable[Case], cfg: DataConfig) -> None:
        self._cases = {case.id: case for case in cases}
        self._cfg = cfg
        self._loaded: dict[str, Volume] = {}

    def __getitem__(self, case: str) -> Volume:
        if case in self._loaded:
            return self._loaded[case]
        volume = load_case(self._cases[case], self._cfg)
        if self._cfg.cache:
            self._loaded[case] = volume
        return volume
