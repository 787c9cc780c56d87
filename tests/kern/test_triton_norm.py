"""The small kernels between two passes over the cells of a rollout with a norm, in the interpreter, against float64."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers import Case, make_inputs
from torch import Tensor

pytestmark = pytest.mark.usefixtures("triton_interpreter")

# Three samples in one group and in three; hidden units and channels that fill no block; 2 filters; 5 of 64 rows used.
CASES = [
    Case(size=(4, 5), channels=5, hidden=19, num_filters=2, batch=3, has_modulation=True, options={"norm": "instance"}),
    Case(size=(4, 5), channels=3, hidden=7, batch=3, has_modulation=True, options={"norm": "batch"}),
    Case(size=(4, 5), channels=17, hidden=40, batch=1, options={"norm": "batch"}),
]
PROGRAMS = 5


@dataclass
class Setting:
    """A rollout, its weights, and statistics of each group as `step.py` says, in float64."""

    rollout: Any
    packed: Any
    stats: Tensor

    @property
    def mean(self) -> Tensor:
        return self.stats[:, : self.rollout.hidden]

    @property
    def rstd(self) -> Tensor:
        return (self.stats[:, self.rollout.hidden : 2 * self.rollout.hidden] + 1e-5).rsqrt()

    @property
    def center(self) -> Tensor:
        return self.stats[:, 2 * self.rollout.hidden :]

    @property
    def affine(self) -> tuple[Tensor, Tensor]:
        """Factor and shift of the normalised hidden units, [1 or B, h]."""
        rollout = self.rollout
        weight, bias = rollout.norm_weight.double()[None], rollout.norm_bias.double()[None]
        if rollout.scale is None:
            return weight, bias
        return rollout.scale.double() * weight, rollout.scale.double() * bias + rollout.shift.double()


def setting(case: Case) -> Setting:
    from ncakern.backends.triton import launch, pack_small

    inputs = make_inputs(case).to(torch.float32, torch.float32)
    params = inputs.params._asdict()
    others = (*(params.get(name) for name in launch._TENSORS[:7]), None, *(inputs.modulation or (None, None)))
    stream = {"seed": 1, "first_step": 0, "first_sample": 0, "origin": (0, 0), "extent": case.size}
    draw, left = launch._write_draw(inputs.state, case.spec, **stream)
    rollout = launch._describe(inputs.state.detach(), others, spec=case.spec, draw=draw, left=left)
    stats = torch.rand(rollout.groups, 2 * rollout.hidden + rollout.features, dtype=torch.float64) + 0.1
    return Setting(rollout, pack_small.pack(rollout), stats)


def assert_near(actual: Tensor, exact: Tensor) -> None:
    """Within a few roundings of float32, of the largest number."""
    assert (actual.double() - exact).abs().max() <= 4 * torch.finfo(torch.float32).eps * exact.abs().max()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_combine_is_the_mean_and_variance_of_all_cells(case: Case) -> None:
    from ncakern.backends.triton import norm_small

    s = setting(case)
    rollout, (features, padded_channels, padded_hidden) = s.rollout, s.packed.w0.shape
    # 1 to 5 cells for each program, far from zero, and sums around a shift that differs from program to program.
    u = torch.randn(rollout.groups, case.batch // rollout.groups * PROGRAMS, 5, rollout.hidden, dtype=torch.float64)
    u = (u + 50 * torch.rand(rollout.hidden)).float().double()
    v = torch.randn(*u.shape[:3], features, padded_channels, dtype=torch.float64)
    exists = torch.arange(5) <= torch.arange(u.shape[1])[:, None] % 5  # [programs, cells]
    shift = u[:, :, 0]
    shifted = (u - shift[:, :, None]) * exists[..., None]
    parts = torch.full((*u.shape[:2], 1 + 3 * padded_hidden + features * padded_channels), float("nan")).double()
    parts[..., 0] = exists.sum(1)
    for row, values in enumerate((shift, shifted.sum(2), (shifted**2).sum(2))):
        parts[..., 1 + row * padded_hidden :][..., : rollout.hidden] = values
    parts[..., 1 + 3 * padded_hidden :] = (v * exists[..., None, None]).sum(2).flatten(2)

    stats = torch.full_like(s.stats, float("nan"))
    norm_small.combine(rollout, s.packed, parts.flatten(0, 1), stats)
    for g in range(rollout.groups):
        cells, seen = u[g, exists], v[g, exists][..., : rollout.channels].flatten(1)
        exact = torch.cat((cells.mean(0), cells.var(0, correction=0), seen.mean(0)))
        torch.testing.assert_close(stats[g], exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_folded_weights_normalise_scale_and_modulate(case: Case) -> None:
    from ncakern.backends.triton import norm_small

    s = setting(case)
    folded, b0 = norm_small.fold_fwd(s.rollout, s.packed, s.stats)
    factor, shift = s.affine
    v = torch.randn(s.rollout.features, dtype=torch.float64)
    u = s.rollout.hidden_weight.double() @ v
    exact = factor * s.rstd * (u - s.mean) + shift  # [1 or B, h]
    padded = torch.zeros(s.packed.w0.shape[:2], dtype=torch.float64)
    padded[:, : s.rollout.channels] = v.view(-1, s.rollout.channels)
    actual = torch.einsum("nc,bnch->bh", padded, folded.double()) + b0.double()
    assert actual.shape[0] == exact.shape[0]
    assert_near(actual[:, : s.rollout.hidden], exact)
    assert not folded[..., s.rollout.hidden :].any() and not b0[:, s.rollout.hidden :].any()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_backward_weights_and_means(case: Case) -> None:
    from ncakern.backends.triton import norm_small

    s = setting(case)
    rollout, hidden, groups = s.rollout, s.rollout.hidden, s.rollout.groups
    folded, vectors, center = norm_small.fold_bwd(rollout, s.packed, s.stats)
    assert_near(folded, s.packed.w0.double() * _pad(s.rstd, folded)[:, None, None])
    shape = (-1, 1 + rollout.filters, rollout.channels)
    assert_near(center[..., : rollout.channels], s.center.view(shape).expand(case.batch, *shape[1:]))
    assert not center[..., rollout.channels :].any()
    factor, shift = s.affine
    at_center = s.center.float().double() @ rollout.hidden_weight.double().t()
    for row, exact in enumerate((s.rstd * (at_center - s.mean), factor, shift)):
        assert_near(vectors[:, row, :hidden], exact.expand(case.batch, hidden))
    assert not vectors[:, 3:].any() and not vectors[..., hidden:].any()

    width = 2 * folded.shape[-1] + (2 + rollout.filters) * folded.shape[-1] * folded.shape[-2]
    parts = torch.randn(case.batch, PROGRAMS, width)
    found = norm_small.write_means(rollout, s.packed, parts, vectors)
    for row, (sums, first) in enumerate(zip(found, (0, folded.shape[-1]), strict=True)):
        exact = parts[..., first : first + hidden].double().sum(1)
        torch.testing.assert_close(sums, exact, rtol=1e-12, atol=1e-12)
        means = (vectors[:, 1, :hidden].double() * exact).view(groups, -1, hidden).sum(1, keepdim=True)
        means = means / (rollout.cells * case.batch / groups)
        assert_near(vectors[:, 3 + row, :hidden], means.expand(groups, case.batch // groups, hidden).flatten(0, 1))


def _pad(values: Tensor, like: Tensor) -> Tensor:
    return torch.nn.functional.pad(values, (0, like.shape[-1] - values.shape[-1]))
