"""cDAL: what its generator and discriminator are, and how they are trained and sampled."""

import dataclasses

from ncaseg.config.settings.checks import require, require_one_of

NEEDS_DISCRIMINATOR = ("raw", "normalized", "sigmoid", "shuffled")


@dataclasses.dataclass(frozen=True)
class CdalConfig:
    """A coarse diffusion of labels (with ``model.kind`` "cdal"); see :mod:`ncaseg.diffusion.coarse`.

    There are ``timesteps`` T of a schedule that begins at ``offset``. ``inverted`` codes foreground as -1. A ``latent``
    of so many numbers goes through ``latent_layers`` layers of ``latent_width`` into the generator's norms; 0 removes
    it, ``latent_on`` false sets it to zero. ``generator`` "ncsnpp" or "library" (MONAI) reads ``width``,
    ``multipliers`` (per level), ``blocks`` (per level), ``attention_levels`` and ``encoder_blocks`` ("ncsnpp" only);
    "nca" reads ``channels``, ``hidden``, ``kernel_sizes``, ``steps``, ``scales``, ``pool``, ``perception``,
    ``num_filters``, ``padding`` and ``fire_rate`` of the section ``model``.
    ``loss`` is "mse", "mse_dice", "bce" or "bce_dice", always of the clean label.

    ``discriminator`` is "small", "large" or "none", with ``d_width``, ``d_time_width`` and ``d_init`` ("fan",
    "normal"), trained as ``train`` says but with ``d_lr``, ``d_lr_final`` and ``d_betas``, and with R1: ``r1_gamma``
    / 2 times the squared gradient, every ``r1_every`` steps. ``d_updates`` "joint" adds the gradients of real and fake
    pairs, "apart" takes one step for each. ``fake`` is a "posterior" sample or the estimate noised "forward"; ``pair``
    as in :func:`ncaseg.diffusion.coarse.noisy_pair`.

    ``attention`` multiplies the label before it is noised for the generator: "raw", "normalized", "sigmoid" or
    "shuffled" map of the features ``attention_index`` of the discriminator, or without one "constant"
    (``attention_value``), "zero" and "off". ``adversarial_weight`` lets the generator learn from the discriminator.
    Sampling adds ``posterior_noise`` or takes the mean. With a ``window`` of three sizes (0: the whole axis), each
    ``overlap`` with the next, volumes are sampled window by window and the results averaged. Validation samples the
    first ``validate_cases`` cases (0: all) once, whole.
    """

    generator: str = "ncsnpp"
    timesteps: int = 2
    offset: float = 1e-3
    inverted: bool = False
    latent: int = 50
    latent_width: int = 128
    latent_layers: int = 4
    latent_on: bool = True
    width: int = 32
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention_levels: tuple[int, ...] = (1,)
    encoder_blocks: int = 6
    loss: str = "mse"
    discriminator: str = "small"
    d_width: int = 32
    d_time_width: int = 128
    d_init: str = "fan"
    d_lr: float = 1.25e-4
    d_lr_final: float = 0.08
    d_betas: tuple[float, float] = (0.5, 0.9)
    d_updates: str = "joint"
    r1_gamma: float = 1.0
    r1_every: int = 10
    pair: str = "markov"
    fake: str = "posterior"
    attention: str = "raw"
    attention_index: int = 2
    attention_value: float = 1.0
    adversarial_weight: float = 0.0
    posterior_noise: bool = True
    window: tuple[int, ...] = ()
    overlap: float = 0.0
    validate_cases: int = 8

    def __post_init__(self) -> None:
        require_one_of("cdal.generator", self.generator, ("ncsnpp", "library", "nca"))
        positive = ("timesteps", "latent_width", "latent_layers", "width", "blocks", "d_width", "d_time_width")
        for name in (*positive, "r1_every"):
            require(getattr(self, name) >= 1, f"cdal.{name}", "be at least 1", getattr(self, name))
        for name in ("latent", "encoder_blocks", "r1_gamma", "adversarial_weight", "validate_cases", "d_lr_final"):
            require(getattr(self, name) >= 0, f"cdal.{name}", "not be negative", getattr(self, name))
        require(0.0 <= self.offset < 1.0, "cdal.offset", "lie in [0, 1)", self.offset)
        even = self.width % 4 == 0 and self.d_time_width % 2 == 0
        widths = (self.width, self.d_time_width)
        require(even, "cdal.width and cdal.d_time_width", "be multiples of 4 and of 2", widths)
        known = len(self.multipliers) >= 1 and min(self.multipliers, default=0) >= 1
        require(known, "cdal.multipliers", "be positive, one per level", self.multipliers)
        inside = all(0 <= level < len(self.multipliers) for level in self.attention_levels)
        require(inside, "cdal.attention_levels", "be levels, counted from 0", self.attention_levels)
        require_one_of("cdal.loss", self.loss, ("mse", "mse_dice", "bce", "bce_dice"))
        require_one_of("cdal.discriminator", self.discriminator, ("small", "large", "none"))
        require_one_of("cdal.d_init", self.d_init, ("fan", "normal"))
        require_one_of("cdal.d_updates", self.d_updates, ("joint", "apart"))
        require_one_of("cdal.pair", self.pair, ("markov", "shared_noise"))
        require_one_of("cdal.fake", self.fake, ("posterior", "forward"))
        require(self.d_lr > 0, "cdal.d_lr", "be positive", self.d_lr)
        require(all(0 <= b < 1 for b in self.d_betas), "cdal.d_betas", "lie in [0, 1)", self.d_betas)
        require_one_of("cdal.attention", self.attention, (*NEEDS_DISCRIMINATOR, "off", "constant", "zero"))
        features = {"none": 1, "small": 5, "large": 7}[self.discriminator]
        has_features = 0 <= self.attention_index < features or self.discriminator == "none"
        require(has_features, "cdal.attention_index", f"be one of 0..{features - 1}", self.attention_index)
        require(len(self.window) in (0, 3), "cdal.window", "be empty (whole volumes) or three sizes", self.window)
        require(all(w >= 0 for w in self.window), "cdal.window", "not be negative", self.window)
        require(0.0 <= self.overlap < 1.0, "cdal.overlap", "lie in [0, 1)", self.overlap)
        if self.discriminator == "none":
            alone = self.attention not in NEEDS_DISCRIMINATOR
            require(alone, "cdal.attention", 'be off, constant or zero with discriminator "none"', self.attention)
            weight = self.adversarial_weight
            require(weight == 0.0, "cdal.adversarial_weight", 'be 0 with discriminator "none"', weight)
        if self.generator == "library":
            require(self.latent > 0, "cdal.latent", 'be positive with generator "library"', self.latent)
            grouped = self.width % 8 == 0
            require(grouped, "cdal.width", 'be a multiple of 8 with generator "library"', self.width)
