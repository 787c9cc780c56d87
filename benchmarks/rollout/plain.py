"""The step in plain PyTorch, not compiled, as fast as it was found: what a careful user writes without a compiler."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ncakern
from benchmarks.harness.cases import Case
from benchmarks.rollout.plain_ops import ByBlocks, DepthwiseConvolution, Moments

NORM_EPS = 1e-5


class Plain(nn.Module):
    """Channels-last convolutions; norm from the moments of the perception; dense layers at the firing cells only.

    The hidden layer is linear in the perception v, so under the norm its mean and variance over all cells are
    `W m + b` and `diag(W Cov W^T)`; scale and shift fold into W and b, and b itself cancels. Dense filters are applied
    at the firing cells, as one product over the gathered neighbourhoods.
    """

    def __init__(self, nca: ncakern.NCA, case: Case) -> None:
        super().__init__()
        if (case.perception, case.norm) not in (("depthwise", "batch"), ("dense", "none")):
            raise ValueError(f"case must be depthwise with norm batch, or dense without norm; got {case}")
        self.nca, self.steps, self.fire_rate = nca, case.steps, case.fire_rate
        self.size, self.kernel_size, self.reach = case.size, case.kernel_size, case.kernel_size // 2
        free = torch.arange(case.channels) >= case.frozen_channels
        self.register_buffer("free_channels", free.float()[:, None], persistent=False)
        self.register_buffer("first_taps", self.padded_index(case.size), persistent=False)
        self.register_buffer("taps", self.padded_index((case.kernel_size,) * len(case.size)), persistent=False)

    def forward(self, state: Tensor) -> Tensor:
        step = self.step_dense if self.nca.spec.perception == "dense" else self.step_depthwise
        for _ in range(self.steps):
            cells = state.reshape(-1, state.shape[-1])
            fires = (torch.rand(len(cells)) < self.fire_rate).nonzero().squeeze(1)
            # Channels stay last in memory.
            padded = F.pad(state.movedim(-1, 1), [self.reach] * 2 * len(self.size), mode="reflect")
            change = step(cells, padded, fires)
            state = cells.index_add(0, fires, change).view_as(state)
        return state

    def step_depthwise(self, cells: Tensor, padded: Tensor, fires: Tensor) -> Tensor:
        """Return the change of the firing cells `[n, C]`."""
        nca = self.nca
        filters = zip(nca.perceive_weight[:, :, None], nca.perceive_bias, strict=True)
        outputs = [DepthwiseConvolution.apply(padded, weight, bias) for weight, bias in filters]
        seen = torch.cat([cells, *(y.movedim(1, -1).reshape(cells.shape) for y in outputs)], 1)  # v [N, (1 + F) C]
        mean, covariance = Moments.apply(seen)
        variance = (nca.hidden_weight @ covariance * nca.hidden_weight).sum(1)
        weight = (nca.norm_weight * torch.rsqrt(variance + NORM_EPS))[:, None] * nca.hidden_weight
        bias = nca.norm_bias - weight @ mean
        return ByBlocks.apply(self.two_layers, seen, fires[:, None], weight.t(), bias, self.out_weight())

    def step_dense(self, cells: Tensor, padded: Tensor, fires: Tensor) -> Tensor:
        """Return the change of the firing cells `[n, C]`."""
        nca, channels = self.nca, cells.shape[1]
        rows = padded.movedim(1, -1).reshape(-1, channels)
        taps = self.first_taps[fires, None] + self.taps
        filters = nca.perceive_weight.flatten(0, 1).movedim(1, -1).flatten(1).t()  # [taps * C, F * C]
        own, others = nca.hidden_weight.t().split([channels, len(nca.hidden_weight.t()) - channels])
        weights = filters, nca.perceive_bias.flatten(), own, others, nca.hidden_bias, self.out_weight()
        return ByBlocks.apply(self.three_layers, rows, taps, *weights)

    def out_weight(self) -> Tensor:
        return (self.nca.out_weight * self.free_channels).t()

    def padded_index(self, size: tuple[int, ...]) -> Tensor:
        """Return the index among the rows of the padded state of every cell of a box at its corner."""
        index = torch.zeros(1, dtype=torch.long)
        for count, whole in zip(size, self.size, strict=True):
            index = (index[:, None] * (whole + 2 * self.reach) + torch.arange(count)).flatten()
        return index

    @staticmethod
    def two_layers(seen: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> Tensor:
        return torch.addmm(bias, seen, weight).relu_() @ out

    @staticmethod
    def three_layers(
        around: Tensor, filters: Tensor, filter_bias: Tensor, own: Tensor, others: Tensor, bias: Tensor, out: Tensor
    ) -> Tensor:
        channels = len(own)
        centre = around.shape[1] // 2 - channels // 2
        hidden = torch.addmm(bias, around[:, centre : centre + channels], own)
        return torch.addmm(hidden, torch.addmm(filter_bias, around, filters), others).relu_() @ out
