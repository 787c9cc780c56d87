"""cases.toml as frozen dataclasses."""

import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One problem: a rollout of `steps` steps on a float32 state [1, *size, channels], with reflect padding.

    `mark` maps a mode to {provider: least speed-up of the kernel over it}.
    """

    name: str
    size: tuple[int, ...]
    channels: int
    hidden: int
    perception: str
    num_filters: int
    kernel_size: int
    norm: str
    frozen_channels: int
    steps: int
    fire_rate: float = 0.5
    mark: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def cell_steps(self) -> int:
        return math.prod(self.size) * self.steps

    def __str__(self) -> str:
        size = "x".join(map(str, self.size))
        filters = f"{self.num_filters} {self.perception} k{self.kernel_size}"
        return f"{self.name}: {size}, C {self.channels}, hidden {self.hidden}, {filters}, norm {self.norm}"


def load_cases() -> dict[str, Case]:
    """Read the cases, in the order of the file."""
    table = tomllib.loads(Path(__file__).with_name("cases.toml").read_text())
    return {name: Case(name=name, **(entry | {"size": tuple(entry["size"])})) for name, entry in table.items()}
