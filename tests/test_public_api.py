"""The public names and signatures of ncakern, and that importing it is cheap and quiet."""

import doctest
import inspect
import subprocess
import sys

import pytest

import ncakern
import ncakern.arrays
import ncakern.upstream

NAMES = [
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
STREAM = ["seed", "first_step", "first_sample", "origin", "extent"]
CALL = [*STREAM, "perceive_from", "modulation", "keep_every", "backend"]


def _parameters(function: object) -> tuple[list[str], list[str]]:
    """Names of the positional and of the keyword-only parameters."""
    parameters = inspect.signature(function).parameters.values()
    keyword_only = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD], keyword_only


def test_public_names() -> None:
    assert sorted(ncakern.__all__) == NAMES
    assert all(hasattr(ncakern, name) for name in NAMES)


@pytest.mark.parametrize(
    ("function", "positional", "keyword_only"),
    [
        (ncakern.nca_rollout, ["state", "params", "spec", "steps"], CALL),
        (ncakern.nca_rollout_reference, ["state", "params", "spec", "steps"], CALL[:-2]),
        (ncakern.NCA.forward, ["self", "state", "steps"], CALL),
        (
            ncakern.arrays.nca_rollout,
            ["state", "params", "spec", "steps"],
            [*STREAM, "perceive_from", "out", "threads"],
        ),
        (ncakern.arrays.perception_moments, ["state", "params", "spec"], ["inner", "threads"]),
        (
            ncakern.NCA,
            ["ndim", "channels", "hidden"],
            [
                "perception",
                "num_filters",
                "kernel_size",
                "padding",
                "norm",
                "activation",
                "fire_rate",
                "frozen_channels",
                "clamp",
                "out_bias",
            ],
        ),
        (
            ncakern.fire_mask,
            ["shape"],
            ["seed", "step", "fire_rate", "first_sample", "origin", "extent"],
        ),
        (ncakern.load_upstream, ["source"], ["upstream_fire_rate", "frozen_channels", "padding"]),
        (ncakern.explain, ["state", "params", "spec", "steps"], []),
        (ncakern.backends, [], []),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_signatures(function: object, positional: list[str], keyword_only: list[str]) -> None:
    assert _parameters(function) == (positional, keyword_only)


def test_every_public_function_is_documented() -> None:
    for name in NAMES:
        if callable(getattr(ncakern, name)):
            assert getattr(ncakern, name).__doc__, name


def test_import_loads_no_torch_and_importing_a_subpackage_hides_no_function() -> None:
    program = (
        "import sys, ncakern, ncakern.arrays; assert 'torch' not in sys.modules; import ncakern.backends.cpu; "
        "print(ncakern.backends()['reference'])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "None" and not result.stderr


def test_without_torch_a_name_says_what_it_needs() -> None:
    program = "import sys; sys.modules['torch'] = None; import ncakern; ncakern.RolloutSpec(); ncakern.NCA"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "ImportError: ncakern.NCA needs torch, which is not installed; ncakern.arrays does not" in result.stderr


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'ncakern' has no attribute 'nope'"):
        ncakern.nope  # noqa: B018


def test_import_loads_neither_triton_nor_the_extension() -> None:
    # torch._dynamo imports triton by itself where there is one; only what comes on top is ours.
    program = (
        "import sys, torch._dynamo; before = set(sys.modules); import ncakern; added = set(sys.modules) - before; "
        "print([m for m in added if m.split('.')[0] == 'triton' or m in ('ncakern._cpu', 'ncaseg')])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]" and not result.stderr


@pytest.mark.parametrize(
    "module",
    [ncakern._spec, ncakern._dispatch, ncakern.arrays, ncakern.functional, ncakern.nn, ncakern.upstream],
    ids=lambda m: m.__name__,
)
def test_examples_in_docstrings_run(module: object) -> None:
    import torch

    names = {**vars(module), "ncakern": ncakern, "torch": torch, "RolloutParams": ncakern.RolloutParams}
    result = doctest.testmod(module, extraglobs=names)
    assert result.attempted > 0 and result.failed == 0


def test_info_prints_every_backend() -> None:
    result = subprocess.run([sys.executable, "-m", "ncakern.info"], capture_output=True, text=True, check=True)
    for name in ncakern.backends():
        assert name in result.stdout
    assert ncakern.__version__ in result.stdout
