"""The engine's fuzzer in its short form; `make fuzz` runs the long one."""

import pytest
from fuzz.engine import supervise

import ncakern

pytestmark = pytest.mark.skipif(ncakern.backends()["cpu"] is not None, reason="the extension is not built")


def test_no_input_of_the_short_form_is_a_finding() -> None:
    report = supervise(0, 150)
    assert report.counts.total() == 150 and not report.findings, str(report)


def test_a_crash_is_a_finding_and_the_next_input_runs() -> None:
    report = supervise(0, 3, crash_at=1)
    assert report.counts["crash"] == 1 and report.counts.total() == 3
    (finding,) = report.findings
    assert finding.startswith("1: the process ended with -11") and "Segmentation fault" in finding
