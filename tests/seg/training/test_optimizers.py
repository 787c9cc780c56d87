"""Optimisers by name."""

import pytest
import torch

from ncakern import NCA
from ncaseg.config import TrainConfig
from ncaseg.training.optimizers import make_optimizer, set_rate


def with_gradients(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = NCA(channels=4, hidden=8, ndim=3)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


def settings(**changes) -> TrainConfig:
    return TrainConfig(**{"steps": 1, "lr": 0.1} | changes)


def test_adam_and_adamw_by_name():
    model = with_gradients()
    adam = make_optimizer(model, settings())
    adamw = make_optimizer(model, settings(optimizer="adamw", weight_decay=0.3))
    assert type(adam) is torch.optim.Adam and type(adamw) is torch.optim.AdamW
    assert adam.defaults["betas"] == (0.9, 0.99) and adamw.defaults["weight_decay"] == 0.3


def test_muon_moves_all_directions_of_a_matrix_at_one_pace():
    model = with_gradients()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    make_optimizer(model, settings(optimizer="muon")).step()
    for name, parameter in model.named_parameters():
        moved = parameter.detach() - before[name]
        if name in ("perceive_bias", "hidden_weight", "out_weight"):
            pace = torch.linalg.svdvals(moved) / (0.1 * 0.2 * max(moved.shape) ** 0.5)
            assert pace.min() > 0.5 and pace.max() < 1.5  # Newton-Schulz leaves them about 1
        else:
            torch.testing.assert_close(moved.abs(), torch.full_like(moved, 0.1), rtol=1e-3, atol=0)  # Adam's first step


def test_muon_goes_on_from_its_state():
    whole, halves = with_gradients(), with_gradients()
    cfg = settings(optimizer="muon", weight_decay=0.1)
    optimizer = make_optimizer(whole, cfg)
    first = make_optimizer(halves, cfg)
    optimizer.step()
    first.step()
    again = make_optimizer(halves, cfg)
    again.load_state_dict(first.state_dict())
    for each in (optimizer, again):
        set_rate(each, 0.01)
        each.step()
    for one, other in zip(whole.parameters(), halves.parameters(), strict=True):
        assert torch.equal(one, other)
    again.zero_grad()
    assert all(p.grad is None for p in halves.parameters())


def test_muon_says_what_it_needs(monkeypatch):
    with pytest.raises(ValueError, match="needs a model with dense layers; this one has none"):
        make_optimizer(torch.nn.Conv1d(1, 1, 3), settings(optimizer="muon"))
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ValueError, match=r"needs torch 2\.9 or later; this is"):
        make_optimizer(with_gradients(), settings(optimizer="muon"))
