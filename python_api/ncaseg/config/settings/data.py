"""What a case is made of, and how it changes in training."""

import dataclasses

from ncaseg.config.settings.checks import require, require_one_of
from ncaseg.config.settings.label_map import parse_label_map


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """How a case becomes tensors, and how the cases are split.

    ``labels`` are the foreground values that may occur; ``size`` is the grid of the network (empty: native size; 0
    keeps the native size of an axis), reached by zeros at the end of each axis (``fit`` "pad") or by interpolation
    ("resize"); ``clip_again`` repeats clip and min-max after that, as M3D-NCA does.
    ``intensity`` "percentiles" clips each channel and maps it to [0, 1]; "stored" takes the numbers of the file
    (pictures: 0..1); "shades_of_gray" takes them with the colour and strength of the light divided out, see
    :func:`ncaseg.data.standard.shades_of_gray`. ``resample`` is how an image is resized: "bicubic", M3D-NCA's, or
    "area", bilinear with a filter as wide as the cells, for pictures that shrink a lot. At last ``mean`` is subtracted
    from each channel, which is then divided by ``std`` (both empty: neither).
    Training takes ``crops`` random boxes of ``crop`` cells from every case (empty: whole cases; 0 takes the whole
    axis), anywhere (``crop_places`` "uniform") or centred on foreground and background in turn of a fair coin
    ("balanced"). Where a case is smaller than the box its border is repeated.
    How files are read: ``label_map`` says which label a stored value or colour stands for ("2:1, #ff0000:2", see
    :mod:`ncaseg.config.settings.label_map`); ``white`` is the number that stands for 1 in a picture (0: 255, or 65535
    of 16 bits); ``drop_channels`` allows files with more channels than ``modalities`` takes; ``max_read_gb`` is the
    most memory that one case may take, by its header; ``allow_empty`` trains although no label has a cell of
    foreground; ``allow_left_out`` although the split leaves labelled cases out.
    """

    labels: tuple[int, ...] = (1,)
    modalities: tuple[int, ...] = (0,)
    clip_percentiles: tuple[float, float] = (0.5, 99.5)
    size: tuple[int, ...] = ()
    fit: str = "pad"
    clip_again: bool = False
    intensity: str = "percentiles"
    resample: str = "bicubic"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    crop: tuple[int, ...] = ()
    crops: int = 1
    crop_places: str = "uniform"
    validation_fraction: float = 0.15
    split_seed: int = 0
    cache: bool = True
    label_map: str = ""
    white: float = 0.0
    drop_channels: bool = False
    max_read_gb: float = 4.0
    allow_empty: bool = False
    allow_left_out: bool = False

    def __post_init__(self) -> None:
        low, high = self.clip_percentiles
        positive = all(0 < v < 256 for v in self.labels)
        require(len(self.labels) >= 1 and positive, "data.labels", "be values from 1 to 255", self.labels)
        require(len(set(self.labels)) == len(self.labels), "data.labels", "name each value once", self.labels)
        require(all(m >= 0 for m in self.modalities), "data.modalities", "not be negative", self.modalities)
        require(0 <= low < high <= 100, "data.clip_percentiles", "be 0 <= low < high <= 100", self.clip_percentiles)
        require(len(self.size) in (0, 3), "data.size", "be empty (native size) or three sizes", self.size)
        require(all(s >= 0 for s in self.size), "data.size", "not be negative", self.size)
        require_one_of("data.fit", self.fit, ("pad", "resize"))
        require_one_of("data.intensity", self.intensity, ("percentiles", "stored", "shades_of_gray"))
        require_one_of("data.resample", self.resample, ("bicubic", "area"))
        clips = self.intensity == "percentiles" or not self.clip_again
        require(clips, "data.clip_again", f'be false with data.intensity "{self.intensity}"', self.clip_again)
        self._check_standard()
        require(len(self.crop) in (0, 3), "data.crop", "be empty (whole cases) or three sizes", self.crop)
        require(all(s >= 0 for s in self.crop), "data.crop", "not be negative", self.crop)
        require(self.crops >= 1, "data.crops", "be at least 1", self.crops)
        require(self.crops == 1 or self.crop != (), "data.crops", "be 1 without data.crop", self.crops)
        require_one_of("data.crop_places", self.crop_places, ("uniform", "balanced"))
        fraction = self.validation_fraction
        require(0.0 <= fraction < 1.0, "data.validation_fraction", "lie in [0, 1)", fraction)
        self._check_reading()

    def _check_reading(self) -> None:
        targets = {entry.label for entry in parse_label_map(self.label_map)}
        within = f"map to 0 and data.labels {self.labels}"
        require(targets <= {0, *self.labels}, "data.label_map", within, self.label_map)
        require(0 <= self.white < float("inf"), "data.white", "be 0 or positive", self.white)
        require(self.max_read_gb > 0, "data.max_read_gb", "be positive", self.max_read_gb)

    def _check_standard(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            one_each = f"be empty or have one number per entry of data.modalities ({len(self.modalities)})"
            require(len(values) in (0, len(self.modalities)), f"data.{name}", one_each, values)
        require(len(self.mean) == len(self.std), "data.std", "be given if and only if data.mean is", self.std)
        require(all(s > 0 for s in self.std), "data.std", "be positive", self.std)


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random changes of training cases, each with its own probability; all of them are off by default.

    ``flip`` has one probability per axis. ``affine`` turns by up to ``rotation_degrees`` about each axis, scales by a
    factor from ``scale`` and shifts by up to ``shift_mm``; labels move by nearest neighbour; what comes from outside
    repeats the border (``fill`` "border") or is 0, in image and label ("zeros"). ``jitter`` changes brightness,
    contrast, saturation and hue of a picture, in random order, by up to ``jitter_strengths``: see
    :func:`ncaseg.data.jitter.jitter`. For pictures are as well a ``cast`` of colour (a factor per channel), ``light``
    that falls off along a direction (by so much of itself), ``hair`` (so many lines) and dark ``corners`` (outside an
    ellipse of such a radius, in half sides): see :mod:`ncaseg.data.light`. Then follow Gaussian noise, blur (sigma in
    cells; each channel with probability ``blur_channel``), brightness (a factor), contrast (a factor about the mean,
    within the old range), gamma (an exponent on [0, 1]) and a loss of resolution (nearest sampling at
    ``low_resolution_zoom`` of the cells). Ranges are drawn from uniformly, once per case and step. All of this happens
    before ``data.mean`` and ``data.std``.
    """

    flip: tuple[float, float, float] = (0.0, 0.0, 0.0)
    affine: float = 0.0
    rotation_degrees: tuple[float, float, float] = (10.0, 10.0, 10.0)
    scale: tuple[float, float] = (0.9, 1.1)
    shift_mm: tuple[float, float, float] = (2.0, 2.0, 2.0)
    fill: str = "border"
    jitter: float = 0.0
    jitter_strengths: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    cast: float = 0.0
    cast_gain: tuple[float, float] = (0.8, 1.2)
    light: float = 0.0
    light_strength: tuple[float, float] = (0.1, 0.4)
    hair: float = 0.0
    hair_count: tuple[int, int] = (3, 20)
    corners: float = 0.0
    corners_radius: tuple[float, float] = (0.9, 1.3)
    noise: float = 0.0
    noise_std: tuple[float, float] = (0.0, 0.1)
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.5, 1.0)
    blur_channel: float = 1.0
    brightness: float = 0.0
    brightness_factor: tuple[float, float] = (0.75, 1.25)
    contrast: float = 0.0
    contrast_factor: tuple[float, float] = (0.75, 1.25)
    gamma: float = 0.0
    gamma_exponent: tuple[float, float] = (0.7, 1.5)
    low_resolution: float = 0.0
    low_resolution_zoom: tuple[float, float] = (0.5, 1.0)

    def __post_init__(self) -> None:
        once = ("affine", "jitter", "noise", "blur", "blur_channel", "brightness", "contrast", "gamma")
        for name in (*once, "low_resolution", "cast", "light", "hair", "corners"):
            require(0.0 <= getattr(self, name) <= 1.0, f"augment.{name}", "be a probability", getattr(self, name))
        require(all(0.0 <= p <= 1.0 for p in self.flip), "augment.flip", "be probabilities", self.flip)
        require_one_of("augment.fill", self.fill, ("border", "zeros"))
        strengths = self.jitter_strengths
        is_within = all(0.0 <= s <= 1.0 for s in strengths) and strengths[3] <= 0.5
        require(is_within, "augment.jitter_strengths", "lie in [0, 1], that of the hue in [0, 0.5]", strengths)
        for name in ("rotation_degrees", "shift_mm"):
            require(
                all(v >= 0.0 for v in getattr(self, name)), f"augment.{name}", "not be negative", getattr(self, name)
            )
        positive = (
            "scale",
            "blur_sigma",
            "brightness_factor",
            "contrast_factor",
            "gamma_exponent",
            "low_resolution_zoom",
            "cast_gain",
            "light_strength",
            "hair_count",
            "corners_radius",
        )
        for name in (*positive, "noise_std"):
            low, high = getattr(self, name)
            ordered = low <= high and (low > 0.0 or (name == "noise_std" and low == 0.0))
            require(ordered, f"augment.{name}", "be a range of positive numbers, the lower one first", (low, high))
        require(
            self.low_resolution_zoom[1] <= 1.0, "augment.low_resolution_zoom", "not exceed 1", self.low_resolution_zoom
        )
        require(self.light_strength[1] <= 1.0, "augment.light_strength", "not exceed 1", self.light_strength)

    @property
    def is_on(self) -> bool:
        """Whether anything can happen at all."""
        places = (*self.flip, self.affine)
        colours = (self.jitter, self.noise, self.blur, self.brightness, self.contrast, self.gamma, self.low_resolution)
        lights = (self.cast, self.light, self.hair, self.corners)
        return any(p > 0.0 for p in (*places, *colours, *lights))
