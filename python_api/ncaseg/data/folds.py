"""Folds for cross-validation, by rules that keep what belongs together on one side; each one is a split."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ncaseg.data.index import Case, find_cases, find_groups
from ncaseg.data.split import Split, save_split

RULES = ("strided", "runs", "origin")
SHENZHEN_MASK = "_mask"  # how the names of the masks of Shenzhen end, and those of Montgomery do not


def find_folds(data: str | Path, rule: str, count: int) -> list[Split]:
    """The folds of the labelled cases in a folder by one of the rules below; "origin" always gives three.

    Raises:
        ValueError: an unknown rule, or cases that do not fit it.
    """
    cases = [case for case in find_cases(data) if case.label is not None]
    ids = [case.id for case in cases]
    if rule == "strided":
        return strided_folds(ids, count, find_groups(data, ids))
    if rule == "runs":
        return run_folds(ids, count)
    if rule == "origin":
        return origin_folds(cases)
    raise ValueError(f"rule must be one of {', '.join(RULES)}; got {rule!r}")


def strided_folds(ids: Iterable[str], count: int, groups: Mapping[str, str] | None = None) -> list[Split]:
    """Fold i holds back the ids i, i + count, i + 2 count, ... of the sorted list.

    Args:
        ids: of all cases.
        count: of the folds.
        groups: id to the name of its group (a patient, a lesion): then groups are counted instead of ids, each at its
            first id.

    Raises:
        ValueError: fewer than two folds, fewer ids (or groups) than folds, or an id twice.

    Example:
        >>> [fold.validation for fold in strided_folds(["a", "b", "c", "d", "e"], 2)]
        [('a', 'c', 'e'), ('b', 'd')]
    """
    ordered = _check(ids, count)
    members: dict[str, list[str]] = {}
    for name in ordered:
        members.setdefault((groups or {}).get(name, name), []).append(name)
    together = list(members.values())
    if len(together) < count:
        raise ValueError(f"count must not exceed the number of groups ({len(together)}); got {count}")
    return [_fold(ordered, (name for group in together[i::count] for name in group)) for i in range(count)]


def run_folds(ids: Iterable[str], count: int) -> list[Split]:
    """Fold i holds back the i-th run of neighbouring ids of every class.

    The class is what follows the last "_" of an id; ids that end in a number, or have no "_", are of one class.
    For sets without patients' names in which neighbours are likely to be of one patient. Only at the ends of a run
    may a patient be on both sides.

    Raises:
        ValueError: as :func:`strided_folds`, or a class of fewer ids than folds.

    Example:
        >>> [fold.validation for fold in run_folds(["1_viral", "2_viral", "3_viral", "7_normal", "8_normal"], 2)]
        [('1_viral', '7_normal'), ('2_viral', '3_viral', '8_normal')]
    """
    ordered = _check(ids, count)
    classes: dict[str, list[str]] = {}
    for name in ordered:
        _, line, ending = name.rpartition("_")
        classes.setdefault(ending if line and not ending.isdigit() else "", []).append(name)
    for name, members in classes.items():
        if len(members) < count:
            raise ValueError(f"count must not exceed the ids of class {name!r} ({len(members)}); got {count}")
    held: list[list[str]] = [[] for _ in range(count)]
    for members in classes.values():
        for i, run in enumerate(held):
            run.extend(members[len(members) * i // count : len(members) * (i + 1) // count])
    return [_fold(ordered, run) for run in held]


def origin_folds(cases: Iterable[Case]) -> list[Split]:
    """The three folds of cDAL for the chest X-rays of Montgomery (n of them) and Shenzhen.

    Fold 0 holds back Montgomery and trains on Shenzhen alone; fold 1 holds back the first n of Shenzhen by name, fold
    2 the last n. Cases without a mask are left out.

    Raises:
        ValueError: one of the two is missing, or Shenzhen has fewer than twice as many as Montgomery.

    Reference:
        Hejrati et al., Conditional Diffusion Model with Spatial Attention and Latent Embedding for Medical Image
        Segmentation, MICCAI 2024, and its published data set code.
    """
    labelled = [case for case in cases if case.label is not None]
    shenzhen = sorted(c.id for c in labelled if c.label is not None and c.label.stem.endswith(SHENZHEN_MASK))
    montgomery = sorted({case.id for case in labelled} - set(shenzhen))
    n = len(montgomery)
    if n == 0 or len(shenzhen) < 2 * n:
        raise ValueError(
            f'cases must be those of Shenzhen (masks ending in "{SHENZHEN_MASK}") and, at most half as many, those of '
            f"Montgomery; got {len(shenzhen)} and {n}"
        )
    ordered = sorted([*shenzhen, *montgomery])
    return [_fold(ordered, held) for held in (montgomery, shenzhen[:n], shenzhen[-n:])]


def save_folds(folder: str | Path, folds: Sequence[Split]) -> list[Path]:
    """Write fold i as ``fold_i.json``; a copy of it as ``split.json`` in the folder of a run makes the run use it."""
    paths = [Path(folder) / f"fold_{i}.json" for i in range(len(folds))]
    for path, fold in zip(paths, folds, strict=True):
        save_split(path, fold)
    return paths


def _check(ids: Iterable[str], count: int) -> list[str]:
    ordered = sorted(ids)
    if len(set(ordered)) != len(ordered):
        raise ValueError("ids must be unique; got one twice")
    if not 2 <= count <= len(ordered):
        raise ValueError(f"count must lie between 2 and the number of ids ({len(ordered)}); got {count}")
    return ordered


def _fold(ordered: Sequence[str], held: Iterable[str]) -> Split:
    validation = set(held)
    return Split(
        train=tuple(i for i in ordered if i not in validation),
        validation=tuple(i for i in ordered if i in validation),
        fraction=len(validation) / len(ordered),
        seed=0,
    )
