"""A case to arrays: read, checked, normalised; the geometry travels along."""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError

from ncaseg.config import DataConfig
from ncaseg.data.index import Case

AFFINE_TOLERANCE = 1e-3  # mm; well above the rounding of NIfTI's float32 geometry, well below a voxel


@dataclass(frozen=True)
class Volume:
    """One loaded case.

    ``image`` is float32 ``[C_in, *S]`` in [0, 1] on the grid of the network (zero-padded at the end of each axis where
    the recipe has a size); ``label`` is int64 on the native grid with the file's own values, or None.
    """

    id: str
    image: np.ndarray
    label: np.ndarray | None
    native_size: tuple[int, ...]
    affine: np.ndarray
    header: nib.Nifti1Header
    spacing_mm: tuple[float, ...]

    def require_label(self) -> np.ndarray:
        """The label; ValueError for a case without one."""
        if self.label is None:
            raise ValueError(f"case {self.id} must have a label; it has none")
        return self.label


def load_case(case: Case, cfg: DataConfig) -> Volume:
    """Read one case: clip to percentiles, min-max to [0, 1], zero-pad, and clip again if the recipe says so.

    The order is that of M3D-NCA. Axes stay as stored; nothing is resampled or reoriented.

    Raises:
        ValueError: NaN or infinite voxels, a constant image, a missing modality, an image larger than ``cfg.size``, a
            label of another geometry, or label values outside ``cfg.labels``. The message names the file.
    """
    source, data = _read(case.image)
    image = _select_modalities(data, case, cfg)
    del data  # large volumes: one copy at a time
    native_size = image.shape[1:]
    channels = [_normalise(channel, cfg, case) for channel in image]
    image = channels[0][None] if len(channels) == 1 else np.stack(channels)
    return Volume(
        id=case.id,
        image=image,
        label=None if case.label is None else _read_label(case.label, source, case, cfg),
        native_size=native_size,
        affine=source.affine,
        header=source.header.copy(),
        spacing_mm=tuple(float(z) for z in source.header.get_zooms()[:3]),
    )


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
    try:
        source = nib.load(path)
        if not isinstance(source, nib.Nifti1Image):
            raise ImageFileError(f"it is a {type(source).__name__}")
        return source, np.asarray(source.dataobj)
    except FileNotFoundError:
        raise
    except (ImageFileError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} must be a readable NIfTI file; it is not: {error}") from error


def _select_modalities(data: np.ndarray, case: Case, cfg: DataConfig) -> np.ndarray:
    """``[C_in, *S]`` float32; NIfTI keeps modalities on the fourth axis."""
    if data.ndim not in (3, 4):
        raise ValueError(f"{case.image} must have 3 axes, or 4 with the modalities last; got shape {data.shape}")
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
    size = data.shape[:3]
    if cfg.size and any(have > target for have, target in zip(size, cfg.size, strict=True)):
        raise ValueError(f"{case.image} of size {size} is larger than data.size {cfg.size} on an axis; enlarge it")
    image = np.empty((len(cfg.modalities), *size), np.float32)
    for channel, modality in zip(image, cfg.modalities, strict=True):
        channel[...] = data[..., modality]
    return image


def _normalise(channel: np.ndarray, cfg: DataConfig, case: Case) -> np.ndarray:
    """The normalised channel, in place where it is not padded."""
    channel = _clip_min_max(channel, cfg, case)
    if cfg.size:
        channel = pad_end(channel, cfg.size)
    return _clip_min_max(channel, cfg, case) if cfg.clip_again else channel


def _clip_min_max(channel: np.ndarray, cfg: DataConfig, case: Case) -> np.ndarray:
    low, high = (np.float32(v) for v in np.percentile(channel, cfg.clip_percentiles))
    if not low < high:
        percentiles = f"percentiles {cfg.clip_percentiles} are {low} and {high}"
        raise ValueError(f"{case.image} is constant between its percentiles ({percentiles}); drop it or widen them")
    np.clip(channel, low, high, out=channel)
    channel -= low
    channel /= high - low
    return channel


def _read_label(path: Path, source: nib.Nifti1Image, case: Case, cfg: DataConfig) -> np.ndarray:
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
    return raw.astype(np.int64)


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
