"""Collects the rows of the benchmarks and prints them as tables after pytest-benchmark's own."""

import pytest

from benchmarks.harness import record, report

ROWS = pytest.StashKey[list[dict]]()


def pytest_configure(config):
    config.stash[ROWS] = []


@pytest.fixture
def bench_rows(request):
    return request.config.stash[ROWS]


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash[ROWS]
    if rows:
        run = record.describe_run()
        terminalreporter.write_line("\n" + report.report([run | row for row in rows]))
