"""A backend made of plain PyTorch, to test the operator layer by itself: it obeys the whole contract, slowly."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from ncakern import Problem, RolloutParams, nca_rollout_reference

STATS_WIDTH = 2


class StandIn:
    """Runs the reference; its norm statistics are a mark that the backward pass looks for."""

    def why_not(self, problem: Problem) -> str | None:
        return None if problem.device == "cpu" else "needs a CPU tensor"

    def stats_width(self, problem: Problem) -> int:
        return 0 if problem.spec.norm == "none" else STATS_WIDTH

    def fwd(self, state: Tensor, *others: Tensor | None, steps: int, keep_every: int, keep: bool, **keywords: Any):
        assert all(t is None or t.is_contiguous() for t in (state, *others))
        spec, kept, out = keywords["spec"], [], state
        for step in range(steps):
            if keep and step and step % keep_every == 0:
                kept.append(out)
            out = _steps(out, others, first=step, count=1, **keywords)
        groups = len(state) if spec.norm == "instance" else 1
        has_stats = keep and spec.norm != "none"
        stats = torch.full((steps, groups, STATS_WIDTH) if has_stats else (0, 0, 0), 7.0, dtype=torch.float64)
        return out.clone(), torch.stack(kept) if kept else state.new_empty((0, *state.shape)), stats

    def bwd(
        self,
        d_out: Tensor,
        state: Tensor,
        kept: Tensor,
        stats: Tensor,
        *others: Tensor | None,
        steps: int,
        keep_every: int,
        **keywords: Any,
    ) -> tuple[Tensor | None, ...]:
        assert d_out.is_contiguous() and (stats == 7).all()
        assert len(kept) == max(0, -(-steps // keep_every) - 1)

        def differentiate() -> tuple[Tensor | None, ...]:
            leaves = [None if t is None else t.detach().requires_grad_() for t in (state, *others)]
            out = _steps(leaves[0], leaves[1:], first=0, count=steps, **keywords)
            present = [t for t in leaves if t is not None]
            found = iter(torch.autograd.grad(out, present, d_out, allow_unused=True))
            gradients = [None if t is None else next(found) for t in leaves]
            return tuple(
                g if t is None or g is not None else torch.zeros_like(t) for t, g in zip(leaves, gradients, strict=True)
            )

        # Inside an operator autograd is off for the whole thread, so differentiate in another one.
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(differentiate).result()


def _steps(
    state: Tensor, others: tuple[Tensor | None, ...], *, first: int, count: int, first_step: int, **keywords: Any
) -> Tensor:
    *weights, norm_weight, norm_bias, out_weight, perceive_from, scale, shift, out_bias = others
    return nca_rollout_reference(
        state,
        RolloutParams(*weights, out_weight, norm_weight, norm_bias, out_bias),
        steps=count,
        first_step=first_step + first,
        perceive_from=perceive_from,
        modulation=None if scale is None else (scale, shift),
        **keywords,
    )
