"""The pages say what is so: links lead somewhere, commands parse, examples run, generated pages are current."""

import argparse
import importlib
import importlib.util
import re
import shlex
import shutil
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from ncaseg import zoo
from ncaseg.cli.main import build_parser
from ncaseg.config import load_recipe, recipe_names
from ncaseg.data.phantom import write_phantoms

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks/", "csrc/", "docs/", "ncakern/", "python_api/", "tests/")
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
FOR_USERS = [*DOCS, ROOT / "README.md", ROOT / "python_api" / "README.md"]

FENCE = re.compile(r"(<!-- runnable -->\n)?^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
OTHERS_OPTIONS = {"--isa", "--write"}  # of commands that are not ncaseg's
SECTIONS = ("train", "model", "data", "augment", "predict", "diffusion", "cdal")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(path: Path) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def inline(path: Path) -> list[str]:
    """What stands between backticks in a page."""
    return re.findall(r"`([^`\n]+)`", prose(path))


def blocks(path: Path, language: str) -> list[tuple[str, bool]]:
    """The code blocks of a language, each with whether it is marked as runnable."""
    found = FENCE.findall(path.read_text(encoding="utf-8"))
    return [(text, bool(mark)) for mark, name, text in found if name == language]


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    seen: Counter[str] = Counter()
    names = set()
    for heading in re.findall(r"^#+ +(.+?) *$", prose(path), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        names.add(slug if seen[slug] == 0 else f"{slug}-{seen[slug]}")
        seen[slug] += 1
    return names


def broken_links(path: Path) -> list[str]:
    broken = []
    for link in LINK.findall(prose(path)):
        if re.match(r"https?:|mailto:", link):
            continue
        target, _, anchor = link.partition("#")
        place = (path.parent / target).resolve() if target else path
        is_there = place.exists() and place.is_relative_to(ROOT)
        if not is_there or (anchor and (place.suffix != ".md" or anchor not in anchors(place))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_links_and_anchors_lead_somewhere(path):
    assert broken_links(path) == []


def test_a_broken_link_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path.resolve())
    (tmp_path / "there.md").write_text("# A `b`, c\n")
    page = tmp_path / "page.md"
    page.write_text("[ok](there.md) [ok](there.md#a-b-c) [a](gone.md) [b](there.md#b) [c](#none) [d](../page.md)\n")
    assert broken_links(page) == ["gone.md", "there.md#b", "#none", "../page.md"]


def test_every_page_is_reached_from_the_index():
    linked = {(page.parent / link.partition("#")[0]).resolve() for page in DOCS for link in LINK.findall(prose(page))}
    assert [named(page) for page in DOCS if page.resolve() not in linked and page != ROOT / "docs" / "README.md"] == []


def commands(text: str) -> list[list[str]]:
    """The arguments of every call of ncaseg in a block of shell."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|\|\||;", line):
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r"\w+=.*", words[0]):
                words = words[1:]
            if words and Path(words[0]).name == "ncaseg":
                found.append(words[1:])
            elif words[1:3] == ["-m", "ncaseg"]:
                found.append(words[3:])
            elif words[1:3] == ["-m", "ncaseg.edge"]:
                found.append(["predict", "--no-torch", *words[3:]])
    return found


COMMANDS = [
    pytest.param(words, id=f"{named(path)}: {' '.join(words)}"[:100])
    for path in PAGES
    for text, _ in blocks(path, "bash")
    for words in commands(text)
]


@pytest.mark.parametrize("words", COMMANDS)
def test_command_parses_and_names_what_is_there(words):
    args, rest = build_parser().parse_known_args(words)
    overrides = [*getattr(args, "overrides", []), *rest]
    assert all("=" in word and not word.startswith("-") for word in overrides), f"unknown arguments: {overrides}"
    if hasattr(args, "recipe") and args.recipe != "RECIPE":
        load_recipe(args.recipe, overrides)
    if hasattr(args, "model") and not args.model.isupper():
        assert args.model.endswith(".safetensors") or args.model in zoo.names(), f"not in the zoo: {args.model}"


def test_commands_are_found_in_a_block():
    text = (
        "A=1 bin/ncaseg doctor # yes\nmkdir x && ncaseg folds strided \\\n  -o y\npython -m ncaseg.edge a b\npip list"
    )
    assert commands(text) == [["doctor"], ["folds", "strided", "-o", "y"], ["predict", "--no-torch", "a", "b"]]
    assert len(COMMANDS) > 40


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the examples read: a model, and two volumes without labels."""
    write_phantoms(tmp_path / "data", 2)
    shutil.copytree(tmp_path / "data" / "imagesTr", tmp_path / "imgs")
    (tmp_path / "run").mkdir()
    shutil.copy(zoo.path("m3d-hippocampus-fast"), tmp_path / "run" / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


EXAMPLES = [pytest.param(text, id=named(path)) for path in FOR_USERS for text, runs in blocks(path, "python") if runs]


@pytest.mark.parametrize("text", EXAMPLES)
def test_example_runs(text, prepared, capsys):
    names: dict[str, object] = {}
    exec(compile(text, "example", "exec"), names)
    if "Dice" in text:
        assert float(capsys.readouterr().out.split()[-1]) > 0.9


def test_examples_are_found_and_compile():
    assert len(EXAMPLES) >= 3
    for path in FOR_USERS:
        for text, _ in blocks(path, "python"):
            compile(text, named(path), "exec")


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "reference" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_current():
    module = generator()
    for name, page in module.PAGES.items():
        written = (module.FOLDER / name).read_text(encoding="utf-8")
        assert written == page(), f"{name} is out of date: run docs/reference/generate.py"


def test_generated_pages_leave_nothing_out():
    page = (ROOT / "docs" / "reference" / "command-line.md").read_text(encoding="utf-8")
    verbs = next(action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    assert re.findall(r"^## ncaseg (\w+)", page, re.MULTILINE) == list(verbs.choices)
    keys = (ROOT / "docs" / "reference" / "recipe-keys.md").read_text(encoding="utf-8")
    for key in ("train.lr", "model.kind", "data.label_map", "predict.rule", "diffusion.clip", "cdal.window"):
        assert f"| `{key}` |" in keys
    assert "`dice_bce`, `m3d_upstream`, `dice_focal`" in keys


def known_options() -> set[str]:
    verbs = next(action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return {option for verb in verbs.choices.values() for action in verb._actions for option in action.option_strings}


@pytest.mark.parametrize("path", FOR_USERS, ids=named)
def test_names_in_the_text_exist(path):
    keys = (ROOT / "docs" / "reference" / "recipe-keys.md").read_text(encoding="utf-8")
    texts, missing = inline(path), []
    for text in texts:
        missing += [option for option in re.findall(r"--[a-z][\w-]*", text) if option not in known_options()]
        if found := re.match(rf"(?:{'|'.join(SECTIONS)})\.(?!safetensors)\w+", text):
            missing += [] if f"`{found[0]}" in keys else [found[0]]
        if re.fullmatch(r"ncaseg(\.\w+)+", text) and not resolves(text):
            missing.append(text)
        if text.startswith(FOLDERS) and not list(ROOT.glob(text.split()[0].rstrip("/"))):
            missing.append(text)
    assert [name for name in missing if name not in OTHERS_OPTIONS] == []


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or a name in one."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        parent, _, attribute = name.rpartition(".")
        return hasattr(importlib.import_module(parent), attribute)
    return True


def test_every_recipe_and_every_model_is_described():
    text = "".join(path.read_text(encoding="utf-8") for path in DOCS)
    shortened = {"medsegdiff-cbam", "medsegdiff-multi", "medsegdiff-multicbam"}  # `medsegdiff-plain`, `-cbam`, ...
    assert [name for name in {*recipe_names(), *zoo.names()} - shortened if f"`{name}`" not in text] == []


def test_the_drawing_shows_every_room_on_its_floor():
    floors = importlib.import_module("test_floors").FLOORS_OF_NCASEG
    (drawing,) = [text for text, _ in blocks(ROOT / "docs" / "architecture.md", "text")]
    order = [
        {place.start() for name in floor if (place := re.search(rf"(?<= ){name}(?=,|  )", drawing))}
        for floor in floors[1:]
    ]
    assert [len(places) for places in order] == [len(floor) for floor in floors[1:]]
    lines = [{drawing.count("\n", 0, place) for place in places} for places in order]
    assert [len(numbers) for numbers in lines] == [1] * len(lines)
    assert [min(numbers) for numbers in lines] == sorted(min(numbers) for numbers in lines)


def test_readme_is_three_screens_and_pictures_are_small():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    begin, end = text.index("<!-- benchmarks: begin -->"), text.index("<!-- benchmarks: end -->")
    assert len((text[:begin] + text[end:]).splitlines()) <= 150
    sizes = {path.name: path.stat().st_size for path in (ROOT / "docs" / "images").iterdir()}
    assert [name for name, size in sizes.items() if size > 200_000] == []
