"""Who may import whom, read from the source with `ast`. The tables below are the law; a new module needs a place."""

import ast
import importlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"ncakern": ROOT / "ncakern", "ncaseg": ROOT / "python_api" / "ncaseg"}

FLOOR_1 = {"ncakern._spec", "ncakern._env", "ncakern._tile", "ncakern._checks", "ncakern._philox"}
FLOOR_2 = {"ncakern.reference", "ncakern.backends"}
FLOOR_3 = {"ncakern._dispatch", "ncakern.ops"}
CORE = {"torch", "numpy"}
USER = {"ncakern", "ncakern.arrays", "ncakern.nn", "ncakern.functional"}  # the names that ncaseg may build upon
IMAGES = {"nibabel", "PIL"}

# The floors of ncaseg, high to low. A module may import from its own room and from lower floors, never across or up;
# beside each room stand the packages that it may use. A new room needs a place here.
FLOORS_OF_NCASEG: tuple[dict[str, set[str]], ...] = (
    {"__main__": set(), "edge": set(), "lean.__main__": set()},  # entries: nobody imports them
    {"cli": CORE | USER},
    {"papers": {"torch"}},
    {"training": CORE | USER | {"tqdm"}, "quality": {"numpy", "tqdm"}},
    {"evaluation": {"numpy", "PIL", "tqdm"}},
    {"inference": CORE | USER | {"nibabel", "tqdm"}},
    {"lean": {"numpy", "ncakern", "ncakern.arrays"}, "report": CORE | {"PIL"}},
    {"sampling": CORE, "checkpoint": CORE | USER | {"safetensors"}},
    {"models": CORE | USER, "data": CORE | IMAGES},
    {"config": set(), "diffusion": CORE},
    {
        "streams": CORE,
        "ensemble": {"numpy"},
        "provenance": CORE | USER,
        "levels": set(),
        "files": set(),
        "batch": set(),
        "limits": set(),
        "budget": set(),
        "zoo": set(),
    },
)
ROOMS = [room for floor in FLOORS_OF_NCASEG for room in floor]
MOST_FILES = 20  # modules in one folder of ncaseg


def laws_of_ncaseg() -> dict[str, set[str]]:
    """What the floors say as lines of the table below."""
    laws, lower = {}, set[str]()
    for floor in reversed(FLOORS_OF_NCASEG):
        for room, packages in floor.items():
            laws[f"ncaseg.{room}"] = packages | lower | {f"ncaseg.{room}"}
        lower |= {f"ncaseg.{room}" for room in floor}
    return laws | {"ncaseg": lower}


# A module obeys the line with the longest matching name. An entry allows a module and all below it; in USER only
# itself. The standard library is free everywhere.
MAY_IMPORT = {
    "ncakern._spec": set(),
    "ncakern._env": set(),
    "ncakern._tile": {"ncakern._spec"},
    "ncakern._kernel": {"ncakern._cpu", "ncakern._env", "ncakern._spec"},
    "ncakern.arrays": {"numpy", "ncakern._kernel", "ncakern._spec", "ncakern._tile"},
    "ncakern._checks": {"torch", "ncakern._spec", "ncakern._tile"},
    "ncakern._philox": {"torch"},
    "ncakern.reference": CORE | FLOOR_1,
    "ncakern.backends": CORE | FLOOR_1,
    "ncakern.backends.cpu": CORE | FLOOR_1 | {"ncakern._kernel"},
    "ncakern.backends.triton": CORE | FLOOR_1 | {"ncakern.backends.triton"},
    "ncakern._dispatch": CORE | FLOOR_1 | {"ncakern.backends"},
    "ncakern.ops": CORE | FLOOR_1 | {"ncakern.backends", "ncakern._dispatch"},
    "ncakern.functional": CORE | FLOOR_1 | FLOOR_2 | FLOOR_3,
    "ncakern.nn": {"torch", "ncakern._spec", "ncakern.functional"},
    "ncakern.upstream": {"torch", "safetensors", "ncakern._spec", "ncakern.nn"},
    "ncakern.info": CORE | FLOOR_1 | FLOOR_2 | FLOOR_3 | USER,
    "ncakern": FLOOR_1 | FLOOR_2 | FLOOR_3 | {"ncakern.functional", "ncakern.nn", "ncakern.upstream"},
} | laws_of_ncaseg()
# Not everybody has these: imported inside functions, so that a missing one is noticed by those only who need it.
OPTIONAL = {"triton", "monai"}


