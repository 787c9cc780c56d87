"""The command line as a user meets it: help at once, one clear line per mistake, exit codes, and the whole way."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from seg.tiny import tiny_config, tiny_model, write_scan

from ncaseg.checkpoint.model import save_model
from ncaseg.cli import verbs
from ncaseg.cli.main import main
from ncaseg.data.index import find_cases
from ncaseg.data.phantom import write_phantoms

TINY_TRAINING = ["model.channels=4", "model.hidden=8", "model.steps=[2]", "train.steps=2", "train.validate_every=1"]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("data"), 5, seed=0, size=(12, 13, 14))


def run(*arguments):
    return main([str(argument) for argument in arguments])


def failure(capsys, *arguments):
    """Exit code and the error line of a command that fails; anything else it prints to stderr is a mistake."""
    try:
        code = run(*arguments)
    except SystemExit as error:  # argparse
        code = error.code
    lines = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in "\n".join(lines)
    return code, lines[-1]


def python(*arguments):
    path = os.pathsep.join(p for p in sys.path if p)
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path})


def cpu_seconds_of_children():
    """Processor time of the processes that have ended: on a busy machine the clock on the wall says little."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_is_immediate():
    used = [cpu_seconds_of_children()]
    for _ in range(3):
        output = python("-m", "ncaseg", "--help").stdout
        used.append(cpu_seconds_of_children())
    assert all(verb in output for verb in ("train", "predict", "evaluate", "demo", "doctor"))
    assert min(after - before for before, after in zip(used, used[1:], strict=False)) < 0.3


@pytest.mark.parametrize("verb", ["train", "folds", "predict", "evaluate", "qc", "reproduce", "demo", "doctor"])
def test_help_of_a_verb_exits_with_0(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(verb, "--help")
    assert stopped.value.code == 0
    assert f"ncaseg {verb}" in capsys.readouterr().out


def test_waiting_threads_sleep_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    code = "import os; from ncaseg import cli\n"
    code += "try: cli.main(['--help'])\nexcept SystemExit: print(os.environ['OMP_WAIT_POLICY'])"
    assert python("-c", code).stdout.splitlines()[-1] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert python("-c", code).stdout.splitlines()[-1] == "ACTIVE"


def test_help_loads_neither_torch_nor_kernel():
    code = """
import sys
from ncaseg import cli
try:
    cli.main(["predict", "--help"])
except SystemExit:
    pass
loaded = {"torch", "numpy", "nibabel", "ncakern", "PIL"} & set(sys.modules)
assert not loaded, loaded
"""
    python("-c", code)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "demo", "--out", "run"], "give either --data DIR"),
        (["train", "demo", "--data", "d", "--images", "i", "--out", "run"], "give either --data DIR"),
        (["train", "demo", "--images", "i", "--out", "run"], "--images needs --labels"),
        (["evaluate", "m", "--data", "d", "--labels", "l"], "--labels needs --images"),
        (["train", "dmo", "--data", "d", "--out", "run"], "no recipe named 'dmo'; known: cdal-cxr"),
        (["train", "demo", "--data", "d", "--out", "run", "train.stesp=3"], "did you mean train.steps?"),
        (["train", "demo", "train.steps=x", "--data", "d", "--out", "run"], "train.steps must be of type int"),
        (["train", "demo", "--data", "d", "--out", "run", "--stesp", "3"], "unrecognized arguments: --stesp 3"),
        (["doctor", "train.steps=3"], "unrecognized arguments: train.steps=3"),
        (["predict", "no-such-model", "scan.nii", "-o", "seg.nii"], "got 'no-such-model'"),
        (["predict", "m", "scan.nii", "-o", "seg.nii", "--samples", "0"], "must be at least 1; got 0"),
        (["predict", "m", "scan.nii"], "required: -o/--out"),
        (["segment"], "invalid choice: 'segment'"),
        ([], "required: VERB"),
    ],
)
def test_usage_errors_exit_with_2(arguments, message, capsys):
    code, line = failure(capsys, *arguments)
    assert code == verbs.EXIT_USAGE == 2
    assert "error: " in line
    assert message in line


def test_data_errors_exit_with_3(model, phantoms, tmp_path, capsys):
    scan = write_scan(tmp_path / "scan.nii")
    flat = tmp_path / "flat.nii"
    nib.save(nib.Nifti1Image(np.ones((7, 9, 6), np.float32), np.eye(4)), flat)
    for arguments, message in (
        (["predict", model, tmp_path / "nowhere.nii", "-o", tmp_path / "seg.nii"], "nowhere.nii does not exist"),
        (["predict", model, scan, "-o", scan], "must not replace its input"),
        (["predict", model, flat, "-o", tmp_path / "seg.nii"], "flat.nii is constant"),
        (["evaluate", model, "--data", tmp_path / "nothing"], "does not exist"),
        (["evaluate", model, "--data", phantoms, "--split", tmp_path / "split.json"], "split.json"),
        (["train", "demo", "--data", tmp_path / "nothing", "-o", tmp_path / "run"], "does not exist"),
    ):
        code, line = failure(capsys, *arguments)
        assert code == verbs.EXIT_DATA == 3
        assert line.startswith("ncaseg: error: ")
        assert message in line
    assert not (tmp_path / "seg.nii").exists()


