"""The record of a run survives a crash, and progress can be read with and without a terminal."""

import io
import json

import pytest

from ncaseg.training.logs import Progress, RunLog, read_rows

COLUMNS = ("step", "loss", "val_dice")


def rows(*steps):
    return [{"step": step, "loss": 0.5 / step, "val_dice": None} for step in steps]


def write(folder, numbers, keep_through):
    with RunLog(folder, COLUMNS, keep_through=keep_through) as log:
        for row in rows(*numbers):
            log.write(row)


def test_both_files_hold_every_row(tmp_path):
    write(tmp_path, (1, 2), 0)
    assert read_rows(tmp_path / "log.jsonl") == rows(1, 2)
    assert (tmp_path / "log.csv").read_text() == "step,loss,val_dice\n1,0.5,\n2,0.25,\n"


def test_rows_after_the_checkpoint_and_a_cut_line_are_dropped(tmp_path):
    write(tmp_path, (1, 2, 3, 4), 0)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write(json.dumps(rows(5)[0])[:9])
    with (tmp_path / "log.csv").open("a") as file:
        file.write("5,0.")
    write(tmp_path, (3,), 2)
    assert read_rows(tmp_path / "log.jsonl") == rows(1, 2, 3)
    assert [line.split(",")[0] for line in (tmp_path / "log.csv").read_text().splitlines()] == ["step", "1", "2", "3"]


def test_a_table_is_not_replaced_by_a_shorter_one(tmp_path):
    write(tmp_path, (1, 2, 3), 0)
    before = (tmp_path / "log.csv").read_text()
    for damage in (lambda path: path.unlink(), lambda path: path.write_text("")):
        damage(tmp_path / "log.jsonl")
        with pytest.raises(ValueError, match=r"log.jsonl holds 0 steps of the 3 in .*log.csv"):
            RunLog(tmp_path, COLUMNS, keep_through=3)
        assert (tmp_path / "log.csv").read_text() == before
        write(tmp_path, (), 0)  # nothing of it is wanted
        write(tmp_path, (1, 2, 3), 0)


def test_rows_are_on_disk_before_the_log_is_closed(tmp_path):
    with RunLog(tmp_path, COLUMNS, keep_through=0) as log:
        log.write(rows(1)[0])
        assert read_rows(tmp_path / "log.jsonl") == rows(1)
        assert (tmp_path / "log.csv").read_text().endswith("1,0.5,\n")


def test_plain_lines_are_rare_but_the_last_is_written():
    stream = io.StringIO()
    with Progress(5, start=2, stream=stream) as progress:
        for step in (3, 4, 5):
            progress.update(step, f"loss {step}")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1 and lines[0].startswith("step 5/5  loss 5") and "s/step" in lines[0]


def test_terminal_gets_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with Progress(5, start=2, stream=stream) as progress:
        progress.update(5, "loss 0.1")
    assert "5/5" in stream.getvalue() and "loss 0.1" in stream.getvalue()
