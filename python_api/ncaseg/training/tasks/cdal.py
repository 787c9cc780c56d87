"""cDAL: a discriminator learns to tell real pairs of noisy labels from sampled ones, a generator the clean label.

The generator's noisy input is made from the label where the discriminator looks, which is its only use unless
``cdal.adversarial_weight`` is above 0. Without a discriminator this is a coarse diffusion with one network.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ncaseg.config import CdalConfig, CdalModelConfig, Config
from ncaseg.data.dataset import CaseStore
from ncaseg.diffusion import coarse
from ncaseg.levels import Triple, or_native, smaller
from ncaseg.models.base import Segmenter
from ncaseg.models.cdal.attention import attention_map
from ncaseg.models.cdal.base import kept_bytes
from ncaseg.models.cdal.build import build_discriminator
from ncaseg.models.multilevel import FLOAT_BYTES
from ncaseg.sampling.cdal import decode, encode, generator_of, sample_labels, to_samples
from ncaseg.streams import FIRE, NOISE, TIME, generator, normal, stream
from ncaseg.training.batches import load_batch
from ncaseg.training.optimizers import make_optimizer, set_rate
from ncaseg.training.tasks.base import Outcome, Parts, Rate, clip_gradient, keeps_states_only, trained_cells
from ncaseg.training.validation import mean_dice

D_COLUMNS = ("d_real", "d_fake", "r1", "d_grad_norm", "d_lr", "adversarial")
ATTENTION_COLUMNS = ("attention_mean", "attention_std", "attention_min", "attention_max")
FIXED_ATTENTION = ("off", "constant", "zero")
WEIGHT_COPIES = 4  # a weight, its gradient, two moments
D_STEP, G_STEP = 0, 1  # the two halves of an optimiser step, which share no random number
TO_TAU, TO_NEXT, LATENT, POSTERIOR, AGAIN_TO_TAU, AGAIN_TO_NEXT = range(6)  # what normal numbers are for


class Batch(NamedTuple):
    """Clean labels in their coding and images, ``[N, C, *S]`` with the axes of the networks; its number in the step."""

    x0: Tensor
    image: Tensor
    number: int


@dataclass(frozen=True)
class Draws:
    """What is random in one half of a step for a batch: functions of ``seed`` and of the place in the batch.

    ``tau`` ``[N]`` int64; ``z`` ``[N, latent]`` or None; noises are shaped as ``x0``.
    """

    seed: int
    x0: Tensor
    tau: Tensor
    z: Tensor | None

    def noise(self, purpose: int) -> Tensor:
        return normal(self.x0.shape, seed=self.seed, first_sample=0, step=purpose).to(self.x0)


class Adversarial:
    """Generator and discriminator in turns; see :class:`ncaseg.training.tasks.base.Task`."""

    def __init__(self, cfg: Config, model: Segmenter) -> None:
        self.cfg, self.model = cfg, model
        self.generator = generator_of(model)
        self.schedule = coarse.make_coarse_schedule(cfg.cdal.timesteps, offset=cfg.cdal.offset)
        self.optimizer = make_optimizer(model, cfg.train)
        self.columns: tuple[str, ...] = ("mse",)
        device = next(model.parameters()).device
        assert isinstance(cfg.model, CdalModelConfig)
        self.discriminator = build_discriminator(cfg.model, cfg.cdal)
        cdal = cfg.cdal
        self.d_train = dataclasses.replace(cfg.train, lr=cdal.d_lr, lr_final=cdal.d_lr_final, betas=cdal.d_betas)
        if self.discriminator is not None:
            self.discriminator.to(device)
            self.d_optimizer = make_optimizer(self.discriminator, self.d_train)
            self.columns += D_COLUMNS
            if cdal.attention not in FIXED_ATTENTION:
                self.columns += ATTENTION_COLUMNS

    def check_size(self, size: Triple) -> None:
        window = smaller(or_native(self.cfg.cdal.window, size), size)
        for cells in (or_native(self.cfg.data.crop, size), window):
            self.generator.check_size(cells)

    def step_bytes(self, size: Triple, keep_every: int | None = None) -> int:
        """Bytes of the network that keeps more, as they learn one after the other, and of all weights.

        The gradient penalty is differentiated as well, which keeps three times as much.
        """
        batch, cells = trained_cells(self.cfg, size)
        keep_every = self.cfg.train.keep_every if keep_every is None else keep_every
        kept = self.generator.training_bytes(batch, cells, keep_every, has_kernel=keeps_states_only(self.cfg))
        if self.generator.steps:  # few weights, and a discriminator that keeps less than the states of automata
            return kept
        networks = [self.generator] if self.discriminator is None else [self.generator, self.discriminator]
        if self.discriminator is not None:
            ndim, channels = self.generator.ndim, self.generator.label_channels
            x = torch.empty(1, channels, *cells[:ndim], device="meta")
            penalised = 3 if self.cfg.cdal.r1_gamma > 0 else 1
            samples = batch * (1 if ndim == 3 else cells[2])
            own = samples * penalised * kept_bytes(self.discriminator, x, torch.zeros(1, device="meta"), x)
            kept = max(kept, own)
        weights = sum(p.numel() for network in networks for p in network.parameters())
        return kept + FLOAT_BYTES * WEIGHT_COPIES * weights

    def step(self, volumes: CaseStore, batches: list[tuple[str, ...]], step: int, rate: Rate) -> Outcome:
        loaded = [self._load(volumes, ids, step, number) for number, ids in enumerate(batches)]
        parts = Parts()
        if self.discriminator is not None:
            d_loss, d_norm = self._discriminator_step(loaded, step, rate(self.d_train), parts)
            if not Outcome(d_loss, d_norm, False).is_finite:
                return Outcome(d_loss, d_norm, False, parts)
        set_rate(self.optimizer, rate(self.cfg.train))
        loss = self._generator_gradient(loaded, step, parts)
        outcome = Outcome(loss, clip_gradient(self.model, self.cfg.train), True, parts)
        if outcome.is_finite:
            self.optimizer.step()
        return outcome

    def validation_dice(self, model: Segmenter, volumes: CaseStore, ids: Sequence[str]) -> float | None:
        """One sample per case."""
        return validation_dice(model, volumes, ids, self.cfg)

    def state(self) -> dict[str, Any]:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.discriminator is not None:
            state["discriminator"] = self.discriminator.state_dict()
            state["discriminator_optimizer"] = self.d_optimizer.state_dict()
        return state

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.discriminator is not None:
            self.discriminator.load_state_dict(state["discriminator"])
            self.d_optimizer.load_state_dict(state["discriminator_optimizer"])

    def _load(self, volumes: CaseStore, ids: tuple[str, ...], step: int, number: int) -> Batch:
        device = next(self.model.parameters()).device
        image, mask = (tensor.to(device) for tensor in load_batch(volumes, ids, self.cfg, step, number))
        ndim = self.generator.ndim
        return Batch(to_samples(encode(mask, self.cfg), ndim), to_samples(image, ndim), number)

    def _draw(self, batch: Batch, step: int, half: int) -> Draws:
        train, cdal, x0 = self.cfg.train, self.cfg.cdal, batch.x0
        key = (step, batch.number, half)
        draw = generator(train.seed, TIME, *key)
        tau = torch.randint(cdal.timesteps, (len(x0),), generator=draw).to(x0.device)
        seed, latent, z = stream(train.seed, NOISE, *key), self.generator.latent, None
        if latent > 0:
            z = normal((len(x0), latent), seed=seed, first_sample=0, step=LATENT).to(x0) * cdal.latent_on
        return Draws(seed, x0, tau, z)

    def _pair(self, x0: Tensor, draws: Draws, to_tau: int = TO_TAU, to_next: int = TO_NEXT) -> tuple[Tensor, Tensor]:
        noises = (draws.noise(to_tau), draws.noise(to_next))
        return coarse.noisy_pair(self.schedule, x0, draws.tau, noises, pair=self.cfg.cdal.pair)

    def _logits(self, x_next: Tensor, batch: Batch, draws: Draws, step: int, half: int) -> Tensor:
        """What the generator's estimate of the clean label is the tanh of."""
        seed = stream(self.cfg.train.seed, FIRE, step, batch.number, half)
        keep_every = self.cfg.train.keep_every
        with self._autocast(x_next):
            logits = self.generator.logits(x_next, draws.tau, batch.image, draws.z, seed=seed, keep_every=keep_every)
        return logits.float()

    def _autocast(self, x: Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.cfg.train.precision == "bfloat16")

    def _fake(self, x0_hat: Tensor, x_next: Tensor, draws: Draws) -> Tensor:
        """What the estimate says x_tau is."""
        noise = draws.noise(POSTERIOR)
        if self.cfg.cdal.fake == "forward":
            return coarse.renoise(self.schedule, x0_hat, draws.tau, noise)
        return coarse.posterior_sample(self.schedule, x0_hat, x_next, draws.tau, noise)

    def _discriminator_step(self, batches: list[Batch], step: int, lr: float, parts: Parts) -> tuple[float, float]:
        """Train the discriminator once; its loss and the norm of its gradient, at which it stays if not finite."""
        assert self.discriminator is not None
        set_rate(self.d_optimizer, lr)
        drawn = [(batch, self._draw(batch, step, D_STEP)) for batch in batches]
        halves = [self._real_loss, self._fake_loss]
        groups = [halves] if self.cfg.cdal.d_updates == "joint" else [[half] for half in halves]
        total, norm = 0.0, 0.0
        for group in groups:
            self.d_optimizer.zero_grad(set_to_none=True)
            for batch, draws in drawn:
                for half in group:
                    loss = half(batch, draws, step, parts) / len(batches)
                    loss.backward()
                    total += loss.item()
            norm = clip_gradient(self.discriminator, self.d_train)
            if not Outcome(total, norm, False).is_finite:
                break
            self.d_optimizer.step()
        parts |= {"d_grad_norm": [norm], "d_lr": [lr]}
        return total, norm

    def _real_loss(self, batch: Batch, draws: Draws, step: int, parts: Parts) -> Tensor:
        """Softplus of minus the logits of real pairs, and R1 on x_tau where it is due."""
        assert self.discriminator is not None
        cdal = self.cfg.cdal
        has_r1 = cdal.r1_gamma > 0 and step % cdal.r1_every == 0
        x_tau, x_next = self._pair(batch.x0, draws)
        x_tau.requires_grad_(has_r1)
        with self._autocast(x_tau):
            logits = self.discriminator(x_tau, draws.tau, x_next).float()
        loss = F.softplus(-logits).mean()
        parts.setdefault("d_real", []).append(loss.item())
        if has_r1:
            penalty = squared_gradient(logits, x_tau) * cdal.r1_gamma / 2
            parts.setdefault("r1", []).append(penalty.item())
            loss = loss + penalty
        return loss

    def _fake_loss(self, batch: Batch, draws: Draws, step: int, parts: Parts) -> Tensor:
        """Softplus of the logits of pairs whose x_tau the generator has sampled."""
        assert self.discriminator is not None
        _, x_next = self._pair(batch.x0, draws)
        with torch.no_grad():
            estimate = torch.tanh(self._logits(x_next, batch, draws, step, D_STEP))
            fake = self._fake(estimate, x_next, draws)
        with self._autocast(fake):
            logits = self.discriminator(fake, draws.tau, x_next).float()
        loss = F.softplus(logits).mean()
        parts.setdefault("d_fake", []).append(loss.item())
        return loss

    def _generator_gradient(self, batches: list[Batch], step: int, parts: Parts) -> float:
        """Leave the mean gradient over the batches in the generator; the mean loss."""
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for batch in batches:
            loss = self._generator_loss(batch, step, parts) / len(batches)
            loss.backward()
            total += loss.item()
        return total

    def _generator_loss(self, batch: Batch, step: int, parts: Parts) -> Tensor:
        cdal = self.cfg.cdal
        draws = self._draw(batch, step, G_STEP)
        shown = self._attend(batch, draws, parts)
        _, x_next = self._pair(shown, draws, AGAIN_TO_TAU, AGAIN_TO_NEXT)
        logits = self._logits(x_next, batch, draws, step, G_STEP)
        x0_hat, loss = torch.tanh(logits), label_loss(logits, batch.x0, cdal)
        parts.setdefault("mse", []).append(F.mse_loss(x0_hat.detach(), batch.x0).item())
        if cdal.adversarial_weight > 0:
            fooled = self._adversarial_loss(x0_hat, x_next, draws)
            parts.setdefault("adversarial", []).append(fooled.item())
            loss = loss + cdal.adversarial_weight * fooled
        return loss

    def _attend(self, batch: Batch, draws: Draws, parts: Parts) -> Tensor:
        """The label of which the generator's noisy input is made, shaped as x0."""
        cdal, x0 = self.cfg.cdal, batch.x0
        if cdal.attention in FIXED_ATTENTION:
            return x0 * {"off": 1.0, "constant": cdal.attention_value, "zero": 0.0}[cdal.attention]
        assert self.discriminator is not None
        x_tau, x_next = self._pair(x0, draws)
        with self._autocast(x0):
            attention = attention_map(
                self.discriminator,
                x_tau,
                draws.tau,
                x_next,
                index=cdal.attention_index,
                kind=cdal.attention,
                seed=draws.seed,
            ).float()
        std, mean = torch.std_mean(attention, correction=0)
        for name, value in zip(ATTENTION_COLUMNS, (mean, std, attention.min(), attention.max()), strict=True):
            parts.setdefault(name, []).append(value.item())
        return attention * x0

    def _adversarial_loss(self, x0_hat: Tensor, x_next: Tensor, draws: Draws) -> Tensor:
        """Softplus of minus the discriminator's logits of what was sampled, given the input of the generator."""
        assert self.discriminator is not None
        self.discriminator.requires_grad_(False)
        with self._autocast(x_next):
            logits = self.discriminator(self._fake(x0_hat, x_next, draws), draws.tau, x_next).float()
        self.discriminator.requires_grad_(True)
        return F.softplus(-logits).mean()


