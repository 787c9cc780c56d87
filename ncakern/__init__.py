"""Fast Neural Cellular Automata for PyTorch: a rollout of many steps in one differentiable call.

Importing this package loads neither a GPU compiler nor the C++ extension; the first call that needs one does.
"""

from ncakern._dispatch import backends
from ncakern._spec import Problem, RolloutParams, RolloutSpec
from ncakern.functional import explain, fire_mask, nca_rollout
from ncakern.nn import NCA
from ncakern.reference import nca_rollout_reference
from ncakern.upstream import load_upstream

__version__ = "0.1.0"

__all__ = [
    "NCA",
    "Problem",
    "RolloutParams",
    "RolloutSpec",
    "__version__",
    "backends",
    "explain",
    "fire_mask",
    "load_upstream",
    "nca_rollout",
    "nca_rollout_reference",
]
