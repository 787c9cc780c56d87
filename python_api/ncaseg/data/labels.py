"""One rule for label files of every format: which label a stored value stands for, or an error that says how to tell.

The values are the labels (and 0); or ``data.label_map`` says what they stand for; or the file is an unambiguous mask of
two values: a dark and a bright one, black and a colour, or transparent and something.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ncaseg.config.settings import DataConfig
from ncaseg.config.settings.label_map import TRANSPARENT, Entry, parse_label_map
from ncaseg.data.formats.base import Coded, ReadError, Value

BRIGHT = 128  # a mask of two numbers has one below and one from here on (ISIC stores 0 and 255)
ROUNDING = 1e-3  # of labels that were stored as fractions: a value this close to a whole number is one
SHOWN = 8  # values in a message
BLACK = ("#000000", TRANSPARENT)


def decode(path: Path, coded: Coded, cfg: DataConfig) -> tuple[np.ndarray, dict[Value, int]]:
    """The labels ``[X, Y, Z]`` int64 of a label file, and which value meant which label.

    Raises:
        ReadError: the rule above does not decide; the message lists the values and the option that maps them.
    """
    entries = parse_label_map(cfg.label_map)
    if coded.indices is not None and entries and not any(entry.colour for entry in entries):
        coded = Coded(coded.indices)
    codes, names = coded.codes, coded.names
    found = np.unique(codes)
    if names is None and not np.isfinite(found).all():
        raise ReadError(f"{path} must hold finite labels; it holds NaN or infinity")
    if not entries:
        _refuse_hidden(path, coded, found.tolist())
    values = [_rounded(v) if names is None else names[v] for v in found.tolist()]
    meaning = find_meaning(values, cfg.labels, entries)
    if meaning is None:
        raise ReadError(_explain(path, values, cfg))
    if names is None and all(value == label for value, label in meaning.items()):
        return (codes if codes.dtype.kind in "iu" else np.rint(codes)).astype(np.int64), meaning
    labels = np.zeros(codes.shape, np.int64)
    for code, value in zip(found.tolist(), values, strict=True):
        if meaning[value]:
            labels[codes == code] = meaning[value]
    return labels, meaning


def _refuse_hidden(path: Path, coded: Coded, found: Sequence[int]) -> None:
    """What is stored and cannot be seen may be the mask: equal colours of a palette, or what is transparent."""
    indices = [] if coded.indices is None else np.unique(coded.indices).tolist()
    if len(indices) > len(found):
        raise ReadError(
            f"{path} has a palette that shows several of its values {indices} in one colour. Say what the values stand "
            'for, for example data.label_map="0:0, 1:1"'
        )
    if len(found) > 1 and coded.names is not None and {coded.names[code] for code in found} == {TRANSPARENT}:
        raise ReadError(
            f"{path} is transparent everywhere, and holds {len(found)} colours. Save it without transparency"
        )


def find_meaning(
    values: Sequence[Value], labels: Sequence[int], entries: Sequence[Entry] = ()
) -> dict[Value, int] | None:
    """What every value stands for; None where that cannot be told.

    Example:
        >>> find_meaning([0, 255], (1,)), find_meaning([0, 2], (1,)), find_meaning(["#000000", "#ff0000"], (1,))
        ({0: 0, 255: 1}, None, {'#000000': 0, '#ff0000': 1})
    """
    if entries:
        meaning = {value: _look_up(value, entries) for value in values}
        return None if None in meaning.values() else meaning  # type: ignore[return-value]
    if all(not isinstance(value, str) and value in (0, *labels) for value in values):
        return {value: int(value) for value in values}
    if tuple(labels) != (1,):
        return None
    dark = [value for value in values if _is_dark(value)]
    # Beside what is transparent, black is as visible as any colour.
    if TRANSPARENT in values:
        dark = [TRANSPARENT]
    rest = [value for value in values if value not in dark]
    if len(dark) > 1 or len(rest) > 1 or (not rest and dark[0] != 0 and dark[0] not in BLACK):
        return None
    if rest and not _is_bright(rest[0], beside=TRANSPARENT in dark):
        return None
    return {value: int(value in rest) for value in values}


def _look_up(value: Value, entries: Sequence[Entry]) -> int | None:
    found = next((entry.label for entry in entries if entry.matches(value)), None)
    return 0 if found is None and (value == 0 or value in BLACK) else found


def _is_dark(value: Value) -> bool:
    return value in BLACK if isinstance(value, str) else 0 <= value < BRIGHT


def _is_bright(value: Value, *, beside: bool) -> bool:
    """Whether a value is foreground beside a dark one; beside transparent pixels every opaque one is."""
    if not isinstance(value, str):
        return value >= BRIGHT
    is_opaque = len(value) == len("#rrggbb")
    return is_opaque and (beside or max(int(value[i : i + 2], 16) for i in (1, 3, 5)) >= BRIGHT)


def _rounded(value: float) -> float:
    """A whole number that a scaling or a rounding has moved a little, as that number."""
    whole = round(value)
    return whole if abs(value - whole) <= ROUNDING else value


def _explain(path: Path, values: Sequence[Value], cfg: DataConfig) -> str:
    known = sorted((0, *cfg.labels))
    shown = list(dict.fromkeys(values))
    more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
    texts = [value if isinstance(value, str) else f"{value:g}" for value in shown]
    listed = f"[{', '.join(texts[:SHOWN])}]{more}"
    # The least is offered as background: what it is, only the data's owner knows.
    offer = ", ".join(f"{text}:{known[min(i, len(known) - 1)]}" for i, text in enumerate(texts[:SHOWN]))
    if more and not any(isinstance(value, str) for value in shown):  # a JPEG's noise, say
        offer = f"{min(shown):g}..{BRIGHT - 1}:0, {BRIGHT}..{max(shown):g}:{known[-1]}"
    return (
        f"{path} must hold 0 and data.labels {cfg.labels}: label values {listed}, expected {known}. Say what they "
        f'stand for, for example data.label_map="{offer}" (value:label; ranges as 128..255:1), or set data.labels'
    )