@pytest.mark.parametrize("error", [ImportError("no torch"), OSError("disk full"), MemoryError(), RuntimeError("bug")])
def test_environment_errors_exit_with_4(error, model, tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("ncaseg.inference.files.predict_path", fail)
    code, line = failure(capsys, "predict", model, write_scan(tmp_path / "scan.nii"), "-o", tmp_path / "seg.nii")
    assert code == verbs.EXIT_ENVIRONMENT == 4
    assert line == f"ncaseg: error: {str(error) or 'MemoryError'}"


def test_our_own_mistakes_keep_their_traceback(model, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("a bug")

    monkeypatch.setattr("ncaseg.inference.files.predict_path", fail)
    with pytest.raises(AssertionError, match="a bug"):
        run("predict", model, tmp_path / "scan.nii", "-o", tmp_path / "seg.nii")


def test_debug_shows_the_traceback(model, tmp_path, capsys):
    assert run("predict", model, tmp_path / "nowhere.nii", "-o", tmp_path / "seg.nii", "--debug") == 3
    error = capsys.readouterr().err
    assert "Traceback (most recent call last)" in error
    assert error.strip().splitlines()[-1].startswith("ncaseg: error: ")


def test_interruption_says_how_to_go_on(model, tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("ncaseg.inference.files.predict_path", interrupt)
    assert run("predict", model, tmp_path / "scan.nii", "-o", tmp_path / "seg.nii") == 130
    assert "rerun the same command to resume" in capsys.readouterr().err


@pytest.mark.parametrize("by_folders", [False, True])
def test_train_evaluate_predict(phantoms, tmp_path, capsys, by_folders):
    """Each command is the `next:` line of the one before, up to file names."""
    data = ["--data", phantoms]
    if by_folders:
        data = ["--images", phantoms / "imagesTr", "--labels", phantoms / "labelsTr"]
    out = tmp_path / "run"
    assert run("train", "demo", TINY_TRAINING[0], *data, "--out", out, *TINY_TRAINING[1:]) == 0
    for name in ("model.safetensors", "split.json", "log.csv", "loss.png", "recipe.toml"):
        assert (out / name).stat().st_size > 0
    assert "steps = 2\n" in (out / "recipe.toml").read_text()

    command = next_command(capsys)
    assert command[:2] == ["ncaseg", "evaluate"]
    assert run(*command[1:], "--csv", tmp_path / "scores.csv") == 0
    scores = json.loads((out / "scores.json").read_text())
    split = json.loads((out / "split.json").read_text())
    assert [case["id"] for case in scores["cases"]] == split["validation"]
    assert scores["samples"] == 10
    assert (tmp_path / "scores.csv").read_text().startswith("id,hard_dice,iou,soft_dice,")

    command = next_command(capsys)
    assert command[:2] == ["ncaseg", "predict"]
    target = tmp_path / "seg.nii.gz"
    assert run(*command[1:4], "-o", target, "--samples", 1, "--seed", 3, "--png") == 0
    assert nib.load(target).shape == (12, 13, 14)
    assert (tmp_path / "seg_overlay.png").exists()
    assert next_command(capsys)[:2] == ["ncaseg", "evaluate"]


def next_command(capsys) -> list[str]:
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("next: ")
    return last.removeprefix("next: ").split("   #")[0].split()


def test_evaluate_restricts_to_the_training_cases(model, phantoms, tmp_path, capsys):
    from ncaseg.data.split import make_split, save_split

    split = make_split([f"phantom_{i:03d}" for i in range(5)], 0.2, seed=0)
    save_split(tmp_path / "split.json", split)
    files = ["--split", tmp_path / "split.json", "--json", tmp_path / "scores.json"]
    options = ["--subset", "train", "--samples", 1, "--empty", "zero"]
    assert run("evaluate", model, "--data", phantoms, *files, *options) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert [case["id"] for case in scores["cases"]] == list(split.train)
    assert scores["conditions"]["empty"].endswith("zero")


@pytest.mark.data
def test_real_scan_keeps_its_header(model, tmp_path):
    folder = os.environ.get("NCASEG_DATA")
    if not folder:
        pytest.skip("NCASEG_DATA does not name the folder that holds Task04_Hippocampus")
    scan = sorted(Path(folder, "Task04_Hippocampus", "imagesTr").glob("*.nii.gz"))[0]
    assert run("predict", model, scan, "-o", tmp_path / "seg.nii.gz", "--samples", 1) == 0
    before, after = nib.load(scan), nib.load(tmp_path / "seg.nii.gz")
    assert np.array_equal(after.affine, before.affine)
    for field in ("pixdim", "qform_code", "sform_code", "xyzt_units", "dim"):
        assert np.array_equal(after.header[field], before.header[field])


def test_evaluate_says_what_the_ensemble_gains(model, phantoms, tmp_path, capsys):
    options = ["--samples", 3, "--compare", 1, "--rule", "median", "--json", tmp_path / "scores.json"]
    assert run("evaluate", model, "--data", phantoms, *options) == 0
    assert "ensemble of 3 over 1, points: hard_dice " in capsys.readouterr().out
    comparison = json.loads((tmp_path / "scores.json").read_text())["comparison"]
    assert comparison["samples"] == 1
    assert set(comparison["gain"]["hard_dice"]) == {"mean", "std"}


def test_flips_are_an_option_of_predict_and_evaluate(model, phantoms, tmp_path, capsys):
    for flips in ("xy", "none"):
        options = ["--samples", 2, "--flips", flips, "--json", tmp_path / f"{flips}.json"]
        assert run("evaluate", model, "--data", phantoms, *options) == 0
    assert "missed, of 5: hard_dice below 0.3 in " in capsys.readouterr().out
    flipped, plain = (json.loads((tmp_path / f"{flips}.json").read_text()) for flips in ("xy", "none"))
    assert "flips" in flipped["conditions"] and "flips" not in plain["conditions"]
    assert flipped["mean"] != plain["mean"]
    scan = find_cases(phantoms)[0].image
    for flips, memory in (("xy", []), ("none", []), ("xy", ["--memory", "4GB"])):
        out = tmp_path / f"{flips}{len(memory)}.nii.gz"
        assert run("predict", model, scan, "-o", out, "--samples", 2, "--flips", flips, *memory) == 0
    labels = [np.asarray(nib.load(tmp_path / f"{name}.nii.gz").dataobj) for name in ("xy0", "none0", "xy2")]
    assert np.array_equal(labels[0], labels[2]) and not np.array_equal(labels[0], labels[1])
    assert run("predict", model, scan, "-o", tmp_path / "a.nii.gz", "--flips", "ab") == 2
    assert "predict.flips must name some of the axes xyz" in capsys.readouterr().err


def test_rules_of_the_command_are_those_of_the_ensemble(capsys):
    from ncaseg.config import PredictConfig
    from ncaseg.ensemble import DEFAULT_RULE, RULES

    code, line = failure(capsys, "evaluate", "m", "--data", "d", "--rule", "mode")
    assert code == 2
    assert all(rule in line for rule in RULES)
    assert [PredictConfig(rule=rule).rule for rule in RULES] == list(RULES) and PredictConfig().rule == DEFAULT_RULE


@pytest.fixture
def split(tmp_path):
    from ncaseg.data.split import make_split, save_split

    save_split(tmp_path / "split.json", make_split([f"phantom_{i:03d}" for i in range(5)], 0.4, seed=0))
    return tmp_path / "split.json"


@pytest.mark.parametrize(("threshold", "code"), [(0.0, 3), (1e9, 0)])
def test_qc_exits_with_3_if_a_case_is_flagged(model, phantoms, tmp_path, capsys, threshold, code):
    options = ["-o", tmp_path / "qc.csv", "--samples", 2, "--threshold", threshold, "--maps", tmp_path / "maps"]
    assert run("qc", model, phantoms / "imagesTr", *options) == code
    output = capsys.readouterr().out
    assert f"{5 if code else 0} of 5 cases flagged: NQM > {threshold:g}" in output
    assert "next: ncaseg predict" in output
    assert (tmp_path / "qc.csv").read_text().count(",yes," if code else ",no,") == 5
    assert len(list((tmp_path / "maps").glob("*_variance.nii.gz"))) == 5


def test_qc_without_threshold_says_how_to_get_one(model, phantoms, tmp_path, capsys):
    scan = phantoms / "imagesTr" / "phantom_003.nii.gz"
    assert run("qc", model, scan, "-o", tmp_path / "qc.csv", "--samples", 2) == 0
    assert next_command(capsys)[-4:] == ["--calibrate", "DATA", "--split", "RUN/split.json"]


def test_qc_calibrates_counts_and_stores(phantoms, split, tmp_path, capsys, monkeypatch):
    """A line that falls is put in the place of the fit, which an untrained model need not have."""
    from ncaseg.checkpoint.model import load_model
    from ncaseg.quality import control
    from ncaseg.quality.threshold import Calibration

    def fit(nqms, dices, *, target, inverse):
        assert (len(nqms), target, inverse) == (6, 0.7, True)  # three training cases, clean and with a spike
        return Calibration(target, 1e-6, 1.0, -1.0, -0.5, 6, 0, "NQM on Dice")

    monkeypatch.setattr(control, "calibrate", fit)
    checkpoint = tmp_path / "own.safetensors"
    save_model(checkpoint, tiny_model(tiny_config()), tiny_config(), {"step": "2"})
    data = ["--calibrate", phantoms, "--evaluate", phantoms, "--split", split]
    options = ["-o", tmp_path / "qc.csv", "--samples", 2, "--target", 0.7, "--inverse", "--store"]
    assert run("qc", checkpoint, *data, *options) == 0
    output = capsys.readouterr().out
    assert "0.7 is met at NQM 0.0000" in output and "false_negative_rate = FN / all cases" in output
    detection = json.loads((tmp_path / "qc.json").read_text())["detection"]
    assert detection["counts"]["all"]["cases"] == 2 * 4  # two validation cases, clean and with three artefacts
    metadata = load_model(checkpoint)[2]
    assert metadata["step"] == "2" and json.loads(metadata["quality"])["threshold"] == 1e-6
    # A later call needs no threshold.
    folder = phantoms / "imagesTr"
    assert run("qc", checkpoint, folder, "-o", tmp_path / "later.csv", "--samples", 2) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in", "-o", "qc.txt"], "--out must be a file ending in .csv"),
        (["-o", "qc.csv"], "give INPUT to inspect, or --calibrate"),
        (["-o", "qc.csv", "--calibrate", "d"], "need --split FILE"),
        (["-o", "qc.csv", "--calibrate", "d", "--split", "s", "--threshold", "1"], "leave out --threshold"),
        (["in", "-o", "qc.csv", "--store"], "--store needs --calibrate"),
        (["in", "-o", "qc.csv", "--png"], "--png needs --maps"),
    ],
)
def test_qc_usage_errors_exit_with_2(arguments, message, capsys):
    code, line = failure(capsys, "qc", "m", *arguments)
    assert code == 2
    assert message in line


@pytest.mark.parametrize("option", ["--threshold", "--target"])
@pytest.mark.parametrize("value", ["inf", "nan", "high"])
def test_qc_wants_finite_numbers(option, value, capsys):
    with pytest.raises(SystemExit, match="2"):
        run("qc", "m", "in", "-o", "qc.csv", option, value)
    assert f"argument {option}: must be a finite number; got '{value}'" in capsys.readouterr().err


def test_reproduce_writes_tables_and_lists_what_is_missing(tmp_path, capsys):
    assert run("reproduce", "m3d", "-o", tmp_path / "out", "--data", tmp_path / "Task04_Hippocampus") == 0
    output = capsys.readouterr().out
    assert "from 0 finished runs" in output
    assert "not run yet: hippocampus-native-duplication, hippocampus-native-no-duplication, " in output
    assert "left out by --train: hippocampus, hippocampus-no-duplication, " in output
    assert output.splitlines()[-1].startswith(f"next: ncaseg reproduce m3d -o {tmp_path / 'out'} --data ")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["m3d.json", "m3d.md"]


def test_reproduce_says_how_to_train_what_it_leaves_out(tmp_path, capsys):
    out, data = tmp_path / "out", tmp_path / "Task05_Prostate"
    assert run("reproduce", "m3d", "-o", out, "--data", data, "--train") == 0
    train = f"next: ncaseg train m3d-prostate --data {data} --out {out / 'runs' / 'prostate-2level'} "
    assert capsys.readouterr().out.splitlines()[-1].startswith(train)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["m3", "-o", "out"], "no paper named 'm3'; known: cdal, m3d"),
        (["m3d", "-o", "out", "--train"], "--train needs --data DIR"),
    ],
)
def test_reproduce_usage_errors_exit_with_2(arguments, message, capsys):
    code, line = failure(capsys, "reproduce", *arguments)
    assert code == 2
    assert message in line


@pytest.mark.parametrize("option", ["--json", "--csv"])
def test_scores_do_not_replace_a_label(phantoms, model, tmp_path, capsys, option):
    label = tmp_path / "label.nii.gz"
    label.write_bytes(b"kept")
    code, line = failure(capsys, "evaluate", model, "--data", phantoms, option, label)
    assert code == 2 and f"{option} must be a file ending in .{option[2:]}; got {label}" in line
    assert label.read_bytes() == b"kept"


def test_a_seed_beyond_64_bits_is_a_mistake_of_usage(phantoms, model, tmp_path, capsys):
    code, line = failure(capsys, "predict", model, phantoms / "imagesTr", "-o", tmp_path, "--seed", 2**63)
    assert code == 2 and "--seed: must fit into 64 bits, signed; got 9223372036854775808" in line
