"""The report on an installation: every backend with its reason, and a measured speed."""

import pytest

import ncakern
from ncaseg.cli import doctor


def test_every_backend_is_listed_with_its_reason():
    facts = doctor.collect()
    text = "\n".join(fact for _, fact in facts)
    for name, reason in ncakern.backends().items():
        assert f"{name} {'will not run: ' + reason if reason else 'runs'}" in text
    assert text.count("runs by default") == 1


@pytest.mark.parametrize("name", ["ncaseg", "python", "torch", "OpenMP", "triton", "nibabel", "zoo", "recipes"])
def test_fact_is_reported(name):
    assert dict(doctor.collect())[name]


def test_missing_kernel_is_pointed_out(monkeypatch):
    monkeypatch.setattr(ncakern, "backends", lambda: {"cpu": "not built", "reference": None})
    facts = [fact for _, fact in doctor.collect()]
    assert "cpu will not run: not built" in facts
    assert any("only the slow reference runs here" in fact for fact in facts)


def test_missing_package_is_pointed_out(monkeypatch):
    def missing(package):
        raise doctor.importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(doctor.importlib.metadata, "version", missing)
    assert dict(doctor.collect())["nibabel"].startswith("NOT INSTALLED")


def test_speed_is_measured_for_each_backend_that_runs(monkeypatch):
    assert doctor.measure_speed("reference", size=5, steps=2) > 0
    rates = {"cpu": 30.0, "reference": 1.5}
    monkeypatch.setattr(ncakern, "backends", lambda: {"triton": "no GPU", "cpu": None, "reference": None})
    monkeypatch.setattr(doctor, "measure_speed", rates.__getitem__)
    line = doctor.speed_line()
    assert line.startswith("cpu 30, reference 1.5 million cell-steps/s")
    assert "triton" not in line
