"""What a case is made of, and how it changes in training."""

import dataclasses

from ncaseg.settings.checks import require, require_one_of


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """How a case becomes tensors, and how the cases are split.

    ``labels`` are the foreground values that may occur; ``size`` is the grid of the network (empty: native size; 0
    keeps the native size of an axis), reached by zeros at the end of each axis (``fit`` "pad") or by interpolation
    ("resize"); ``clip_again`` repeats clip and min-max after that, as M3D-NCA does.
    ``intensity`` "percentiles" clips each channel and maps it to [0, 1]; "stored" takes the numbers of the file
    (pictures: 0..1). ``resample`` is how an image is resized: "bicubic", M3D-NCA's, or "area", bilinear with a filter
    as wide as the cells, for pictures that shrink a lot.
    """

    labels: tuple[int, ...] = (1,)
    modalities: tuple[int, ...] = (0,)
    clip_percentiles: tuple[float, float] = (0.5, 99.5)
    size: tuple[int, ...] = ()
    fit: str = "pad"
    clip_again: bool = False
    intensity: str = "percentiles"
    resample: str = "bicubic"
    validation_fraction: float = 0.15
    split_seed: int = 0
    cache: bool = True

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
        require_one_of("data.intensity", self.intensity, ("percentiles", "stored"))
        require_one_of("data.resample", self.resample, ("bicubic", "area"))
        clips = self.intensity == "percentiles" or not self.clip_again
        require(clips, "data.clip_again", 'be false with data.intensity "stored"', self.clip_again)
        fraction = self.validation_fraction
        require(0.0 <= fraction < 1.0, "data.validation_fraction", "lie in [0, 1)", fraction)


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random changes of training cases, each with its own probability; all of them are off by default.

    ``flip`` has one probability per axis. ``affine`` turns by up to ``rotation_degrees`` about each axis, scales by a
    factor from ``scale`` and shifts by up to ``shift_mm``; labels move by nearest neighbour. Then follow Gaussian
    noise, blur (sigma in cells; each channel with probability ``blur_channel``), brightness (a factor), contrast (a
    factor about the mean, within the old range), gamma (an exponent on [0, 1]) and a loss of resolution (nearest
    sampling at ``low_resolution_zoom`` of the cells). Ranges are drawn from uniformly, once per case and step.
    """

    flip: tuple[float, float, float] = (0.0, 0.0, 0.0)
    affine: float = 0.0
    rotation_degrees: tuple[float, float, float] = (10.0, 10.0, 10.0)
    scale: tuple[float, float] = (0.9, 1.1)
    shift_mm: tuple[float, float, float] = (2.0, 2.0, 2.0)
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
        chances = ("affine", "noise", "blur", "blur_channel", "brightness", "contrast", "gamma", "low_resolution")
        for name in chances:
            require(0.0 <= getattr(self, name) <= 1.0, f"augment.{name}", "be a probability", getattr(self, name))
        require(all(0.0 <= p <= 1.0 for p in self.flip), "augment.flip", "be probabilities", self.flip)
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
        )
        for name in (*positive, "noise_std"):
            low, high = getattr(self, name)
            ordered = low <= high and (low > 0.0 or (name == "noise_std" and low == 0.0))
            require(ordered, f"augment.{name}", "be a range of positive numbers, the lower one first", (low, high))
        require(
            self.low_resolution_zoom[1] <= 1.0, "augment.low_resolution_zoom", "not exceed 1", self.low_resolution_zoom
        )

    @property
    def is_on(self) -> bool:
        """Whether anything can happen at all."""
        chances = (self.affine, self.noise, self.blur, self.brightness, self.contrast, self.gamma, self.low_resolution)
        return any(p > 0.0 for p in (*self.flip, *chances))
