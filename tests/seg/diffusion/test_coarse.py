"""The coarse diffusion against its tables, and against MONAI and diffusers where they are installed."""

import pytest
import torch

from ncaseg.diffusion.coarse import (
    CoarseSchedule,
    make_coarse_schedule,
    noisy_pair,
    posterior_sample,
    renoise,
    sample,
)

BETAS = {
    (2, 1e-3): [0.92132403, 0.99945103],
    (2, 0.0): [0.92093619, 0.99945379],
    (4, 1e-3): [0.47825530, 0.84920600, 0.95641771, 0.98740390],
    (4, 0.0): [0.47632028, 0.84902258, 0.95647305, 0.98745113],
}
SIGNALS = {2: [1, 0.28049236, 0.00657195], 4: [1, 0.72231897, 0.28049236, 0.05855663, 0.00657195]}
NOISES = {2: [0, 0.95985626, 0.99997841], 4: [0, 0.69156005, 0.95985626, 0.99828409, 0.99997841]}
POSTERIORS = {  # c1, c2, variance, std
    2: [(1, 0, 0, 0), (0.28035049, 0.02158759, 0.92085803, 0.95961348)],
    4: [
        (1, 0, 0, 0),
        (0.66577836, 0.20157628, 0.44081915, 0.66394213),
        (0.26919089, 0.19300081, 0.88420244, 0.94032039),
        (0.05782154, 0.11185234, 0.98406071, 0.99199834),
    ],
}


@pytest.mark.parametrize(("steps", "offset"), BETAS)
def test_betas(steps, offset):
    got = make_coarse_schedule(steps, offset=offset).beta
    torch.testing.assert_close(got, torch.tensor(BETAS[steps, offset], dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("steps", SIGNALS)
def test_scales_of_signal_and_noise(steps):
    schedule = make_coarse_schedule(steps)
    for got, want in ((schedule.signal, SIGNALS[steps]), (schedule.noise, NOISES[steps])):
        torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), atol=1e-6, rtol=0)
    assert schedule.signal[0] == 1 and schedule.noise[0] == 0


@pytest.mark.parametrize("steps", POSTERIORS)
def test_posterior(steps):
    c1, c2, std = make_coarse_schedule(steps).posterior()
    got = torch.stack([c1, c2, std.square(), std], dim=1)
    torch.testing.assert_close(got, torch.tensor(POSTERIORS[steps], dtype=torch.float64), atol=1e-6, rtol=0)


def test_level_zero_is_the_label_and_the_last_estimate_is_the_sample():
    schedule = make_coarse_schedule(4)
    x0, other, noise = torch.randn(3, 5, 2, 7)
    tau = torch.zeros(5, dtype=torch.int64)
    x_tau, _ = noisy_pair(schedule, x0, tau, (noise, other))
    assert torch.equal(x_tau, x0) and torch.equal(renoise(schedule, x0, tau, noise), x0)
    assert torch.equal(posterior_sample(schedule, x0, other, tau, noise), x0)


def test_pair_is_one_markov_step():
    schedule = make_coarse_schedule(4)
    x0 = torch.tensor([1.0, -1.0]).repeat(100_000)
    a, b = torch.randn(2, len(x0))
    for tau in range(4):
        times = torch.full((len(x0),), tau)
        x_tau, x_next = noisy_pair(schedule, x0, times, (a, b))
        added = (x_next - (1 - schedule.beta[tau]).sqrt() * x_tau) / schedule.beta[tau].sqrt()
        torch.testing.assert_close(added.float(), b, atol=1e-5, rtol=1e-5)
        assert (x_next * x0).mean().item() == pytest.approx(SIGNALS[4][tau + 1], abs=0.01)
        assert x_next.var().item() == pytest.approx(1.0, abs=0.01)
        _, shared = noisy_pair(schedule, x0, times, (a, b), pair="shared_noise")
        want = schedule.signal[tau + 1] * x0 + schedule.noise[tau + 1] * a
        torch.testing.assert_close(shared, want.float(), atol=1e-6, rtol=1e-6)


def test_every_sample_has_its_own_time():
    schedule = make_coarse_schedule(4)
    x0, x_next, noise, more = torch.randn(4, 4, 3)
    tau = torch.tensor([2, 0, 3, 1])
    together = noisy_pair(schedule, x0, tau, (noise, more)), posterior_sample(schedule, x0, x_next, tau, noise)
    for i in range(4):
        one = slice(i, i + 1)
        pair = noisy_pair(schedule, x0[one], tau[one], (noise[one], more[one]))
        assert all(torch.equal(whole[one], alone) for whole, alone in zip(together[0], pair, strict=True))
        alone = posterior_sample(schedule, x0[one], x_next[one], tau[one], noise[one])
        assert torch.equal(together[1][one], alone)


