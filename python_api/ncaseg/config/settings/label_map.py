"""``data.label_map``: which value of a label file, a number or a colour, stands for which label."""

import re
from typing import NamedTuple

TRANSPARENT = "transparent"
NUMBER = r"-?\d+(?:\.\d+)?"
COLOUR = r"#(?:[0-9a-f]{2}){3,4}"


class Entry(NamedTuple):
    """Values from ``low`` to ``high``, or one colour (``#rrggbb``, ``#rrggbbaa``, "transparent"), and their label."""

    low: float
    high: float
    colour: str
    label: int

    def matches(self, value: float | str) -> bool:
        return value == self.colour if isinstance(value, str) else not self.colour and self.low <= value <= self.high

    def __str__(self) -> str:
        span = f"{self.low:g}" if self.low == self.high else f"{self.low:g}..{self.high:g}"
        return f"{self.colour or span}:{self.label}"


def parse_label_map(text: str) -> tuple[Entry, ...]:
    """The entries of a text such as ``2:1, 128..255:1, #ff0000:2, transparent:0``.

    Raises:
        ValueError: it is no such text, or names a value twice.

    Example:
        >>> [str(entry) for entry in parse_label_map("2:1, #FF0000:2")]
        ['2:1', '#ff0000:2']
    """
    entries = [_parse(part.strip().lower()) for part in text.split(",") if part.strip()]
    for number, entry in enumerate(entries):
        twin = next((other for other in entries[:number] if _overlap(entry, other)), None)
        if twin is not None:
            raise ValueError(f"data.label_map must name every value once; got {twin} and {entry}")
    return tuple(entries)


def _parse(part: str) -> Entry:
    found = re.fullmatch(rf"(?:({NUMBER})(?:\.\.({NUMBER}))?|({COLOUR}|{TRANSPARENT}))\s*:\s*(\d+)", part)
    if found is None:
        raise ValueError(f'data.label_map must read "2:1, 128..255:1, #ff0000:2" (value:label); got {part!r}')
    low, high, colour, label = found.groups()
    low = "0" if low is None else low
    return Entry(float(low), float(low if high is None else high), colour or "", int(label))


def _overlap(one: Entry, other: Entry) -> bool:
    if one.colour or other.colour:
        return one.colour == other.colour
    return max(one.low, other.low) <= min(one.high, other.high)
