"""Fast Neural Cellular Automata for PyTorch: a rollout of many steps in one differentiable call.

Importing this package loads neither torch nor a GPU compiler nor the C++ extension: names are looked up on first use
(PEP 562), and the first call loads what it needs. `ncakern.arrays` works where there is no torch.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

from ncakern._spec import Problem, RolloutParams, RolloutSpec

if TYPE_CHECKING:
    from ncakern._dispatch import backends
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

# Where the names live that need torch.
_HOMES = {
    "NCA": "nn",
    "backends": "_dispatch",
    "explain": "functional",
    "fire_mask": "functional",
    "load_upstream": "upstream",
    "nca_rollout": "functional",
    "nca_rollout_reference": "reference",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ncakern' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f"ncakern.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(f"ncakern.{name} needs torch, which is not installed; ncakern.arrays does not") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(types.ModuleType):
    """This package, on which importing the subpackage `backends` does not hide the function of that name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "backends" or not isinstance(value, types.ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