def test_posterior_undoes_the_forward_step_in_distribution():
    schedule = make_coarse_schedule(2)
    x0 = torch.ones(200_000)
    a, b, c = torch.randn(3, len(x0))
    tau = torch.ones(len(x0), dtype=torch.int64)
    x_tau, x_next = noisy_pair(schedule, x0, tau, (a, b))
    back = posterior_sample(schedule, x0, x_next, tau, c)
    assert back.mean().item() == pytest.approx(x_tau.mean().item(), abs=0.01)
    assert back.std().item() == pytest.approx(x_tau.std().item(), abs=0.01)
    covariance = ((back - back.mean()) * (x_next - x_next.mean())).mean()
    assert covariance.item() == pytest.approx(
        ((x_tau - x_tau.mean()) * (x_next - x_next.mean())).mean().item(), abs=0.01
    )


def test_sampling_visits_every_level_once_and_returns_the_last_estimate():
    schedule = make_coarse_schedule(4)
    visited, asked = [], []

    def predict(x, tau):
        visited.append(tau)
        return torch.full_like(x, float(tau))

    def draw(level):
        asked.append(level)
        return torch.ones(2, 3)

    assert torch.equal(sample(predict, draw, schedule), torch.zeros(2, 3))
    assert visited == [3, 2, 1, 0] and asked == [4, 3, 2, 1]
    asked.clear()
    sample(predict, draw, schedule, posterior_noise=False)
    assert asked == [4]


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="num_steps must be at least 1; got 0"):
        make_coarse_schedule(0)
    with pytest.raises(ValueError, match="offset"):
        make_coarse_schedule(2, offset=1.0)


def _compare_means(step, steps):
    """What a library's scheduler returns with no noise to speak of, against our mean."""
    schedule = make_coarse_schedule(steps)
    x0_hat, x_next = torch.randn(2, 1, 1, 8, 8)
    for tau in range(steps):
        ours = posterior_sample(schedule, x0_hat, x_next, torch.tensor([tau]), torch.zeros_like(x0_hat))
        mean, variance = step(tau, x0_hat, x_next)
        torch.testing.assert_close(mean, ours, atol=2e-6, rtol=0)
        assert variance == pytest.approx(POSTERIORS[steps][tau][2], abs=1e-5)


def _betas(schedule: CoarseSchedule):
    return schedule.beta.float()


@pytest.mark.parametrize("steps", [2, 4])
def test_monai_has_the_same_posterior(steps):
    schedulers = pytest.importorskip("monai.networks.schedulers")
    from monai.networks.schedulers.scheduler import NoiseSchedules

    name = f"coarse_test_{steps}"
    NoiseSchedules.add_def(name, "the schedule under test")(
        lambda num_train_timesteps: _betas(make_coarse_schedule(num_train_timesteps))
    )
    library = schedulers.DDPMScheduler(
        steps, schedule=name, prediction_type="sample", variance_type="fixed_small", clip_sample=False
    )

    def step(tau, x0_hat, x_next):
        samples = [library.step(x0_hat, tau, x_next, torch.Generator().manual_seed(i))[0] for i in range(2)]
        drawn = [torch.randn(x0_hat.size(), generator=torch.Generator().manual_seed(i)) for i in range(2)]
        std = ((samples[0] - samples[1]) / (drawn[0] - drawn[1])).mean().item()
        return samples[0] - std * drawn[0], std**2

    _compare_means(step, steps)


@pytest.mark.parametrize("steps", [2, 4])
def test_diffusers_has_the_same_posterior(steps):
    schedulers = pytest.importorskip("diffusers.schedulers")
    library = schedulers.DDPMScheduler(
        steps,
        trained_betas=_betas(make_coarse_schedule(steps)).numpy(),
        prediction_type="sample",
        variance_type="fixed_small",
        clip_sample=False,
    )

    def step(tau, x0_hat, x_next):
        found = library.step(x0_hat, tau, x_next, torch.Generator().manual_seed(0)).prev_sample
        variance = 0.0 if tau == 0 else float(library._get_variance(tau))
        drawn = torch.randn(x0_hat.size(), generator=torch.Generator().manual_seed(0))
        return found - variance**0.5 * drawn, variance

    _compare_means(step, steps)