def modules() -> dict[str, Path]:
    """Map the name of every module of the project to its file."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = (package, *path.relative_to(folder).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
# Kernels and those who launch them need triton at the top, so the package imports them lazily; these do not need it.
_PLAIN = ("graphs", "step", "tiles", "tiles_large", "pack_small")
WITHOUT_TRITON = {f"ncakern.backends.triton.{name}" for name in _PLAIN}
WITH_TRITON = {name for name in MODULES if name.startswith("ncakern.backends.triton.")} - WITHOUT_TRITON
LAZY = OPTIONAL | WITH_TRITON | {"ncakern._cpu"}


def imports(source: str, module: str) -> Iterator[tuple[str, bool]]:
    """Yield (imported module, whether at the top level) of every import statement that is more than an annotation."""
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    typing = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    inside = {node for function in functions for node in ast.walk(function)}
    ignored = {node for block in typing for statement in block.body for node in ast.walk(statement)}
    for node in ast.walk(tree):
        if node in ignored:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node not in inside
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} line {node.lineno}: write imports in full, from the package's name on"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                # A private name counts as a module of its own, so that no entry for a public parent lets it pass.
                is_module = inner in MODULES or (alias.name.startswith("_") and alias.name != "__version__")
                yield (inner if is_module else str(node.module)), node not in inside


def is_below(name: str, parent: str) -> bool:
    return name == parent or (parent not in USER and name.startswith(parent + "."))


def violations(module: str, source: str) -> list[str]:
    """List what `module` imports against the table."""
    allowed = MAY_IMPORT[max((name for name in MAY_IMPORT if (module + ".").startswith(name + ".")), key=len)]
    found = []
    for name, at_top in imports(source, module):
        if name.split(".")[0] in sys.stdlib_module_names:
            continue
        is_lazy = any(is_below(name, lazy) for lazy in LAZY)
        if module in WITH_TRITON and any(is_below(name, needed) for needed in WITH_TRITON | {"triton"}):
            is_lazy = False
        if is_lazy and at_top:
            found.append(f"{module} imports {name} at the top; import it inside the function that needs it")
        elif not any(is_below(name, entry) for entry in allowed | OPTIONAL):
            found.append(f"{module} must not import {name}")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_from_its_floor(module):
    assert violations(module, MODULES[module].read_text()) == []


def test_every_part_of_ncakern_has_its_own_line():
    assert {name for name in MODULES if name.startswith("ncakern.") and name.count(".") == 1} <= set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ncakern._spec", "import torch"),
        ("ncakern.reference", "from ncakern.backends import cpu"),
        ("ncakern.nn", "from ncakern import _dispatch"),
        ("ncakern.backends.cpu", "from ncakern import _cpu"),
        ("ncakern.arrays", "import torch"),
        ("ncaseg.inference.case", "from ncakern import _kernel"),
        ("ncaseg.inference.case", "from ncaseg.evaluation.cases import score_cases"),
        ("ncaseg.lean.model", "def f():\n    import torch"),
        ("ncaseg.lean.model", "def f():\n    from ncaseg.cli.main import main"),
        ("ncaseg.quality.control", "from ncaseg.training.loop import train"),
        ("ncaseg.config.reader", "from ncaseg import files, streams\nimport numpy"),
        ("ncaseg.levels", "from ncaseg import config"),
        ("ncaseg.training.loop", "from ncaseg import load_model"),
        ("ncakern.backends.triton", "from ncakern.backends.triton import launch"),
        ("ncakern.backends.triton.tiles", "import triton"),
        ("ncakern.backends.triton.launch", "from ncakern import _dispatch"),
        ("ncakern.functional", "def f():\n    import ncaseg.training.loop"),
        ("ncaseg.models.m3d", "from ncaseg.data.index import Case"),
        ("ncaseg.diffusion.sampler", "from ncaseg.models import build_model"),
        ("ncaseg.training.loop", "from ncakern.ops import nca_rollout"),
        ("ncaseg.training.loop", "from ncakern import _philox"),
        ("ncaseg.report.volumes", "import matplotlib.pyplot as plt"),
    ],
)
def test_a_planted_import_is_found(module, source):
    assert len(violations(module, source)) == 1


def test_every_module_of_ncaseg_has_a_room():
    assert {
        name for name in MODULES if name.startswith("ncaseg.") and not any(is_in(name, room) for room in ROOMS)
    } == set()
    assert [room for room in ROOMS if not any(is_in(name, room) for name in MODULES)] == []


def is_in(module: str, room: str) -> bool:
    return (module + ".").startswith(f"ncaseg.{room}.")


def crowded(paths: Iterable[Path]) -> list[str]:
    """The folders that hold too many of these files."""
    counts = Counter(path.parent for path in paths)
    return [f"{folder} has {count} files" for folder, count in counts.items() if count > MOST_FILES]


def test_no_folder_of_ncaseg_is_crowded():
    assert crowded(path for name, path in MODULES.items() if name.split(".")[0] == "ncaseg") == []
    assert crowded(Path(f"full/{i}.py") for i in range(MOST_FILES + 1)) == ["full has 21 files"]


def circle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """The modules of one circle of imports, [] where there is none."""
    done: set[str] = set()

    def follow(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module not in done:
            for name in graph.get(module, ()):
                if found := follow(name, [*path, module]):
                    return found
            done.add(module)
        return []

    return next((found for module in graph if (found := follow(module, []))), [])


def test_no_circle_of_imports_not_even_a_lazy_one():
    graph = {
        module: [name for name, _ in imports(path.read_text(), module) if name in MODULES and name != module]
        for module, path in MODULES.items()
    }
    assert circle(graph) == []
    planted = {**graph, "ncaseg.data.index": ["ncaseg.data.dataset"]}
    assert set(circle(planted)) == {"ncaseg.data.index", "ncaseg.data.dataset"}


def test_a_permitted_import_passes():
    assert violations("ncakern._kernel", "def load():\n    from ncakern import _cpu") == []
    assert (
        violations("ncakern.backends.triton.launch", "import triton\nfrom ncakern.backends.triton import common") == []
    )
    assert violations("ncaseg.training.loop", "from ncakern import NCA\nfrom ncaseg.data.index import Case") == []


@pytest.mark.parametrize("name", ["cpu", "triton"])
def test_backend_exports_the_contract(name):
    backend = importlib.import_module(f"ncakern.backends.{name}")
    own = {name for name, value in vars(backend).items() if getattr(value, "__module__", None) == backend.__name__}
    assert {name for name in own if not name.startswith("_")} == {"why_not", "stats_width", "fwd", "bwd"}
