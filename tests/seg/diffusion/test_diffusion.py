"""Schedules against printed tables, samplers against an oracle, conversions against each other."""

import doctest
import importlib

import numpy as np
import pytest
import torch

from ncaseg.diffusion import objective, sampler, schedule
from ncaseg.streams import normal

SAMPLERS = {"ddpm": sampler.sample_ddpm, "ddim": sampler.sample_ddim}

# alpha_bar of 100 steps as printed: index, linear 1e-3..0.2, cosine.
TABLE = [
    (0, "0.9990", "0.99937"),
    (9, "0.9038", "0.9721"),
    (24, "0.5279", "0.8470"),
    (49, "0.0742", "0.4938"),
    (69, "0.0057", "0.203"),
    (74, "0.00258", "0.1443"),
    (99, "2.04e-5", "2.4e-7"),
]


def half_a_digit(printed: str) -> float:
    """The rounding of a printed number."""
    digits, _, exponent = printed.partition("e")
    places = len(digits.partition(".")[2])
    return 0.5 * 10.0 ** (int(exponent or 0) - places)


@pytest.mark.parametrize(("index", "linear", "cosine"), TABLE)
def test_alpha_bar_is_the_printed_one(index, linear, cosine):
    for name, printed in (("linear", linear), ("cosine", cosine)):
        alpha_bar = schedule.make_schedule(name, 100).alpha_bar
        assert alpha_bar.dtype == np.float64
        assert abs(alpha_bar[index] - float(printed)) <= half_a_digit(printed) * 1.0001


def test_linear_betas_are_rescaled_so_that_nothing_is_left_at_the_end():
    betas = schedule.linear(100).betas
    assert betas[0] == pytest.approx(1e-3, rel=1e-12) and betas[-1] == pytest.approx(0.2, rel=1e-12)
    assert schedule.linear(100).alpha_bar[-1] < 1e-4
    assert schedule.linear(1000).alpha_bar[-1] == pytest.approx(4.04e-5, rel=2e-3)
    unscaled = schedule.Schedule(np.linspace(1e-4, 0.02, 100))
    assert unscaled.alpha_bar[-1] == pytest.approx(0.3636, abs=1e-4)


def test_signal_to_noise():
    snr = schedule.linear(100).snr
    assert snr[[0, 9, 24]] == pytest.approx([999, 9.40, 1.12], rel=4e-3)
    assert (np.count_nonzero(snr > 1), np.count_nonzero(schedule.cosine(100).snr > 1)) == (26, 49)


def test_bad_schedules_are_named():
    with pytest.raises(ValueError, match="timesteps must be at least 21 for the linear"):
        schedule.linear(20)
    with pytest.raises(ValueError, match="timesteps must be at least 1"):
        schedule.cosine(0)
    with pytest.raises(ValueError, match="schedule must be one of linear, cosine; got 'sigmoid'"):
        schedule.make_schedule("sigmoid", 100)
    with pytest.raises(ValueError, match="betas must be"):
        schedule.Schedule(np.array([0.1, 1.0]))


@pytest.mark.parametrize("target", objective.TARGETS)
@pytest.mark.parametrize("name", schedule.NAMES)
def test_conversions_undo_each_other(target, name):
    a = torch.from_numpy(schedule.make_schedule(name, 100).alpha_bar[[0, 30, 60, 99]])
    x0, eps = torch.randn(2, 4, 3, 5, 2, dtype=torch.float64).unbind()
    x_t = objective.add_noise(x0, eps, a)
    answer = objective.target_of(target, x0, eps, a)
    torch.testing.assert_close(objective.to_x0(target, answer, x_t, a), x0, rtol=0, atol=1e-9)
    torch.testing.assert_close(objective.to_eps(target, answer, x_t, a), eps, rtol=0, atol=1e-9)


def test_unknown_target_is_named():
    x = torch.zeros(1, 2)
    for call in (objective.target_of, objective.to_x0, objective.to_eps):
        with pytest.raises(ValueError, match="target must be one of eps, x0, v; got 'score'"):
            call("score", x, x, torch.ones(1))