def validation_dice(model: Segmenter, volumes: CaseStore, ids: Sequence[str], cfg: Config) -> float | None:
    """Mean hard Dice of the merged foreground at native geometry of one sample per case; None without cases."""
    cdal = cfg.cdal
    chosen = ids[: cdal.validate_cases] if cdal.validate_cases > 0 else ids

    def answer(image: Tensor, *, seed: int, first_sample: int) -> Tensor:
        return decode(sample_labels(model, image, cfg, seed=seed, first_sample=first_sample), cdal)

    def find(maps: np.ndarray) -> np.ndarray:
        return maps.argmax(0) > 0 if cfg.model.has_background else maps[0] > 0.5

    return mean_dice(model, volumes, chosen, cfg.train, answer=answer, find=find)


def label_loss(logits: Tensor, x0: Tensor, cdal: CdalConfig) -> Tensor:
    """The error of an estimate of coded labels ``[B, C, *S]``: its square or cross-entropy, alone or with soft Dice.

    The estimate is the tanh of ``logits``, the probability of +1 therefore the sigmoid of their double: cross-entropy
    keeps its gradient where the tanh has rounded to one. Dice is that of each channel over all samples together, with 1
    added to both sides of the fraction: slices without a structure would drown its gradient otherwise.
    """
    x0_hat = torch.tanh(logits)
    if cdal.loss.startswith("bce"):
        error = F.binary_cross_entropy_with_logits(2 * logits, (x0 + 1) / 2)
    else:
        error = F.mse_loss(x0_hat, x0)
    if not cdal.loss.endswith("_dice"):
        return error
    p, target = decode(x0_hat, cdal), decode(x0, cdal)
    others = [axis for axis in range(p.ndim) if axis != 1]
    both, either = (p * target).sum(others), (p + target).sum(others)
    return error + 1 - ((2 * both + 1) / (either + 1)).mean()


def squared_gradient(logits: Tensor, x: Tensor) -> Tensor:
    """The mean over the batch of the squared norm of the gradient of ``logits`` ``[B]`` by ``x`` ``[B, ...]``.

    Reference:
        Mescheder, Geiger, Nowozin, Which training methods for GANs do actually converge?, ICML 2018, equation 9.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return gradient.square().flatten(1).sum(dim=1).mean()
