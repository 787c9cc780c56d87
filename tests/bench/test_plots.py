"""The figures of a run, where matplotlib is installed."""

import json

import pytest

from benchmarks.harness.cases import load_cases
from benchmarks.harness.record import plain_row

pytest.importorskip("matplotlib", reason="figures need matplotlib: pip install 'ncakern[plot]'")

from benchmarks.harness.plots import draw, draw_speedup, draw_threads  # noqa: E402

CASE = load_cases()["A"]


def speed(provider, metric, value):
    return plain_row(CASE, provider, "forward", metric, "", value)


def test_bars_are_the_ratios():
    figure = draw_speedup([speed("eager", "throughput", 2.0), speed("kernel", "throughput", 50.0)])
    assert [bar.get_height() for bar in figure.axes[0].patches] == [25.0]
    assert draw_speedup([speed("kernel", "throughput", 50.0)]) is None


def test_no_bar_is_cut_off():
    rows = [speed("eager", "throughput", 2.0), speed("kernel", "throughput", 50.0)]
    rows += [row | {"mode": "training", "value": row["value"] ** 2} for row in rows]  # 25 and 625 times as fast
    for axes in draw_speedup(rows).axes:
        assert axes.get_ylim()[0] == 1
        assert axes.get_ylim()[1] > 625


def test_lines_are_relative_to_the_fewest_threads():
    figure = draw_threads([speed("kernel", "throughput-1threads", 20.0), speed("kernel", "throughput-2threads", 30.0)])
    ideal, measured = figure.axes[0].lines
    assert list(ideal.get_ydata()) == [1.0, 2.0]
    assert list(measured.get_ydata()) == [1.0, 1.5]
    assert draw_threads([speed("kernel", "throughput-1threads", 20.0)]) is None


def test_only_figures_with_data_are_written(tmp_path):
    path = tmp_path / "run.jsonl"
    rows = [speed("eager", "throughput", 2.0), speed("kernel", "throughput", 50.0)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert draw(path) == [tmp_path / "run-speedup.svg"]
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "run-speedup.svg"][::-1]
    assert "<svg" in (tmp_path / "run-speedup.svg").read_text()
