"""Prediction without torch by its public name: ``python -m ncaseg.edge MODEL INPUT -o OUT``; see :mod:`ncaseg.lean`."""

from ncaseg.lean.model import EdgeModel, from_torch, load_edge_model, run_member

__all__ = ["EdgeModel", "from_torch", "load_edge_model", "run_member"]

if __name__ == "__main__":
    from ncaseg.lean.__main__ import main

    raise SystemExit(main())
