"""The published numbers: complete, in range, and their plan refers to recipes with the stated parameters."""

import pytest

from ncaseg import config
from ncaseg.models import build_model
from ncaseg.papers import paper


@pytest.fixture(scope="module")
def m3d():
    return paper.load_paper("m3d")


def test_numbers_of_the_models(m3d):
    assert paper.names() == ["cdal", "m3d", "medsegdiffnca"]
    assert m3d.tasks == ["hippocampus", "prostate"]
    assert len(m3d.comparison["rows"]) == 11
    own = m3d.comparison["rows"][-1]
    assert own == {"model": "M3D-NCA", "hippocampus": [0.905, 0.024, 8768], "prostate": [0.829, 0.051, 12480]}
    for row in m3d.comparison["rows"]:
        for task in m3d.tasks:
            mean, deviation, parameters = row[task]
            assert 0.6 < mean < 0.95 and 0.01 < deviation < 0.2 and parameters > 8000


def test_gains_of_the_ablation_are_those_of_the_text(m3d):
    """Duplication is worth 1.8, 7.9, 4.3 points, the ensemble 0.5, 1.3, 1.3."""
    rows = [row for row in m3d.ablation["rows"] if "standard" in row]
    for variant, gains in (("no_duplication", [1.8, 7.9, 4.3]), ("no_ensemble", [0.5, 1.3, 1.3])):
        assert [100 * (row["standard"][0] - row[variant][0]) for row in rows] == pytest.approx(gains)


def test_every_table_names_its_source(m3d):
    assert all(table["source"] for table in (m3d.comparison, m3d.ablation, m3d.quality))


def test_plan_stands_in_the_ablation(m3d):
    groups = {row["group"] for row in m3d.ablation["rows"]}
    for run in m3d.plan:
        assert run.task in m3d.tasks
        assert (run.group in groups and run.variant in paper.VARIANTS) or run.group == run.variant == ""
        assert run.task in run.recipe
    assert len({run.id for run in m3d.plan}) == len(m3d.plan)


@pytest.mark.parametrize(("id", "parameters"), [("hippocampus", 8768), ("hippocampus-2level", 12480)])
def test_planned_recipes_have_the_parameters_of_the_paper(m3d, id, parameters):
    (planned,) = (run for run in m3d.plan if run.id == id)
    model = build_model(config.load_recipe(planned.recipe, planned.overrides).model)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_variants_differ_in_duplication(m3d):
    """With the published recipes in nothing else; on native grids the cost stays the same."""
    standard = {
        run.group: config.load_recipe(run.recipe, run.overrides) for run in m3d.plan if run.variant == "standard"
    }
    for run in m3d.plan:
        if run.variant == "no_duplication":
            changes = config.differences(standard[run.group], config.load_recipe(run.recipe, run.overrides))
            more = ["train.steps: 1000 -> 2000"] if "native" in run.group else []
            assert changes == [*more, "train.duplication: 2 -> 1"]


def test_what_is_trained_suits_a_cpu(m3d):
    """The recipes on native grids and the baseline; what trains for 1000 epochs and more is left out."""
    recipes = {run.recipe for run in m3d.plan if run.trained}
    assert recipes == {f"m3d-hippocampus-{name}" for name in ("fast", "native", "2level-native")} | {"unet-hippocampus"}
    for run in m3d.plan:
        assert run.trained == (config.load_recipe(run.recipe).train.epochs == 0)


def test_unknown_and_broken_papers_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no paper named 'm3'; known: cdal, m3d"):
        paper.load_paper("m3")
    (tmp_path / "p.toml").write_text("notes = []\nruns = []\ntitel = 'x'\n")
    with pytest.raises(ValueError, match="key missing or unknown.*titel"):
        paper.load_paper(tmp_path / "p.toml")
    text = 'title = ""\ncitation = ""\nmetric = ""\nnotes = []\nruns = []\nform = "films"\n[comparison]\n[ablation]\n'
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(ValueError, match="form of paper .* must be one of volumes, masks, labels; got 'films'"):
        paper.load_paper(tmp_path / "p.toml")
