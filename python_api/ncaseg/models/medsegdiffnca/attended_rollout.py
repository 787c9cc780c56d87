"""A rollout whose perception looks through CBAM, keeping states only for its backward pass.

Every step is one step of the kernel, ``state' = step(state, perceive_from = state + attend(state))``: attention feeds
perception alone, the residual goes to the state as it was. Gates, hidden values and fire bits are computed again in the
backward pass; the steps themselves are not, with ``keep_every=1`` and without norm.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ncakern import NCA, RolloutParams, RolloutSpec, nca_rollout
from ncakern.functional import step_gradients
from ncaseg.models.medsegdiffnca.cbam import CBAM, CbamParams, attend, compute_gates
from ncaseg.models.medsegdiffnca.cbam_backward import attend_backward

NUM_CBAM = len(CbamParams._fields)


def attended_rollout(
    state: Tensor,
    nca: NCA,
    cbam: CBAM,
    steps: int,
    *,
    seed: int | Tensor,
    first_step: int = 0,
    first_sample: int = 0,
    residual: bool = True,
    keep_every: int = 1,
) -> Tensor:
    """Run ``steps`` steps with attention.

    Args:
        state: ``[B, *S, C]``.
        nca, cbam: the parameters.
        seed, first_step, first_sample: name the fire bits, as in :func:`ncakern.nca_rollout`.
        residual: perceive ``state + attend(state)``; False perceives ``attend(state)``.
        keep_every: keep every so many states for the backward pass and compute the others again.

    Returns:
        ``[B, *S, C]``. Between forward and backward ``steps / keep_every`` states are kept, nothing else per cell.

    Reference:
        Mittal, Kalkhof, Mukhopadhyay, Bhavsar, MedSegDiffNCA, 2025.
    """
    step = _Step(nca.spec, seed, first_step, first_sample, residual)
    present = [tensor for tensor in nca.params if tensor is not None]
    state = state.contiguous()  # the order of a sum over cells follows the strides, and these follow the batch
    with torch.autocast(state.device.type, enabled=False):  # the backward pass computes again outside of the caller's
        return _Rollout.apply(step, steps, keep_every, state, *cbam.params, *present)


@dataclass(frozen=True)
class _Step:
    """One step of the kernel; ``tensors`` are those of the attention and then those of the automaton."""

    spec: RolloutSpec
    seed: int | Tensor
    first_step: int
    first_sample: int
    residual: bool

    def __call__(self, state: Tensor, tensors: tuple[Tensor, ...], number: int, buffer: Tensor) -> Tensor:
        """The state after step ``number``; ``buffer`` is overwritten."""
        seen = attend(state, CbamParams(*tensors[:NUM_CBAM]), out=buffer)
        if self.residual:
            seen.add_(state)
        params = RolloutParams(*tensors[NUM_CBAM:])
        return nca_rollout(state, params, self.spec, 1, perceive_from=seen, **self.stream(number))

    def stream(self, number: int) -> dict[str, Any]:
        """What names the fire bits of step ``number``."""
        return {"seed": self.seed, "first_step": self.first_step + number, "first_sample": self.first_sample}

    def backward(
        self, d_out: Tensor, state: Tensor, tensors: tuple[Tensor, ...], number: int, buffers: tuple[Tensor, ...]
    ) -> tuple[Tensor, list[Tensor]]:
        """The gradients of the state, written into the last of three buffers, and of the tensors."""
        first, second, total = buffers
        params = CbamParams(*tensors[:NUM_CBAM])
        gates = compute_gates(state, params, out=first)
        seen = torch.mul(gates.scaled, gates.cells, out=second)
        d_state, d_seen, d_nca = step_gradients(
            d_out,
            state,
            RolloutParams(*tensors[NUM_CBAM:]),
            self.spec,
            perceive_from=seen.add_(state) if self.residual else seen,
            **self.stream(number),
        )
        d_attended, d_cbam = attend_backward(d_seen, state, params, gates, second)
        torch.add(d_state, d_attended, out=total)
        if self.residual:
            total += d_seen
        return total, [*d_cbam, *(gradient for gradient in d_nca if gradient is not None)]


class _Rollout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: _Step, steps: int, keep_every: int, state: Tensor, *tensors: Tensor) -> Tensor:
        kept = []
        buffer = torch.empty_like(state, memory_format=torch.contiguous_format)
        for number in range(steps):
            if number % keep_every == 0:
                kept.append(state)
            state = step(state, tensors, number, buffer)
        ctx.save_for_backward(*tensors, *kept)
        ctx.plan = (step, steps, keep_every, len(tensors))
        return state if steps > 0 else state.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_state: Tensor) -> tuple[Tensor | None, ...]:
        step, steps, keep_every, count = ctx.plan
        tensors, kept = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        totals = [torch.zeros_like(tensor) for tensor in tensors]
        # Fresh pages cost more than arithmetic on them: the same buffers serve all steps.
        buffers = tuple(torch.empty_like(d_state, memory_format=torch.contiguous_format) for _ in range(3))
        for block in reversed(range(len(kept))):
            first = block * keep_every
            numbers = range(first, min(first + keep_every, steps))
            states = [kept[block]]
            for number in numbers[:-1]:
                states.append(step(states[-1], tensors, number, buffers[0]))
            for number, before in zip(reversed(numbers), reversed(states), strict=True):
                d_state, gradients = step.backward(d_state, before, tensors, number, buffers)
                for total, new in zip(totals, gradients, strict=True):
                    total += new
        return None, None, None, d_state, *totals
