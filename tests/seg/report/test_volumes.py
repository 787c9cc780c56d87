"""Pictures: outlines at the right pixels, proportions of anisotropic volumes, panels in their order."""

import tracemalloc

import numpy as np
import pytest
from seg.report.pixels import has, pixels

from ncaseg.report import volumes
from ncaseg.report.volumes import LABEL_COLOUR, PANEL_PX, PREDICTION_COLOUR


@pytest.fixture
def scan():
    image = np.random.default_rng(0).normal(size=(10, 12, 8))
    mask = np.zeros(image.shape, np.uint8)
    mask[2:6, 3:9, 2:5] = 1
    return image, mask


def test_overlay_outlines_prediction_and_label(tmp_path, scan):
    image, mask = scan
    volumes.draw_overlay(tmp_path / "o.png", image, mask, np.roll(mask, 2, axis=0))
    picture = pixels(tmp_path / "o.png")
    assert has(picture, PREDICTION_COLOUR).sum() > 500
    assert has(picture, LABEL_COLOUR).sum() > 500
    volumes.draw_overlay(tmp_path / "o.png", image, mask)
    assert not has(pixels(tmp_path / "o.png"), LABEL_COLOUR).any()


def test_outline_lies_on_the_border_of_the_mask(tmp_path):
    mask = np.zeros((6, 6), np.uint8)
    mask[1:3, 2:5] = 1  # rows 1 to 2, columns 2 to 4
    volumes.draw_overlay(tmp_path / "o.png", np.arange(36.0).reshape(6, 6), mask)
    panel = has(pixels(tmp_path / "o.png"), PREDICTION_COLOUR)[8 + volumes.CAPTION_PX :, 8:][:PANEL_PX, :PANEL_PX]
    cell = PANEL_PX // 6
    rows, columns = np.nonzero(panel)
    assert (rows.min(), rows.max()) == (cell, 3 * cell - 1)
    assert (columns.min(), columns.max()) == (2 * cell, 5 * cell - 1)
    assert not panel[cell + 5 : 3 * cell - 5, 2 * cell + 5 : 5 * cell - 5].any()  # only the border is coloured


def test_later_axes_point_up(tmp_path):
    """A volume that is bright at high y has a bright top in its axial plane."""
    image = np.zeros((6, 6, 6))
    image[:, 3:] = 1.0
    volumes.draw_triptych(tmp_path / "t.png", image, np.zeros(image.shape, np.uint8), np.zeros(image.shape))
    panel = pixels(tmp_path / "t.png")[8 + volumes.CAPTION_PX :, 8:, 0]
    assert panel[PANEL_PX // 4, PANEL_PX // 2] == 255
    assert panel[3 * PANEL_PX // 4, PANEL_PX // 2] == 0


def test_anisotropic_cells_keep_their_proportions(tmp_path):
    image = np.random.default_rng(0).normal(size=(20, 10))
    volumes.draw_overlay(tmp_path / "a.png", image, np.zeros(image.shape, np.uint8))
    volumes.draw_overlay(tmp_path / "b.png", image, np.zeros(image.shape, np.uint8), spacing_mm=(1.0, 2.0))
    narrow, square = pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png")
    assert narrow.shape[0] == square.shape[0]
    assert square.shape[1] - narrow.shape[1] == PANEL_PX // 2


def test_triptych_shows_image_prediction_variance_in_this_order(tmp_path, scan):
    image, mask = scan
    variance = np.where(mask > 0, 0.1, 0.0)
    variance[0, 0, :] = 0.2
    volumes.draw_triptych(tmp_path / "t.png", image, mask, variance)
    picture = pixels(tmp_path / "t.png")[8 + volumes.CAPTION_PX :, :, 0]
    width = (picture.shape[1] - 4 * 8) // 3
    first, second, third = (picture[:PANEL_PX, 8 + i * (width + 8) :][:, :width] for i in range(3))
    assert len(np.unique(first)) > 20
    assert set(np.unique(second)) == {0, 255}
    assert set(np.unique(third)) == {0, 127, 255}


def test_empty_prediction_can_be_drawn(tmp_path, scan):
    image, mask = scan
    empty = np.zeros_like(mask)
    volumes.draw_overlay(tmp_path / "o.png", image, empty, mask)
    volumes.draw_triptych(tmp_path / "t.png", image, empty, np.zeros(image.shape))
    assert has(pixels(tmp_path / "o.png"), LABEL_COLOUR).any()


def test_drawing_takes_slices_of_a_mapped_volume(tmp_path, scan):
    image, mask = scan
    volumes.draw_overlay(tmp_path / "o.png", image, mask)  # what is loaded once
    size = (128, 128, 128)
    image, mask, spread = (
        np.memmap(tmp_path / name, dtype, "w+", shape=size)
        for name, dtype in (("i", np.float32), ("m", np.uint8), ("v", np.float32))
    )
    image[:, 40, 70], mask[30:, 40, 60:], spread[5:, :, 80] = 7.0, 1, 0.25
    tracemalloc.start()
    volumes.draw_overlay(tmp_path / "o.png", image, mask)
    volumes.draw_triptych(tmp_path / "t.png", image, mask, spread)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < image.nbytes / 4
    assert has(pixels(tmp_path / "o.png"), PREDICTION_COLOUR).any() and pixels(tmp_path / "t.png").std() > 10


def test_planes_pass_through_the_middle_of_the_prediction(scan):
    _, mask = scan
    assert volumes._centre_of(mask) == (4, 6, 3)  # of 2 to 5, 3 to 8, 2 to 4; halves to even
    assert volumes._centre_of(mask[3]) == (6, 3) and volumes._centre_of(0 * mask) == (5, 6, 4)


def test_pictures_refuse_other_shapes(tmp_path, scan):
    image, mask = scan
    with pytest.raises(ValueError, match=r"prediction must have the image's shape \(10, 12, 8\)"):
        volumes.draw_overlay(tmp_path / "o.png", image, mask[1:])
    with pytest.raises(ValueError, match="image must be 2D or 3D"):
        volumes.draw_overlay(tmp_path / "o.png", image[None], mask[None])
    with pytest.raises(ValueError, match="spacing_mm must have 3 values; got 2"):
        volumes.draw_overlay(tmp_path / "o.png", image, mask, spacing_mm=(1.0, 1.0))
    assert not list(tmp_path.iterdir())
