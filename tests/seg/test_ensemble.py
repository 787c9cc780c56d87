"""Rules of combining against numpy on all members at once; members are not held; a member is the same in any batch."""

import weakref

import numpy as np
import pytest
import torch
from seg.tiny import tiny_config, tiny_model, write_scan

from ncaseg import ensemble
from ncaseg.data.dataset import load_case
from ncaseg.data.index import Case
from ncaseg.inference import case
from ncaseg.inference.case import MEMBER_BUDGET_BYTES, member_logits

LOGITS = np.random.default_rng(0).normal(0, 3, (7, 2, 3, 4, 5)).astype(np.float32)  # [members, C_out, *S]


def probability(logits):
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


@pytest.mark.parametrize("count", [1, 2, 6, 7])
@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("mean-logit", lambda logits: probability(logits.mean(0))),
        ("mean-probability", lambda logits: probability(logits).mean(0)),
        ("median", lambda logits: probability(np.median(logits, axis=0))),
    ],
)
def test_rule_is_what_it_says(rule, expected, count):
    combined = ensemble.combine(iter(LOGITS[:count]), rule=rule, with_spread=True)
    np.testing.assert_allclose(combined.probabilities, expected(LOGITS[:count]), atol=1e-6)
    np.testing.assert_allclose(combined.mean, probability(LOGITS[:count]).mean(0), atol=1e-6)
    np.testing.assert_allclose(combined.variance, probability(LOGITS[:count]).var(0), atol=1e-6)  # divided by N
    assert combined.probabilities.dtype == combined.mean.dtype == combined.variance.dtype == np.float32


def test_two_members_by_hand():
    members = [np.log(np.float32([[1, 3]])), np.log(np.float32([[3, 1 / 3]]))]  # probabilities 1/2, 3/4 and 3/4, 1/4
    combined = ensemble.combine(members, with_spread=True)
    np.testing.assert_allclose(combined.mean, [[0.625, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(combined.variance, [[0.125**2, 0.25**2]], rtol=1e-6)
    np.testing.assert_allclose(combined.probabilities, [[3**0.5 / (1 + 3**0.5), 0.5]], rtol=1e-6)


def test_spread_is_absent_unless_asked_for():
    for rule in ensemble.RULES:
        combined = ensemble.combine(LOGITS, rule=rule)
        assert combined.mean is None and combined.variance is None


def test_equal_members_have_no_variance():
    combined = ensemble.combine([LOGITS[0]] * 5, with_spread=True)
    assert not combined.variance.any()


@pytest.mark.parametrize("rule", ["mean-logit", "mean-probability"])
def test_members_are_not_held(rule):
    alive = []

    def members():
        for number in range(8):
            assert sum(ref() is not None for ref in alive) <= 1  # the one that the loop variable still names
            member = LOGITS[0] + number
            alive.append(weakref.ref(member))
            yield member
            del member

    ensemble.combine(members(), rule=rule, with_spread=True)
    assert len(alive) == 8


def test_sigmoid_does_not_overflow_and_keeps_small_values():
    values = ensemble.sigmoid(np.float32([-200, -20, 0, 20, 200]))
    np.testing.assert_allclose(values, [0, 2.0611537e-9, 0.5, 1, 1], rtol=1e-6)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="rule must be one of mean-logit, mean-probability, median; got 'mode'"):
        ensemble.combine(LOGITS, rule="mode")
    with pytest.raises(ValueError, match="members must hold at least one; got none"):
        ensemble.combine([])


@pytest.mark.parametrize("budget", [1, MEMBER_BUDGET_BYTES])
def test_member_k_is_the_run_alone(tmp_path, monkeypatch, budget):
    """Copies in one batch under norm "instance", in turns or together, equal runs of one volume under norm "batch"."""
    cfg = tiny_config()
    model = tiny_model(cfg)
    volume = load_case(Case(id="scan", image=write_scan(tmp_path / "scan.nii"), label=None), cfg.data)
    monkeypatch.setattr(case, "MEMBER_BUDGET_BYTES", budget)
    members = list(member_logits(model, volume, cfg, samples=4, seed=9))
    with torch.no_grad():
        alone = [model(torch.from_numpy(volume.image)[None], seed=9, first_sample=k)[0] for k in range(4)]
    assert torch.stack(alone).std(0).max() > 1e-2  # the members differ, so the comparison means something
    for member, run in zip(members, alone, strict=True):
        # On larger volumes the kernel may add up the statistics in another order.
        torch.testing.assert_close(torch.from_numpy(member), run, rtol=1e-5, atol=1e-5)


def test_views_are_taken_in_turn():
    assert [ensemble.mirrored_axes("xy", i) for i in range(5)] == [(), (1,), (2,), (1, 2), ()]
    assert [ensemble.mirrored_axes("z", i) for i in range(3)] == [(), (3,), ()]
    assert not any(ensemble.mirrored_axes("", i) for i in range(9))
