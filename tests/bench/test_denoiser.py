"""What is measured computes the same thing: eager against ours, all cells firing; and what it keeps is what it must."""

import functools

import pytest
import torch

from benchmarks.harness import record
from benchmarks.harness.measure import saved_bytes
from benchmarks.segmentation import denoiser
from benchmarks.segmentation.denoiser_eager import Answers, CompiledDenoiser, EagerDenoiser
from ncaseg.config import MedSegDiffConfig
from ncaseg.models.medsegdiffnca.model import MedSegDiffNCA

OPTIONS = {"channels": 8, "hidden": 12, "kernel_sizes": (3, 3), "steps": (3, 2), "scales": ((4, 4, 1),)}

FIXED = {
    "in_channels": 3,
    "ndim": 2,
    "pool": "trilinear",
    "perception": "dense",
    "num_filters": 2,
    "norm": "none",
    "pad": "none",
}


def pair(other, **options):
    torch.manual_seed(0)
    cfg = MedSegDiffConfig(**FIXED | OPTIONS | {"fire_rate": 1.0, "attention_reduction": 4} | options)
    ours = MedSegDiffNCA(cfg)
    for level in ours.levels:
        torch.nn.init.normal_(level.out_weight, std=0.1)
    theirs = other(cfg)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def gradients(model, image):
    module = Answers(model)
    out = module(image.clone().requires_grad_())
    out.square().sum().backward()
    return [out.detach(), *(parameter.grad for parameter in module.parameters())]


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("levels", [1, 2])
def test_eager_is_the_same_network(attention, levels):
    options = {} if levels == 2 else {"kernel_sizes": (3,), "steps": (3,), "scales": ()}
    found = [gradients(m, denoiser.picture(16, 2)) for m in pair(EagerDenoiser, attention=attention, **options)]
    for ours, eager in zip(*found, strict=True):
        torch.testing.assert_close(eager, ours, rtol=1e-3, atol=1e-4)


# torch's own tracing looks at the gradient of every input.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_one_compiled_step_serves_levels_training_and_sampling(monkeypatch):
    """Traced as for the compiler, gradients too, but run by torch's own kernels: generating code would take minutes."""
    compiled = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", compiled)
    found = []
    for model in pair(CompiledDenoiser, attention=True):
        found.append(gradients(model, denoiser.picture(16, 2)))
        with torch.no_grad():
            found[-1].append(Answers(model)(denoiser.picture(16, 1)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-4)


def test_who_cannot_compile_is_left_out_with_the_reason(monkeypatch):
    def refuse(*_):
        raise RuntimeError("no C++ compiler\nmore")

    def build(_, provider):
        model = pair(EagerDenoiser, steps=(1, 1))[provider != "kernel"]
        if provider == "compile":
            model.step = refuse
        return model

    monkeypatch.setattr(denoiser, "TIMES", (("small", 16, 2),))
    monkeypatch.setattr(denoiser, "build", build)
    monkeypatch.setattr(denoiser, "sampling_call", lambda model, image: functools.partial(Answers(model), image))
    rows = list(denoiser.time_rows(["small"], denoiser.TIMED, seconds=0.0))
    modes, providers = ("training", "sampling"), ("compile", "kernel", "eager")
    expected = [(provider, mode, provider == "compile") for mode in modes for provider in providers]
    assert [(row["provider"], row["metric"], row["value"] is None) for row in rows] == expected
    text = denoiser.time_table(denoiser.newest(rows))
    assert "Not compiled: small, 16x16, batch 2, training: RuntimeError: no C++ compiler." in text
    assert all(line.endswith(" | - |") and line.count(" - ") == 2 for line in text.splitlines()[2:4])


@pytest.mark.parametrize(("attention", "least"), [(False, 3588), (True, 4116)])
def test_eager_keeps_what_its_layers_need(attention, least):
    """Per cell and step at 64 channels and 512 hidden: state 256, two padded copies 512, perception 768, hidden 2048,
    fire mask 4; attention 528 more. The border of the padded copies comes on top."""
    sizes = {"channels": 64, "hidden": 512, "kernel_sizes": (3,), "steps": (4,), "scales": ()}
    ours, eager = pair(EagerDenoiser, **sizes, attention=attention)
    image, count = denoiser.picture(32, 1), 32 * 32 * 4
    assert saved_bytes(Answers(eager), image) / count == pytest.approx(least, rel=0.09)
    assert saved_bytes(Answers(ours), image) / count == pytest.approx(256, rel=0.3)  # the states


def test_fire_masks_are_drawn_anew_per_cell_and_step():
    _, eager = pair(EagerDenoiser, fire_rate=0.5, kernel_sizes=(3,), steps=(1,), scales=())
    state = torch.rand(1, 32, 32, 8)
    changed = [(eager.step(eager.levels[0], None, state) != state).any(-1) for _ in range(2)]
    assert all(0.4 < mask.float().mean() < 0.6 for mask in changed) and not torch.equal(*changed)


def test_cells_times_steps_of_two_levels():
    assert denoiser.cell_steps(denoiser.build("multicbam", "kernel"), 256) == 655_360 + 40_960


def test_the_page_is_that_of_the_records():
    rows = record.read_all(denoiser.RECORDS)
    assert rows and denoiser.page(rows) == denoiser.PAGE.read_text()
    assert not any(row["dirty"] for row in rows)
