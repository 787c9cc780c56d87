"""The comparison fails when it must: a check that cannot fail proves nothing."""

import pytest
import torch
from helpers import Case, assert_matches, make_inputs


def _trio() -> tuple[torch.Tensor, torch.Tensor]:
    exact = torch.randn(8, 50, dtype=torch.float64)
    return exact.float() + 1e-6 * torch.randn(8, 50), exact


def test_equal_quality_passes() -> None:
    plain, exact = _trio()
    assert_matches(plain, plain, exact, name="x")
    assert_matches(exact.float(), exact.float(), exact, name="x")


def test_one_bad_element_fails() -> None:
    plain, exact = _trio()
    actual = plain.clone()
    actual[3, 7] += 3e-5
    with pytest.raises(AssertionError, match="x: largest error"):
        assert_matches(actual, plain, exact, name="x")


def test_many_small_errors_fail() -> None:
    plain, exact = _trio()
    plain = exact.float()
    plain[0, 0] += 1e-3  # one large error of plain PyTorch must not excuse a small one everywhere
    with pytest.raises(AssertionError, match="x: L2 error"):
        assert_matches(exact.float() + 9e-4, plain, exact, name="x")


def test_wrong_direction_fails() -> None:
    exact = torch.full((4, 4), 1.0, dtype=torch.float64)
    plain = exact.float() * 1.009
    actual = exact.float()
    actual[:, ::2] *= -0.9
    with pytest.raises(AssertionError):
        assert_matches(actual, plain, exact, name="x")


def test_missing_and_extra_rows_fail() -> None:
    exact = torch.randn(4, 6, dtype=torch.float64)
    exact[1] *= 1e-9  # too small for the other criteria to see
    actual = exact.float()
    actual[1] = 0
    with pytest.raises(AssertionError, match=r"rows \[1\] are zero"):
        assert_matches(actual, exact.float(), exact, name="x")
    exact[1] = 0
    actual[1] = 1e-12
    with pytest.raises(AssertionError, match=r"rows \[1\] must be zero"):
        assert_matches(actual, exact.float(), exact, name="x")


def test_nan_and_wrong_shape_fail() -> None:
    plain, exact = _trio()
    with pytest.raises(AssertionError, match="shape"):
        assert_matches(plain[:1], plain, exact, name="x")
    with pytest.raises(AssertionError, match="not finite"):
        assert_matches(plain * float("nan"), plain, exact, name="x")


def test_cases_are_reproducible_and_have_distinct_names() -> None:
    case = Case(size=(3, 4), options={"norm": "batch"})
    first, second = make_inputs(case), make_inputs(case)
    assert all(torch.equal(a, b) for a, b in zip(first.named().values(), second.named().values(), strict=True))
    assert case.id == "B2-S3x4-C4-h7-F1-k3x3-n3-batch"
