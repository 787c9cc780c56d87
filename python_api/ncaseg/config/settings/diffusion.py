"""How masks are noised, learned and sampled."""

import dataclasses

from ncaseg.config.settings.checks import require, require_one_of


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """How masks are noised, learned and sampled (with ``model.kind`` "medsegdiff").

    There are ``timesteps`` T of the ``schedule`` "linear" (0.1 / T to 20 / T) or "cosine". The network answers the
    ``target`` "eps", "x0" or "v" in its channel 0, and is told t / T (``time`` "fraction") or t itself ("index").
    ``mask`` "signed" codes background and lesion as -1 and +1, "unit" as 0 and 1; the implied x_0 is cut to ``clip``.
    The loss is ``noise_weight`` times the squared error of the answer, weighted over t by min-SNR where ``snr_gamma``
    is above 0, plus ``image_weight`` times the squared errors of the first ``image_channels`` painted image channels
    (0: all of them) against the mask, summed over the channels.
    ``sampler`` "ddpm" or "ddim" visits ``sample_steps`` of the T times. Validation takes one DDIM sample of
    ``validate_steps`` for the first ``validate_cases`` cases (0: all).
    """

    timesteps: int = 100
    schedule: str = "linear"
    target: str = "eps"
    time: str = "fraction"
    mask: str = "signed"
    clip: tuple[float, float] = (-1.0, 1.0)
    noise_weight: float = 1.0
    snr_gamma: float = 0.0
    image_weight: float = 1.0
    image_channels: int = 0
    sampler: str = "ddpm"
    sample_steps: int = 100
    validate_steps: int = 10
    validate_cases: int = 8

    def __post_init__(self) -> None:
        require_one_of("diffusion.schedule", self.schedule, ("linear", "cosine"))
        least = 21 if self.schedule == "linear" else 1
        require(self.timesteps >= least, "diffusion.timesteps", f"be at least {least}", self.timesteps)
        require_one_of("diffusion.target", self.target, ("eps", "x0", "v"))
        require_one_of("diffusion.time", self.time, ("fraction", "index"))
        require_one_of("diffusion.mask", self.mask, ("signed", "unit"))
        low, high = self.clip
        least_value = -1.0 if self.mask == "signed" else 0.0
        require(low <= least_value and high >= 1.0, "diffusion.clip", "hold both values of the mask", self.clip)
        for name in ("noise_weight", "snr_gamma", "image_weight", "image_channels", "validate_cases"):
            require(getattr(self, name) >= 0, f"diffusion.{name}", "not be negative", getattr(self, name))
        require_one_of("diffusion.sampler", self.sampler, ("ddpm", "ddim"))
        for name in ("sample_steps", "validate_steps"):
            value = getattr(self, name)
            require(1 <= value <= self.timesteps, f"diffusion.{name}", "lie between 1 and timesteps", value)
