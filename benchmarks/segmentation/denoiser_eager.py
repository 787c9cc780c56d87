"""MedSegDiffNCA as plain autograd runs it: the layers of the paper one after the other, each keeping what it needs.

Also with each step compiled.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ncakern
from ncaseg.config import MedSegDiffConfig
from ncaseg.models.medsegdiffnca.cbam import CBAM
from ncaseg.models.medsegdiffnca.model import MedSegDiffNCA


class EagerDenoiser(MedSegDiffNCA):
    """The network with its rollouts in plain PyTorch; parameters, seeds of the levels and resampling are the same.

    Fire masks come from torch's own generator, one number per cell and step: the arguments that name ours do nothing.
    """

    def _run(self, level: int, state: Tensor, *_: object) -> Tensor:
        nca, cbam = self.levels[level], self.attention[level] if self.attention else None
        for _ in range(self.steps[level]):
            state = self.step(nca, cbam, state.squeeze(3))[..., None, :]
        return state

    def step(self, nca: ncakern.NCA, cbam: CBAM | None, state: Tensor) -> Tensor:
        """`[B, X, Y, C]` to `[B, X, Y, C]`: attend, convolve, concatenate, dense, ReLU, dense, mask, add."""
        seen = state.movedim(-1, 1)
        if cbam is not None:
            seen = seen + attend(seen, cbam)
        reach = [nca.perceive_weight.shape[-1] // 2] * 4
        filters = zip(nca.perceive_weight, nca.perceive_bias, strict=True)
        features = [F.conv2d(F.pad(seen, reach, mode="reflect"), weight, bias) for weight, bias in filters]
        perceived = torch.cat([seen, *features], dim=1).movedim(1, -1)
        hidden = torch.relu(F.linear(perceived, nca.hidden_weight, nca.hidden_bias))
        fires = (torch.rand(*state.shape[:-1], 1, device=state.device) < nca.spec.fire_rate).to(state.dtype)
        return state + F.linear(hidden, nca.out_weight) * fires


class CompiledDenoiser(EagerDenoiser):
    """`torch.compile` of the eager step, for every level and shape of its own; the loop over steps stays in Python.

    The whole rollout, unrolled, takes far longer to compile (see `providers.Compiled`). The first call compiles, and
    raises RuntimeError where that fails.
    """

    def __init__(self, cfg: MedSegDiffConfig) -> None:
        super().__init__(cfg)
        torch.compiler.reset()  # networks come one after the other, and a function may be compiled eight times only
        self.step = torch.compile(self.step, fullgraph=True, dynamic=False)


def attend(x: Tensor, cbam: CBAM) -> Tensor:
    """CBAM of `[B, C, X, Y]` with PyTorch's own layers."""
    narrow = [
        torch.relu(F.linear(pool(x, 1).flatten(1), cbam.squeeze_weight, cbam.squeeze_bias))
        for pool in (F.adaptive_max_pool2d, F.adaptive_avg_pool2d)
    ]
    gates = torch.sigmoid(sum(F.linear(part, cbam.expand_weight, cbam.expand_bias) for part in narrow))
    x = x * gates[..., None, None]
    maps = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], dim=1)
    return x * torch.sigmoid(F.conv2d(maps, cbam.spatial_weight, padding=cbam.spatial_weight.shape[-1] // 2))


class Answers(nn.Module):
    """A denoiser as a function of its image alone, `[B, 3, X, Y, 1]` to the same shape, so that it can be measured."""

    def __init__(self, denoiser: MedSegDiffNCA) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, image: Tensor) -> Tensor:
        noisy, time = image[:, :1].detach(), image.new_full((len(image),), 0.5)
        answer, painted = self.denoiser.denoise(image.detach(), noisy, time, seed=0)
        return painted + answer
