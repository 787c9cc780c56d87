"""The estimate: by hand, against a measured peak, and as an error that says what would fit."""

import subprocess
import sys

import pytest
import torch
from seg.tiny import task_of

import ncakern
from ncaseg import config
from ncaseg.data.dataset import grid_sizes
from ncaseg.data.index import find_cases
from ncaseg.data.phantom import write_phantoms
from ncaseg.models.cdal.base import kept_bytes
from ncaseg.models.multilevel import reference_bytes
from ncaseg.training import loop, memory

CPU = torch.device("cpu")
HAS_KERNEL = ncakern.backends()["cpu"] is None


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), 3, seed=0, size=(12, 12, 14))


@pytest.mark.skipif(not HAS_KERNEL, reason="the kernel's figures; it is not built here")
def test_kept_states_by_hand():
    one = config.load_recipe("m3d-hippocampus")  # batch 2, duplication 2, 20 steps, 16 channels
    state = 4 * 64 * 64 * 52 * 16 * 4
    images = 2 * 4 * 64 * 64 * 52 * 4 * 2
    assert task_of(one).step_bytes((64, 64, 52)) == (20 + 8) * state + images
    assert task_of(one).step_bytes((64, 64, 52), keep_every=6) == (4 + 6 + 8) * state + images
    two = config.load_recipe("m3d-prostate")  # patches of 80x80x6 at both levels
    state = 8 * 80 * 80 * 6 * 16 * 4
    assert task_of(two).step_bytes((320, 320, 24)) == (60 + 8) * state + 2 * 8 * 320 * 320 * 24 * 4 * 2


def test_reference_keeps_what_was_measured_in_eager_mode():
    # bytes per cell and step of the benchmarks: 1036 and 1288
    assert reference_bytes(config.M3DConfig()) == pytest.approx(1036, rel=0.02)
    wide = config.M3DConfig(channels=32, hidden=128, num_filters=2, perception="dense", norm="none")
    assert reference_bytes(wide) == pytest.approx(1288, rel=0.02)


def test_slices_and_padding_are_counted():
    cfg = config.load_recipe("med-nca")
    assert task_of(cfg).step_bytes((256, 256, 20)) == task_of(cfg).step_bytes((256, 256, 9))
    odd = ["model.kernel_sizes=[3, 3]", "model.steps=[4, 4]", "model.scales=[[4, 4, 4]]", "model.patches=[[], []]"]
    padded, native = (config.load_recipe("demo", [*odd, f"model.pad={pad}"]) for pad in ("zeros", "none"))
    assert task_of(padded).step_bytes((13, 12, 12)) > task_of(native).step_bytes((13, 12, 12))


def test_boxes_count_instead_of_volumes():
    boxes = config.load_recipe("med-nca", ["data.crop=[32, 32, 0]", "data.crops=3", "train.slices=4"])
    alone = config.load_recipe("med-nca", ["train.batch_size=15", "train.slices=4"])
    assert task_of(boxes).step_bytes((256, 250, 20)) == task_of(alone).step_bytes((32, 32, 20))


def test_largest_volume_counts(data, tmp_path):
    write_phantoms(tmp_path, 1, seed=0, size=(13, 12, 12))
    cfg = config.load_recipe("demo")
    sizes = [*grid_sizes(find_cases(data), cfg.data).values(), *grid_sizes(find_cases(tmp_path), cfg.data).values()]
    assert "on 12x12x14 cells" in memory.check_memory(task_of(cfg), sizes, CPU)
    assert memory.cache_bytes(cfg, sizes) == 12 * (3 * 12 * 12 * 14 + 13 * 12 * 12)
    assert memory.cache_bytes(config.load_recipe("demo", ["data.cache=false"]), sizes) == 0


def test_too_little_memory_is_an_error_before_anything_is_written(data, tmp_path, monkeypatch, capsys):
    cfg = config.load_recipe("demo", ["train.steps=1", "model.steps=[400]", "model.hidden=4"])
    loop.train(cfg, data, tmp_path / "fits")
    assert "memory: about 53 MB for a training step on 12x12x14 cells" in capsys.readouterr().err or not HAS_KERNEL
    monkeypatch.setattr(memory, "free_bytes", lambda device: 20_000_000)
    with pytest.raises(MemoryError, match=r"20 MB are free. train.keep_every=20 needs \d+ MB for the same result"):
        loop.train(cfg, data, tmp_path / "not")
    assert not (tmp_path / "not").exists()
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1_000_000)
    with pytest.raises(MemoryError, match="smaller train.batch_size .* train.keep_every=20 alone still needs"):
        loop.train(cfg, data, tmp_path / "not")


def test_free_memory_respects_the_control_group(tmp_path):
    free = memory.free_bytes(CPU, cgroup=tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    if sys.platform != "linux":
        assert free is None
        return
    assert free is not None and free > 0
    assert memory.free_bytes(CPU, cgroup=tmp_path) > 4000
    (tmp_path / "memory.max").write_text("5000\n")
    assert memory.free_bytes(CPU, cgroup=tmp_path) == 4000


MEASURE = """
import sys, torch
from ncaseg import config
from ncaseg.models import build_model
from ncaseg.training.tasks import make_task
from ncaseg.training.losses import dice_bce
def peak():
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
cfg = config.load_recipe("m3d-hippocampus-2level", sys.argv[1:])
model = build_model(cfg.model)
torch.nn.init.normal_(model.levels[-1].out_weight, std=0.1)
def step(size):
    x = torch.rand(cfg.train.batch_size * cfg.train.duplication, 1, *size)
    dice_bce(*model.crop_forward(x, x, seed=0, keep_every=cfg.train.keep_every)).backward()
step((16, 16, 16))
before = peak()
step((40, 40, 40))
print(peak() - before, make_task(cfg, model).step_bytes((40, 40, 40)))
"""


@pytest.mark.skipif(sys.platform != "linux" or not HAS_KERNEL, reason="reads /proc, and the figures are the kernel's")
def test_estimate_is_near_the_measured_peak():
    small = [
        "model.hidden=4",
        "model.kernel_sizes=[3, 3]",
        "model.norm=none",
        "model.patches=[[], []]",
        "train.keep_every=3",
    ]
    command = [sys.executable, "-c", MEASURE, *small, "train.batch_size=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured, estimated = (int(word) for word in done.stdout.split())
    assert 0.6 * measured < estimated < 2.0 * measured


def test_adversarial_networks_are_asked_what_they_keep():
    linear = torch.nn.Linear(3, 5)
    assert kept_bytes(linear, torch.empty(7, 3, device="meta")) == 7 * 3 * 4
    both = task_of(config.load_recipe("cdal-cxr")).step_bytes((256, 256, 1))
    alone = config.load_recipe("cdal-cxr", ["cdal.discriminator=none", "cdal.attention=off"])
    # Three pictures, 0.97 GB each, and 8.8 million weights with their gradients and moments.
    assert task_of(alone).step_bytes((256, 256, 1)) == pytest.approx(3 * 0.971e9 + 16 * 8_843_777, rel=0.01)
    assert both > task_of(alone).step_bytes((256, 256, 1))
    boxes = ["data.crop=[32,32,32]"]
    small = config.load_recipe("cdal-hippocampus-small", boxes)
    assert task_of(small).step_bytes((40, 50, 40)) == task_of(small).step_bytes((35, 60, 32))  # boxes of one size
    plain = config.load_recipe("cdal-hippocampus-small", [*boxes, "cdal.latent=0"])
    assert task_of(plain).step_bytes((40, 50, 40)) < task_of(small).step_bytes((40, 50, 40))
