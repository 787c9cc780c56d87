"""The floating-point operations that the cpu kernel executes per cell and step, and the peak they are compared with.

Counted are the products and sums of matrix products, convolutions and moments, two operations each; at the cells where
the kernel computes them, in float32. Left out is what does not go through those: fire bits (integers), activations,
adding to the state, folding weights, float64 sums. Executed is not what the mathematics needs at least (`roofline.py`
counts that): recomputing in the backward pass is work too.
"""

from benchmarks.harness.cases import Case
from ncakern.backends import cpu

PEAK_ROUNDS = 10


def flop_per_cell_step(case: Case, mode: str) -> float:
    """Count for one cell and step, on average over the cells, fire_rate of which update.

    Raises:
        ValueError: the channels are not whole vectors, so that padding would be computed too.
    """
    if case.channels % 16 or case.hidden % 16:
        raise ValueError(f"case must have channels and hidden in multiples of 16; got {case}")
    return forward_flop(case) + (backward_flop(case) if mode == "training" else 0)


def forward_flop(case: Case) -> float:
    """Perception; with a norm half of the symmetric moments; both dense layers at the firing cells."""
    width = perception_width(case)
    moments = width * (width + 1) if case.norm != "none" else 0
    dense_layers = 2 * case.hidden * (width + case.channels)
    return perceive_flop(case) * perceiving_share(case) + moments + case.fire_rate * dense_layers


def backward_flop(case: Case) -> float:
    """Perception and hidden layer again; at the firing cells two products for either dense layer (into its input and
    its weights); with a norm the map of the statistics at all cells; the adjoint convolution and the filters' gradients
    where the perception was computed.
    """
    width = perception_width(case)
    again = perceive_flop(case) * perceiving_share(case) + case.fire_rate * 2 * case.hidden * width
    dense_layers = case.fire_rate * 4 * case.hidden * (width + case.channels)
    statistics = 2 * width**2 if case.norm != "none" else 0
    filters = 2 * perceive_flop(case) * perceiving_share(case)
    return again + dense_layers + statistics + filters


def perception_width(case: Case) -> int:
    return (1 + case.num_filters) * case.channels


def perceive_flop(case: Case) -> int:
    """The convolutions at one cell."""
    inputs = case.channels if case.perception == "dense" else 1
    return 2 * case.num_filters * case.channels * inputs * case.kernel_size ** len(case.size)


def perceiving_share(case: Case) -> float:
    """The share of cells whose perception is computed: dense filters without a norm run at firing cells only."""
    return case.fire_rate if case.perception == "dense" and case.norm == "none" else 1.0


def fma_peak(threads: int) -> float:
    """Measure what this CPU reaches in float32 on so many threads, in FLOP/s: chains of FMAs in registers.

    With the vectors of the instruction set that the kernel uses, which `NCAKERN_ISA` may limit.
    """
    from ncakern import _cpu  # only here: the other providers run without the extension

    return _cpu.fma_peak(threads, PEAK_ROUNDS, cpu.choose_isa())