def test_min_snr_makes_all_targets_cost_the_same():
    sched = schedule.linear(100)
    times = [3, 25, 80]
    a, snr = (torch.from_numpy(table[times]) for table in (sched.alpha_bar, sched.snr))
    x0, wrong, eps = torch.randn(3, 3, 7, dtype=torch.float64).unbind()
    x_t = objective.add_noise(x0, eps, a)
    expected = snr.clamp(max=5.0) * (wrong - x0).square().mean(1)
    for target in objective.TARGETS:
        noise = objective.to_eps("x0", wrong, x_t, a)
        error = objective.target_of(target, wrong, noise, a) - objective.target_of(target, x0, eps, a)
        weight = objective.min_snr_weight(target, snr, 5.0)
        torch.testing.assert_close(weight * error.square().mean(1), expected)


def oracle(x0, sched, target):
    """A network that knows x_0 and answers for the very x_t it is shown."""

    def predict(x_t, t):
        a = torch.tensor(sched.alpha_bar[t])
        return objective.target_of(target, x0, objective.to_eps("x0", x0, x_t, a), a)

    return predict


@pytest.mark.parametrize(("name", "steps"), [("ddpm", 100), ("ddim", 10), ("ddpm", 7), ("ddim", None)])
@pytest.mark.parametrize("target", objective.TARGETS)
@pytest.mark.parametrize("kind", schedule.NAMES)
def test_an_oracle_is_returned_exactly(name, steps, target, kind):
    sched = schedule.make_schedule(kind, 100)
    x0 = (torch.rand(2, 1, 5, 6) > 0.5).double() * 2 - 1
    seen = []
    found = SAMPLERS[name](
        oracle(x0, sched, target),
        lambda t: normal(x0.shape, seed=0, first_sample=0, step=t).double(),
        sched,
        steps=steps,
        target=target,
        watch=lambda t, x, guess: seen.append(t),
    )
    torch.testing.assert_close(found, x0, rtol=0, atol=1e-12)
    assert seen[0] == 99 and len(seen) == (steps or 100) and seen == sorted(seen, reverse=True)


def test_ddpm_has_the_posterior_of_the_paper():
    sched = schedule.linear(100)
    x0, x, z = torch.randn(3, 1, 4, dtype=torch.float64).clamp(-1, 1).unbind()
    draws = iter([x, z])
    seen = {}
    sampler.sample_ddpm(
        lambda x_t, t: x0,
        lambda t: next(draws, torch.zeros_like(x)),
        sched,
        target="x0",
        watch=lambda t, x_t, _: seen.setdefault(t, x_t),
    )
    a, before, beta = sched.alpha_bar[99], sched.alpha_bar[98], sched.betas[99]
    mean = (np.sqrt(before) * beta * x0 + np.sqrt(1 - beta) * (1 - before) * x) / (1 - a)
    torch.testing.assert_close(seen[98], mean + np.sqrt(beta) * z)


def test_the_implied_image_is_clipped():
    sched = schedule.linear(100)
    for sample in SAMPLERS.values():
        found = sample(lambda x, t: -x, lambda t: torch.full((1, 3), 4.0), sched, clip=(-0.5, 0.25))
        assert found.min() >= -0.5 and found.max() <= 0.25


def test_wrong_steps_are_named():
    for sample in SAMPLERS.values():
        with pytest.raises(ValueError, match="steps must lie between 1 and the schedule's 100; got 101"):
            sample(lambda x, t: x, lambda t: torch.zeros(1, 2), schedule.linear(100), steps=101)


@pytest.mark.parametrize("module", ["schedule", "objective", "sampler"])
def test_examples_run(module):
    found = doctest.testmod(importlib.import_module(f"ncaseg.diffusion.{module}"))
    assert found.attempted and not found.failed


def test_ddpm_and_ddim_agree_with_diffusers():
    diffusers = pytest.importorskip("diffusers")
    sched = schedule.linear(100)
    options = {"beta_start": 1e-3, "beta_end": 0.2, "beta_schedule": "linear", "clip_sample": True}
    theirs = diffusers.DDIMScheduler(100, set_alpha_to_one=True, timestep_spacing="trailing", **options)
    theirs.set_timesteps(10)
    np.testing.assert_allclose(theirs.alphas_cumprod.numpy(), sched.alpha_bar, rtol=2e-5)

    def predict(x, t):
        return torch.tanh(x) * (0.3 + t / 100)

    start = torch.randn(1, 1, 4, 5)
    x = start
    for t in theirs.timesteps:
        x = theirs.step(predict(x, int(t)), t, x, use_clipped_model_output=True).prev_sample
    ours = sampler.sample_ddim(predict, lambda t: start, sched, steps=10)
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)
