"""Charts that hold the given points, lines and marks; ticks that are round."""

import numpy as np
import pytest
from seg.report.pixels import has, pixels

from ncaseg.report import charts
from ncaseg.report.charts import INK, SERIES_COLOURS


def inside(picture):
    """The area between the axes, without numbers and texts."""
    return picture[charts.TOP : charts.HEIGHT - charts.BOTTOM + 1, charts.LEFT : charts.WIDTH - charts.RIGHT + 1]


def test_curve_runs_through_its_points(tmp_path):
    charts.draw_curve(tmp_path / "c.png", {"down": ([0, 10], [1.0, 0.0])}, title="t", x_label="x")
    line = has(pixels(tmp_path / "c.png"), SERIES_COLOURS[0])[40:]  # below the legend
    columns = np.nonzero(line.any(0))[0]
    top, bottom = (np.nonzero(line[:, columns[i]])[0].mean() for i in (0, -1))
    assert bottom - top > 250
    middle = np.nonzero(line[:, columns[len(columns) // 2]])[0].mean()
    assert middle == pytest.approx((top + bottom) / 2, abs=4)


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5], [1e-7, 3e5], [-2.0, -1.0]])
def test_curve_of_any_range_can_be_drawn(tmp_path, values):
    charts.draw_curve(tmp_path / "c.png", {"v": (range(len(values)), values)}, title="t", x_label="x")
    assert has(pixels(tmp_path / "c.png"), SERIES_COLOURS[0]).any()


def test_curve_without_a_finite_point_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one finite point"):
        charts.draw_curve(tmp_path / "c.png", {"v": ([1.0], [float("nan")])}, title="t", x_label="x")


def test_ticks_are_round_and_enclose_the_values():
    assert charts._ticks([0.0, 1.0]) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    ticks = charts._ticks([13.0, 987.0])
    assert ticks[0] <= 13 and ticks[-1] >= 987


def test_loss_curve_reads_the_log_of_a_run(tmp_path):
    rows = [f"{i},{1 / i},{0.5 if i % 30 == 0 else ''}" for i in range(1, 61)]
    (tmp_path / "log.csv").write_text("step,loss,val_dice\n" + "\n".join(rows) + "\n")
    charts.draw_loss_curve(tmp_path / "log.csv", tmp_path / "loss.png")
    picture = pixels(tmp_path / "loss.png")
    assert all(has(picture, colour).any() for colour in SERIES_COLOURS[:3])  # loss, its mean, validation Dice


def test_empty_log_is_refused(tmp_path):
    (tmp_path / "log.csv").write_text("step,loss\n")
    with pytest.raises(ValueError, match="must have the columns step and loss"):
        charts.draw_loss_curve(tmp_path / "log.csv", tmp_path / "loss.png")


def test_scatter_puts_points_where_they_belong(tmp_path):
    """Ticks run from 0 to 1 on both axes; a point in the middle lies in the middle."""
    groups = {"corner": ([0, 1], [0, 1]), "middle": ([0.5], [0.5])}
    charts.draw_scatter(tmp_path / "s.png", groups, title="t", x_label="x", y_label="y")
    rows, columns = np.nonzero(has(inside(pixels(tmp_path / "s.png")), SERIES_COLOURS[1]))
    assert rows.mean() == pytest.approx((charts.HEIGHT - charts.TOP - charts.BOTTOM) / 2, abs=1)
    assert columns.mean() == pytest.approx((charts.WIDTH - charts.LEFT - charts.RIGHT) / 2, abs=1)
    assert 20 < len(rows) < 60  # one dot


def test_scatter_draws_line_and_marks(tmp_path):
    options = {"title": "", "x_label": "", "y_label": ""}
    groups = {"points": ([0, 1], [0, 1])}
    counts = []
    for more in (
        {},
        {"x_mark": 0.35},
        {"y_mark": 0.35},
        {"line": (0.9, -0.8)},
        {"line": (2.0, -3.0)},
        {"line": (0.5, 0)},
    ):
        charts.draw_scatter(tmp_path / "s.png", groups, **options, **more)
        counts.append(int(has(inside(pixels(tmp_path / "s.png")), INK).sum()))
    plain, vertical, horizontal, falling, steep, flat = counts
    assert plain == 0
    assert vertical == pytest.approx(charts.HEIGHT - charts.TOP - charts.BOTTOM, abs=12)
    assert horizontal == pytest.approx(charts.WIDTH - charts.LEFT - charts.RIGHT, abs=12)
    assert all(count > 300 for count in (falling, steep, flat))


def test_line_goes_through_its_points(tmp_path):
    charts.draw_scatter(tmp_path / "s.png", {"p": ([0, 1], [0, 1])}, title="", x_label="", y_label="", line=(1.5, -1.0))
    rows, columns = np.nonzero(has(inside(pixels(tmp_path / "s.png")), INK))
    width, height = charts.WIDTH - charts.LEFT - charts.RIGHT, charts.HEIGHT - charts.TOP - charts.BOTTOM
    x, y = columns / width, 1 - rows / height
    np.testing.assert_allclose(x + y, 1.5, atol=0.02)
    assert x.min() == pytest.approx(0.5, abs=0.01)  # it leaves the axes at the top


def test_scatter_leaves_out_what_is_not_finite(tmp_path):
    charts.draw_scatter(tmp_path / "s.png", {"p": ([float("inf"), 1.0], [0.0, 1.0])}, title="", x_label="", y_label="")
    assert has(inside(pixels(tmp_path / "s.png")), SERIES_COLOURS[0]).sum() < 60
    with pytest.raises(ValueError, match="at least one finite point"):
        charts.draw_scatter(tmp_path / "s.png", {"p": ([], [])}, title="", x_label="", y_label="")
