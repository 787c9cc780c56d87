"""A case to arrays: read, checked, normalised; the geometry travels along."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import nibabel as nib
import numpy as np

from ncaseg.config import DataConfig
from ncaseg.data import labels
from ncaseg.data.formats import format_of
from ncaseg.data.formats.base import ReadError, Scan, Value
from ncaseg.data.index import Case
from ncaseg.data.resample import resize_back, resize_image, resize_mask
from ncaseg.data.standard import shades_of_gray, standardise
from ncaseg.levels import Triple, or_native

AFFINE_TOLERANCE = 1e-3  # mm; well above the rounding of NIfTI's float32 geometry, well below a voxel
FLOAT32_LOSS = 2.0**-16  # of the range of an image: the most that storing it in float32 may move a voxel
TWELVE_BITS = 4095


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
    meaning: Mapping[Value, int] = field(default_factory=dict)  # of the stored values of the label
    is_picture: bool = False

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
    """Read one case: clip to percentiles and min-max to [0, 1], or correct the light; pad or resize, clip again,
    standardise, as it is set.

    The order is that of M3D-NCA. Axes stay as stored; nothing is reoriented.

    Raises:
        ValueError: a file that cannot be read, NaN or infinite voxels, a constant image, a missing modality, an image
            larger than ``cfg.size`` or than the memory allowed, a label of another geometry, or label values that are
            not ``cfg.labels``. The message names the file.
    """
    _check_memory(case, cfg)
    scan, image = _read_image(case, cfg)
    native_size = scan.size
    image = standardise(_normalise(image, cfg, case), cfg)
    label, meaning = (None, {}) if case.label is None else _read_label(scan, case, cfg)
    return Volume(
        id=case.id,
        image=image,
        label=label,
        native_size=native_size,
        affine=scan.affine,
        header=scan.header.copy(),
        spacing_mm=scan.spacing_mm,
        is_resized=cfg.fit == "resize" and image.shape[1:] != native_size,
        mask_rule="centre" if cfg.resample == "area" else "floor",
        meaning=meaning,
        is_picture=scan.white is not None,
    )


def loading_bytes(case: Case, cfg: DataConfig) -> int:
    """The most memory, in bytes, that :func:`load_case` takes for the image of a case, by the header of its file.

    Raises:
        ValueError: the header cannot be read.
    """
    scan = open_scan(case)
    grid = or_native(cfg.size, scan.size)
    voxels = math.prod(scan.shape)
    image = 4 * len(cfg.modalities) * math.prod(max(pair) for pair in zip(scan.size, grid, strict=True))
    # At once: the image and what percentiles sort; beside them the native image, and one that standardise is making.
    copies = 2 + int(grid != scan.size) + int(cfg.mean != ()) + int(cfg.intensity == "shades_of_gray")
    if cfg.fit == "resize" and grid != scan.size:
        copies = 6  # a sum over taps, see resize_image
    read = voxels * scan.dtype.itemsize
    # Percentiles sort a copy of a channel, for numbers that float32 may blur while these are still there.
    kept = 0 if np.can_cast(scan.dtype, np.float32) else image // len(cfg.modalities)
    return max(read + scan.extra_bytes, read + image + kept, copies * image)


def open_scan(case: Case) -> Scan:
    """The header of a case's image, all of its channels counted.

    Raises:
        ValueError: the header cannot be read, or those of several files differ in their cells.
    """
    scans = [format_of(path).open(path) for path in case.files]
    return scans[0] if len(scans) == 1 else _joined(scans)


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


def grid_sizes(cases: Iterable[Case], cfg: DataConfig) -> dict[str, Triple]:
    """The network's grid for every case, by id: from the headers of the files where the recipe leaves an axis native.

    Raises:
        ValueError: a header cannot be read, or has neither three nor four axes.
    """
    is_fixed = len(cfg.size) == 3 and all(cfg.size)
    return {case.id: or_native(cfg.size, (0, 0, 0) if is_fixed else open_scan(case).size) for case in cases}


def _check_memory(case: Case, cfg: DataConfig) -> None:
    need = loading_bytes(case, cfg)
    if case.label is not None:
        need += 16 * math.prod(format_of(case.label).open(case.label).shape)  # as read, sorted, and as int64
    if need > cfg.max_read_gb * 1e9:
        raise ReadError(
            f"{case.image} would take {need / 1e9:.3g} GB of memory to read and normalise, by its header; "
            f"data.max_read_gb allows {cfg.max_read_gb:g}. Raise it, or crop or resample the file"
        )


def _joined(scans: list[Scan]) -> Scan:
    """One scan of the channels of several files."""
    first = scans[0]
    for other in scans[1:]:
        near = np.allclose(other.affine, first.affine, rtol=0, atol=AFFINE_TOLERANCE)
        if other.size != first.size or not near:
            raise ReadError(f"{other.path} must have the cells of {first.path}: {other.size} and {first.size}")
    channels = sum(scan.shape[3] for scan in scans)
    widest = max((scan.dtype for scan in scans), key=lambda dtype: dtype.itemsize)
    extra = max(scan.extra_bytes for scan in scans)
    return replace(first, shape=(*first.size, channels), dtype=widest, extra_bytes=extra)


def _read_image(case: Case, cfg: DataConfig) -> tuple[Scan, np.ndarray]:
    """The header and ``[C_in, *S]`` float32: as in the file, pictures divided by their white."""
    parts = [format_of(path).read(path) for path in case.files]
    scan = parts[0][0] if len(parts) == 1 else _joined([part for part, _ in parts])
    stored = [values[..., i] for _, values in parts for i in range(values.shape[3])]
    del parts
    _check_grid(case, scan, cfg)
    stored = _choose(case, scan, stored, cfg)
    white = _white(case, scan, stored, cfg)
    image = np.empty((len(stored), *scan.size), np.float32)
    for channel, values in zip(image, stored, strict=True):
        with np.errstate(over="ignore"):
            channel[...] = values
        bad = sum(int(np.count_nonzero(~np.isfinite(plane))) for plane in np.moveaxis(channel, 2, 0))
        if bad:
            share = f"{bad} of {channel.size} voxels are NaN, infinite or beyond float32"
            raise ReadError(f"{case.image} must be finite; {share}. Repair the file or drop the case")
        if white:
            channel /= np.float32(white)
        elif not np.can_cast(values.dtype, np.float32):
            _keep_differences(channel, values, case, cfg)
    return scan, image


def _keep_differences(channel: np.ndarray, values: np.ndarray, case: Case, cfg: DataConfig) -> None:
    """Where float32 has blurred the values, count them from the lower percentile; a shift changes nothing else."""
    wide: type = np.longdouble if values.dtype.kind in "iu" and values.dtype.itemsize == 8 else np.float64
    planes = range(values.shape[2])
    moved = max(float(np.abs(values[..., z].astype(wide) - channel[..., z]).max()) for z in planes)
    if moved == 0:
        return
    is_stored = cfg.intensity == "stored"
    low, high = np.percentile(channel, (0, 100) if is_stored else cfg.clip_percentiles)
    if moved <= FLOAT32_LOSS * (high - low):
        return
    if is_stored:
        raise ReadError(f'{case.image} has differences that float32 loses; set data.intensity="percentiles"')
    for z in planes:
        channel[..., z] = values[..., z].astype(wide) - wide(low)


def _choose(case: Case, scan: Scan, stored: list[np.ndarray], cfg: DataConfig) -> list[np.ndarray]:
    """The channels of the recipe; what is left out must be the same once more, unless the recipe allows it."""
    count, chosen = len(stored), cfg.modalities
    if scan.is_repeated and count == 1:
        return [stored[0] for _ in chosen]
    if max(chosen) >= count:
        raise ReadError(f"{case.image} has {count} modalities; data.modalities asks for {chosen}")
    further = [stored[i] for i in range(count) if i not in chosen]
    if not cfg.drop_channels and not all(any(np.array_equal(f, stored[i]) for i in chosen) for f in further):
        raise ReadError(
            f"{case.image} has {count} channels (modalities, colours, or volumes of a series), of which "
            f"data.modalities takes {chosen}. To leave the others out, set data.drop_channels=true"
        )
    return [stored[i] for i in chosen]


def _white(case: Case, scan: Scan, stored: list[np.ndarray], cfg: DataConfig) -> float:
    """The number that becomes 1; 0 where numbers stay as they are."""
    if cfg.white or scan.white is None:
        return cfg.white
    if cfg.intensity == "stored":
        low, high = min(float(v.min()) for v in stored), max(float(v.max()) for v in stored)
        what = f'{case.image} must say what is white, since data.intensity is "stored"; its numbers lie in '
        if scan.white > 255 and 0 < high <= TWELVE_BITS:
            raise ReadError(f"{what}[{low:g}, {high:g}] of 16 bits. Set data.white, to 4095 if it has 12 bits")
        if scan.white == 0 and not (low >= 0 and high <= 1):
            raise ReadError(f"{what}[{low:g}, {high:g}]. Set data.white to the largest that may occur")
    return scan.white


def _check_grid(case: Case, scan: Scan, cfg: DataConfig) -> None:
    for axis, have, target in zip("XYZ", scan.size, or_native(cfg.size, scan.size), strict=True):
        if cfg.fit == "pad" and have > target:
            both = f"{case.image} of size {scan.size} is larger than data.size {cfg.size} on axis {axis}"
            raise ReadError(f'{both}; enlarge data.size, or set data.fit="resize"')


def _normalise(image: np.ndarray, cfg: DataConfig, case: Case) -> np.ndarray:
    """The image on the network's grid; large volumes are normalised in place."""
    low, high = 0.0, 1.0
    if cfg.intensity == "percentiles":
        for channel in image:
            _clip_min_max(channel, cfg, case)
    else:
        image = shades_of_gray(image) if cfg.intensity == "shades_of_gray" else image
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
        raise ReadError(f"{case.image} is constant between its percentiles ({percentiles}); drop it or widen them")
    np.clip(channel, low, high, out=channel)
    channel -= low
    channel /= high - low


