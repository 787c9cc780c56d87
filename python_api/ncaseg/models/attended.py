"""A rollout whose perception looks through CBAM, keeping states only for its backward pass.

Every step is one step of the kernel, ``state' = step(state, perceive_from = state + attend(state))``: attention feeds
perception alone, the residual goes to the state as it was. Gates, hidden values and fire bits are computed again in the
backward pass.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ncakern import NCA, RolloutParams, RolloutSpec, nca_rollout
from ncaseg.models.cbam import CBAM, CbamParams, attend

Step = Callable[[Tensor, tuple[Tensor, ...], int], Tensor]
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
    step = _make_step(nca.spec, seed=seed, first_step=first_step, first_sample=first_sample, residual=residual)
    present = [tensor for tensor in nca.params if tensor is not None]
    with torch.autocast(state.device.type, enabled=False):  # the backward pass computes again outside of the caller's
        return _Rollout.apply(step, steps, keep_every, state, *cbam.params, *present)


def _make_step(spec: RolloutSpec, *, seed: int | Tensor, first_step: int, first_sample: int, residual: bool) -> Step:
    def step(state: Tensor, tensors: tuple[Tensor, ...], number: int) -> Tensor:
        seen = attend(state, CbamParams(*tensors[:NUM_CBAM]))
        return nca_rollout(
            state,
            RolloutParams(*tensors[NUM_CBAM:]),
            spec,
            1,
            seed=seed,
            first_step=first_step + number,
            first_sample=first_sample,
            perceive_from=state + seen if residual else seen,
        )

    return step


class _Rollout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: Step, steps: int, keep_every: int, state: Tensor, *tensors: Tensor) -> Tensor:
        kept = []
        for number in range(steps):
            if number % keep_every == 0:
                kept.append(state)
            state = step(state, tensors, number)
        ctx.save_for_backward(*tensors, *kept)
        ctx.plan = (step, steps, keep_every, len(tensors))
        return state if steps > 0 else state.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_state: Tensor) -> tuple[Tensor | None, ...]:
        step, steps, keep_every, count = ctx.plan
        tensors, kept = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        leaves = tuple(
            t.detach().requires_grad_(need) for t, need in zip(tensors, ctx.needs_input_grad[4:], strict=True)
        )
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        d_wanted = [torch.zeros_like(leaf) for leaf in wanted]
        for block in reversed(range(len(kept))):
            first = block * keep_every
            numbers = range(first, min(first + keep_every, steps))
            states = [kept[block]]
            for number in numbers[:-1]:
                states.append(step(states[-1], tensors, number))
            for number, before in zip(reversed(numbers), reversed(states), strict=True):
                with torch.enable_grad():
                    leaf = before.detach().requires_grad_()
                    after = step(leaf, leaves, number)
                d_state, *found = torch.autograd.grad(after, [leaf, *wanted], d_state)
                for total, new in zip(d_wanted, found, strict=True):
                    total += new
        each = iter(d_wanted)
        return None, None, None, d_state, *(next(each) if leaf.requires_grad else None for leaf in leaves)
