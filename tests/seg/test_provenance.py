"""Where a result comes from: plain facts, with and without a repository around the package."""

import json

from ncaseg import provenance


def test_facts_are_plain_and_complete():
    facts = provenance.describe()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["commit"] and facts["machine"] and facts["threads"] >= 1
    assert {"date", "ncakern", "dirty", "python", "torch"} <= set(facts)


def test_without_git_the_commit_is_unknown(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(provenance.subprocess, "run", missing)
    facts = provenance.describe()
    assert facts["commit"] == "unknown"
    assert facts["dirty"] is False