def _read_label(image: Scan, case: Case, cfg: DataConfig) -> tuple[np.ndarray, Mapping[Value, int]]:
    assert case.label is not None
    form = format_of(case.label)
    scan, coded = form.read_label(case.label)
    if scan.size != image.size:
        both = f"image size {image.size}, label size {scan.size}"
        raise ReadError(f"{case.id}: {both}; resample the label {case.label} or drop the case")
    if not np.allclose(scan.affine, image.affine, rtol=0, atol=AFFINE_TOLERANCE):
        both = f"image affine {image.affine.tolist()}, label affine {scan.affine.tolist()}"
        raise ReadError(f"{case.id}: {both}; {_advice(case, image, scan)}")
    found, meaning = labels.decode(case.label, coded, cfg)
    return found if scan.white is None else found.astype(np.uint8), meaning


def _advice(case: Case, image: Scan, label: Scan) -> str:
    """What to do about two geometries that differ."""
    if image.has_geometry == label.has_geometry:
        return f"resample the label {case.label} or drop the case"
    bare, other = (label.path, image.path) if image.has_geometry else (image.path, label.path)
    return (
        f"{bare} has no geometry (its qform and sform codes are 0). If its cells are those of {other}, copy that one's "
        "header into it; do not resample it"
    )


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
