"""Who computes a rollout: name -> module with `forward(state [1, *S, C]) -> state`, all with equal parameters."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import ncakern
from benchmarks.harness.cases import Case
from benchmarks.rollout.plain import Plain


def make_nca(case: Case) -> ncakern.NCA:
    """Draw the parameters that all providers of a case share; out_weight too, which would be zero."""
    torch.manual_seed(0)
    nca = ncakern.NCA(
        len(case.size),
        case.channels,
        case.hidden,
        perception=case.perception,
        num_filters=case.num_filters,
        kernel_size=case.kernel_size,
        norm=case.norm,
        fire_rate=case.fire_rate,
        frozen_channels=case.frozen_channels,
    )
    nn.init.normal_(nca.out_weight, std=0.1 / case.hidden**0.5)
    return nca


class Eager(nn.Module):
    """The layers of M3D-NCA and Med-NCA: convolve, concatenate, dense, norm, ReLU, dense, mask, add, restore the image.

    Channels-first convolutions with reflect padding, batch statistics without running ones, dense layers on the last
    axis, one uniform random number per cell and step. As there, `transpose(1, -1)` brings the channels to the front.
    """

    def __init__(self, nca: ncakern.NCA, case: Case) -> None:
        super().__init__()
        ndim, channels = len(case.size), case.channels
        convolution = nn.Conv2d if ndim == 2 else nn.Conv3d
        batch_norm = nn.BatchNorm2d if ndim == 2 else nn.BatchNorm3d
        self.perceive = nn.ModuleList(
            convolution(
                channels,
                channels,
                case.kernel_size,
                padding=case.kernel_size // 2,
                padding_mode="reflect",
                groups=channels if case.perception == "depthwise" else 1,
            )
            for _ in range(case.num_filters)
        )
        self.hidden = nn.Linear((1 + case.num_filters) * channels, case.hidden)
        self.norm = batch_norm(case.hidden, track_running_stats=False) if case.norm == "batch" else None
        self.out = nn.Linear(case.hidden, channels, bias=False)
        self.ndim, self.steps = ndim, case.steps
        self.fire_rate, self.frozen_channels = case.fire_rate, case.frozen_channels
        self.copy_parameters(nca)

    @torch.no_grad()
    def copy_parameters(self, nca: ncakern.NCA) -> None:
        channels_out = len(nca.out_weight)
        for conv, weight, bias in zip(self.perceive, nca.perceive_weight, nca.perceive_bias, strict=True):
            # [.., X, Y, Z] -> [.., Y, Z, X], the axes as `step` swaps them
            conv.weight.copy_(weight.view(channels_out, -1, *weight.shape[-self.ndim :]).movedim(2, -1))
            conv.bias.copy_(bias)
        self.hidden.weight.copy_(nca.hidden_weight)
        self.hidden.bias.copy_(nca.hidden_bias)
        self.out.weight.copy_(nca.out_weight)
        if self.norm is not None:
            self.norm.weight.copy_(nca.norm_weight)
            self.norm.bias.copy_(nca.norm_bias)

    def step(self, state: Tensor) -> Tensor:
        swapped = state.transpose(1, -1)  # [1, C, Y, Z, X]
        perceived = torch.cat([swapped, *(conv(swapped) for conv in self.perceive)], dim=1)
        hidden = self.hidden(perceived.transpose(1, -1))  # [1, X, Y, Z, h]
        if self.norm is not None:
            hidden = self.norm(hidden.transpose(1, -1)).transpose(1, -1)
        change = self.out(torch.relu(hidden))
        fires = (torch.rand(*state.shape[:-1], 1, device=state.device) < self.fire_rate).to(state.dtype)
        updated = state + change * fires
        return torch.cat([state[..., : self.frozen_channels], updated[..., self.frozen_channels :]], dim=-1)

    def forward(self, state: Tensor) -> Tensor:
        for _ in range(self.steps):
            state = self.step(state)
        return state


class Kernel(nn.Module):
    """The fused rollout: the cpu backend on the CPU, triton on an accelerator; never a fall-back."""

    backend: str | None = None  # instead

    def __init__(self, nca: ncakern.NCA, case: Case, *, keep_every: int | str = 1) -> None:
        super().__init__()
        self.nca, self.steps, self.keep_every = nca, case.steps, keep_every

    def forward(self, state: Tensor, *, seed: int | None = None) -> Tensor:
        backend = self.backend or ("cpu" if state.device.type == "cpu" else "triton")
        return self.nca(state, self.steps, seed=seed, keep_every=self.keep_every, backend=backend)


class Compiled(Eager):
    """`torch.compile` of the eager step; of the whole rollout it is slower, and twenty times slower to compile."""

    def __init__(self, nca: ncakern.NCA, case: Case) -> None:
        super().__init__(nca, case)
        torch.compiler.reset()  # cases come one after the other, and a function may be compiled eight times only
        self.step = torch.compile(self.step, fullgraph=True, dynamic=False)


def make_cax(nca: ncakern.NCA, case: Case) -> nn.Module:
    from benchmarks.rollout.cax_provider import Cax  # only where it is wanted: JAX brings a thread pool of its own

    return Cax(nca, case)


def is_dense(case: Case) -> bool:
    return case.perception == "dense"


def suits_cax(case: Case) -> bool:
    return importlib.util.find_spec("cax") is not None and is_dense(case) and case.norm == "none"


@dataclass(frozen=True)
class Provider:
    """Builds the module of a case; `dtype` is that of its state, `suits` says which cases it is timed on,
    `saves_in_torch` whether torch's autograd holds what it keeps for the backward pass, so that it can be counted.
    """

    build: Callable[[ncakern.NCA, Case], nn.Module]
    dtype: torch.dtype = torch.float32
    suits: Callable[[Case], bool] = lambda case: True
    saves_in_torch: bool = True

    def state(self, case: Case) -> Tensor:
        """Draw the state that all providers of a case start from, `[1, *S, C]`."""
        generator = torch.Generator().manual_seed(0)
        return torch.rand(1, *case.size, case.channels, generator=generator).to(self.dtype)


PROVIDERS = {
    "eager": Provider(Eager),
    "compile": Provider(Compiled),
    "plain": Provider(Plain),
    "kernel": Provider(Kernel),
    "cax": Provider(make_cax, suits=suits_cax, saves_in_torch=False),
    # 16 bits pay where matrix products dominate. The kernel's parameters stay float32.
    "compile-bf16": Provider(lambda nca, case: Compiled(nca, case).bfloat16(), torch.bfloat16, is_dense),
    "kernel-bf16": Provider(Kernel, torch.bfloat16, is_dense),
}


def make(provider: str, case: Case) -> nn.Module:
    """Build one provider of one case; all of a case have equal parameters."""
    return PROVIDERS[provider].build(make_nca(case), case)
