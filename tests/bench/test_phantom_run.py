"""Every stage runs through the command line, and is measured by its own process."""

import subprocess

import numpy as np
import pytest

from benchmarks.harness import record
from benchmarks.segmentation import phantom_run
from benchmarks.segmentation.phantom_run import Cost
from ncaseg.cli.main import main
from ncaseg.data.phantom import write_phantoms

SMALL = ["data.size=[16,16,16]", "train.steps=2", "train.validate_every=0", "model.steps=[2]"]


def test_a_recipe_runs_from_end_to_end_and_becomes_a_page(tmp_path, monkeypatch):
    commands = []

    def here(arguments):
        commands.append([str(each) for each in arguments])
        assert main(commands[-1]) == 0
        return Cost(2.0, 3 * 10**8)

    monkeypatch.setattr(phantom_run, "measure", here)
    rows = phantom_run.run("demo", tmp_path, SMALL, count=3, samples=2, memory="4GB")
    assert [command[0] for command in commands] == ["train", "evaluate", "predict", "predict", "predict"]
    assert "--no-torch" in commands[3] and commands[4][-2:] == ["--memory", "4GB"]
    assert (tmp_path / "run" / "prediction.nii.gz").exists()
    assert {(row["parameters"], row["cases"], row["phantoms"]) for row in rows} == {(3712, 1, 3)}
    with pytest.raises(FileExistsError, match="must not hold a run yet"):
        phantom_run.run("demo", tmp_path, SMALL, count=3, samples=2, memory="4GB")
    page = phantom_run.render([record.describe_run() | row for row in rows])
    assert "| training | 2 | 0.30 GB |" in page and "phantoms of 16x16x16 cells" in page
    assert "`train.steps=2`" in page and "easier than any organ" in page


def test_a_process_is_measured_alone_and_its_failure_told(tmp_path):
    scan = write_phantoms(tmp_path, 1, size=(16, 16, 16)) / "imagesTr" / "phantom_000.nii.gz"
    held = np.ones(50_000_000)  # 400 MB of this process, which the other must not count
    cost = phantom_run.measure(["predict", "m3d-hippocampus-fast", scan, "-o", tmp_path / "out.nii.gz", "--no-torch"])
    assert held.sum() > 0 and 0 < cost.seconds < 60 and 20 * 10**6 < cost.peak_bytes < 300 * 10**6
    with pytest.raises(subprocess.CalledProcessError):
        phantom_run.measure(["train", "no-such-recipe"])
