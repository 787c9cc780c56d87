"""The update of dense cases in CAX (Faldor and Cully 2024, https://arxiv.org/abs/2410.02651), on JAX; where installed.

It is made of CAX's own modules: ConvPerceive for the filters, ResidualUpdate for both dense layers and the fire mask,
and ComplexSystem, which compiles the rollout. ResidualUpdate divides by the fire rate what it lets through, as dropout
does, so its step size is that rate. JAX runs on all CPUs that the process may use, whatever torch's number of threads.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from cax.core import ComplexSystem
from cax.core.perceive import ConvPerceive
from cax.core.update import ResidualUpdate
from flax import nnx
from torch import Tensor, nn

import ncakern
from benchmarks.harness.cases import Case


class System(ComplexSystem):
    """State `[1, H, W, C]` -> the next one; the first channels are frozen."""

    def __init__(self, case: Case) -> None:
        rngs, ndim = nnx.Rngs(0), len(case.size)
        width, kernel = case.num_filters * case.channels, (case.kernel_size,) * ndim
        self.perceive = ConvPerceive(
            case.channels, width, kernel_size=kernel, padding="REFLECT", use_bias=True, rngs=rngs
        )
        self.update = ResidualUpdate(
            ndim,
            case.channels,
            case.channels + width,
            (case.hidden,),
            step_size=case.fire_rate,
            cell_dropout_rate=1 - case.fire_rate,
            rngs=rngs,
        )
        self.frozen_channels = case.frozen_channels

    def _step(self, state, input=None, **_):
        updated = self.update(state, jnp.concatenate([state, self.perceive(state)], axis=-1), input)
        frozen = self.frozen_channels
        return jnp.concatenate([state[..., :frozen], updated[..., frozen:]], axis=-1)


class Cax(nn.Module):
    """A rollout as a torch module. The parameters are JAX's; a backward pass leaves their gradients in `gradients`."""

    def __init__(self, nca: ncakern.NCA, case: Case) -> None:
        super().__init__()
        if case.perception != "dense" or case.norm != "none":
            raise ValueError(f"case must be dense without norm; got {case}")
        system = System(case)
        copy_parameters(system, nca)
        graph, self.weights, self.random = nnx.split(system, nnx.Param, ...)
        self.gradients = None

        def rollout(weights, random, state):
            merged = nnx.merge(graph, weights, random, copy=True)
            out = merged(state, num_steps=case.steps)
            return out, nnx.split(merged, nnx.Param, ...)[2]  # the next call draws another mask

        def forward_and_back(weights, random, state):
            out, pull_back, random = jax.vjp(lambda w, s: rollout(w, random, s), weights, state, has_aux=True)
            return out, pull_back, random

        self.rollout, self.forward_and_back = jax.jit(rollout), jax.jit(forward_and_back)
        self.go_back = jax.jit(lambda pull_back, d_out: pull_back(d_out))

    def forward(self, state: Tensor) -> Tensor:
        if torch.is_grad_enabled() and state.requires_grad:
            return Rollout.apply(state, self)
        out, self.random = self.rollout(self.weights, self.random, to_jax(state))
        return to_torch(out)

    def parameter_gradients(self) -> list[Tensor]:
        """Of the last backward pass."""
        return [to_torch(value) for value in jax.tree.leaves(self.gradients)]


class Rollout(torch.autograd.Function):
    """Hands the gradient over to JAX and back."""

    @staticmethod
    def forward(ctx, state: Tensor, module: Cax) -> Tensor:
        out, ctx.pull_back, module.random = module.forward_and_back(module.weights, module.random, to_jax(state))
        ctx.module = module
        return to_torch(out)

    @staticmethod
    def backward(ctx, d_out: Tensor):
        ctx.module.gradients, d_state = jax.block_until_ready(ctx.module.go_back(ctx.pull_back, to_jax(d_out)))
        return to_torch(d_state), None


def copy_parameters(system: System, nca: ncakern.NCA) -> None:
    """Ours, in Flax's order: kernels `[*k, C_in, C_out]`."""
    hidden, out = system.update.layers
    filters = nca.perceive_weight.detach().flatten(0, 1)  # [F * C_out, C_in, *k]
    ones = (1,) * (filters.ndim - 2)
    set_values(system.perceive.conv.kernel, filters.movedim((1, 0), (-2, -1)))
    set_values(system.perceive.conv.bias, nca.perceive_bias.flatten())
    set_values(hidden.kernel, nca.hidden_weight.t().reshape(*ones, *nca.hidden_weight.t().shape))
    set_values(hidden.bias, nca.hidden_bias)
    set_values(out.kernel, nca.out_weight.t().reshape(*ones, *nca.out_weight.t().shape))


def set_values(variable, values: Tensor) -> None:
    if variable.shape != tuple(values.shape):
        raise ValueError(f"values must have shape {variable.shape}; got {tuple(values.shape)}")
    variable[...] = jnp.asarray(np.ascontiguousarray(values.detach().numpy()))


def to_jax(tensor: Tensor):
    return jnp.from_dlpack(tensor.detach().contiguous())


def to_torch(array) -> Tensor:
    return torch.from_dlpack(array.block_until_ready())
