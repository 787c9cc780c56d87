"""Schedules and samplers against those of MONAI and of diffusers, where these are installed."""

import numpy as np
import pytest
import torch

from ncaseg.diffusion import objective, sampler, schedule

TIMESTEPS = 100
KINDS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
SHAPE = (2, 1, 4, 5)
LARGE = 1e9  # a range that cuts nothing


def answer(x_t, t):
    """Stands in for a network: not linear, other values at every time, as large as masks and noise are."""
    return torch.tanh(1.7 * x_t + 0.01 * t - 0.3)


def start():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def sample_ours(name, target, steps, clip):
    """What our sampler makes of `answer`; its noise is drawn as the others draw theirs."""
    drawn = torch.Generator().manual_seed(2)

    def draw_noise(t):
        return start() if t == TIMESTEPS else torch.randn(SHAPE, generator=drawn, dtype=torch.float64)

    sample = {"ddpm": sampler.sample_ddpm, "ddim": sampler.sample_ddim}[name]
    return sample(answer, draw_noise, schedule.linear(TIMESTEPS), steps=steps, target=target, clip=clip)


def in_float64(scheduler):
    """The same scheduler on our betas, whose products theirs hold in float32."""
    ours = schedule.linear(TIMESTEPS)
    scheduler.betas, scheduler.alphas = torch.from_numpy(ours.betas), torch.from_numpy(1 - ours.betas)
    scheduler.alphas_cumprod = torch.from_numpy(ours.alpha_bar)
    return scheduler


def walk(scheduler, steps, **options):
    """Their steps at the times that ours visits."""
    scheduler.set_timesteps(steps)
    x = start()
    for t, _, _ in sampler.visits(schedule.linear(TIMESTEPS), steps):
        x = scheduler.step(answer(x, t), t, x, **options)[0]
    return x


@pytest.mark.parametrize(("name", "theirs"), [("linear", "linear_beta"), ("cosine", "cosine")])
def test_schedules_are_those_of_monai(name, theirs):
    schedulers = pytest.importorskip("monai.networks.schedulers")
    limits = {"beta_start": 1e-3, "beta_end": 0.2} if name == "linear" else {}
    found = schedulers.DDPMScheduler(TIMESTEPS, schedule=theirs, **limits)
    ours = schedule.make_schedule(name, TIMESTEPS)
    np.testing.assert_allclose(ours.betas, found.betas.numpy(), atol=2e-5)
    np.testing.assert_allclose(ours.alpha_bar, found.alphas_cumprod.numpy(), atol=2e-6)


@pytest.mark.parametrize("target", objective.TARGETS)
def test_ddpm_is_that_of_monai(target):
    schedulers = pytest.importorskip("monai.networks.schedulers")
    theirs = schedulers.DDPMScheduler(TIMESTEPS, variance_type="fixed_large", prediction_type=KINDS[target])
    found = walk(in_float64(theirs), TIMESTEPS, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(sample_ours("ddpm", target, None, (-1.0, 1.0)), found, rtol=0, atol=1e-9)


@pytest.mark.parametrize("steps", [10, 100])
@pytest.mark.parametrize("target", objective.TARGETS)
def test_ddim_is_that_of_monai(target, steps):
    """Without the cut, after which MONAI keeps the noise that belongs to the x_0 before it."""
    schedulers = pytest.importorskip("monai.networks.schedulers")
    theirs = schedulers.DDIMScheduler(TIMESTEPS, clip_sample=False, prediction_type=KINDS[target])
    found = walk(in_float64(theirs), steps)
    torch.testing.assert_close(sample_ours("ddim", target, steps, (-LARGE, LARGE)), found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("target", objective.TARGETS)
def test_ddpm_is_that_of_diffusers(target):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(TIMESTEPS, variance_type="fixed_large", prediction_type=KINDS[target])
    found = walk(in_float64(theirs), TIMESTEPS, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(sample_ours("ddpm", target, None, (-1.0, 1.0)), found, rtol=0, atol=1e-9)


@pytest.mark.parametrize("steps", [10, 100])
@pytest.mark.parametrize("target", objective.TARGETS)
def test_ddim_is_that_of_diffusers(target, steps):
    """With the cut: the noise is then the one that belongs to what is left of x_0."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDIMScheduler(TIMESTEPS, prediction_type=KINDS[target], timestep_spacing="trailing")
    found = walk(in_float64(theirs), steps, use_clipped_model_output=True)
    torch.testing.assert_close(sample_ours("ddim", target, steps, (-1.0, 1.0)), found, rtol=0, atol=1e-9)
