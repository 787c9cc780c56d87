"""Write the reference pages that follow from the code: the command line, and the keys of a recipe.

    .venv/bin/python docs/reference/generate.py

`tests/test_docs.py` fails where a page is out of date.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ncaseg.cli.main import build_parser
from ncaseg.config.settings import Config

FOLDER = Path(__file__).parent
NOTE = "<!-- Written by docs/reference/generate.py: change the code and run it again. -->\n"
EXIT_CODES = """
## Exit codes

| exit code | meaning |
| --- | --- |
| 0 | done |
| 2 | usage: arguments, recipe, model name |
| 3 | data: a file (also one of many) is missing, unreadable or does not fit; training diverged; `qc` flags a case |
| 4 | environment: a package, the disk, memory, a build; a folder that another training is using |
| 128 + n | signal n ended it: 130 Ctrl-C, 143 SIGTERM, 129 a closed terminal; rerun the same command to resume |
"""
SPELT_OUT = """## Two more keys

| key | effect |
| --- | --- |
| `model.sizes = [[32, 32, 26], [64, 64, 52]]` | sizes of the levels, not `model.scales`; the last fits `data.size` |
| `model.steps = "auto"` | enough steps for information to cross the level's grid (see below) |

`auto` takes the longest side of the level's grid over (k - 1) / 2. The grid is that of `data.crop`, else `data.size`.
"""


def command_line() -> str:
    """The page of all verbs, read from the parser that runs them."""
    parser = build_parser()
    verbs = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    parts = [
        f"# Command line\n\n{NOTE}\n{parser.description} `python -m ncaseg` is the same command.\n",
        "MODEL is a `.safetensors` checkpoint or the name of a trained model in the zoo. RECIPE is the name of a",
        "[built-in recipe](recipes.md) or a `.toml` file. The [how-to pages](../README.md) show the commands at work.",
        "Every command also takes `--help`, and `--debug`, which shows the traceback of an error.\n",
    ]
    for name, verb in verbs.choices.items():
        parts.append(f"## ncaseg {name}\n\n{verb.description}\n\n```text\n{_usage(verb)}\n```\n")
        if rows := [f"| {_names(action)} | {_meaning(action)} |" for action in _actions(verb)]:
            parts += ["| argument | meaning |\n| --- | --- |", *rows, ""]
    return "\n".join(parts).rstrip() + "\n" + EXIT_CODES


def _actions(verb: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All arguments but those that every verb has."""
    return (action for action in verb._actions if not {"--help", "--debug"} & set(action.option_strings))


def _usage(verb: argparse.ArgumentParser) -> str:
    """Required arguments in full; argparse's own usage line differs between versions of Python."""
    words = [verb.prog]
    for action in _actions(verb):
        if not action.option_strings:
            name = str(action.metavar or action.dest)
            words.append({"?": f"[{name}]", "*": f"[{name} ...]"}.get(str(action.nargs), name))
    words += [f"{action.option_strings[0]} {action.metavar}" for action in _actions(verb) if _is_needed(action)]
    return " ".join([*words, "[options]"])


def _is_needed(action: argparse.Action) -> bool:
    return bool(action.option_strings) and action.required


def _names(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    value = "" if action.nargs == 0 else f" {action.metavar or '{' + ','.join(action.choices or ()) + '}'}"
    value += " ..." if action.nargs == "+" else ""
    return ", ".join(f"`{option}{value}`" for option in action.option_strings)


def _meaning(action: argparse.Action) -> str:
    text = (action.help or "") % vars(action)
    text = text.replace("|", "\\|")
    if action.choices and not action.option_strings:
        text = f"`{'`, `'.join(action.choices)}`: {text}"
    return text + (" (required)" if _is_needed(action) else "")


def recipe_keys() -> str:
    """The page of all settings, read from the dataclasses of :mod:`ncaseg.config`."""
    parts = [
        f"# Keys of a recipe\n\n{NOTE}",
        "A recipe is a TOML file. It defines a run but for the folders of its data and its results. `ncaseg train`",
        "also takes keys as `section.key=value`, which change the recipe. An unknown key is an error that names the",
        "nearest known one. A key that a recipe leaves out has the default below. The [built-in recipes](recipes.md)",
        "are examples.\n",
        "`name` is the only key outside a section.\n",
    ]
    for section, settings in _sections():
        for kind in _family(settings):
            parts.append(f"{_title(section, kind)}\n\n{_prose(kind)}\n")
            if rows := [
                f"| `{section}.{key.name}` | {_type(kind, key)} | {_default(section, kind, key)} |"
                for key in _own_keys(kind)
            ]:
                parts += ["| key | type | default |\n| --- | --- | --- |", *rows, ""]
    return "\n".join([*parts, SPELT_OUT])


def _sections() -> Iterator[tuple[str, type]]:
    hints = get_type_hints(Config)
    return ((field.name, hints[field.name]) for field in dataclasses.fields(Config) if field.name != "name")


def _family(settings: type) -> list[type]:
    """The class of a section, and those derived from it, each behind its parent."""
    return [settings, *(kind for child in _derived(settings) for kind in _family(child))]


def _derived(settings: type) -> list[type]:
    """The classes of the package that are derived from one; a test may have derived others in this process."""
    return [kind for kind in settings.__subclasses__() if kind.__module__.startswith("ncaseg.")]


def _title(section: str, kind: type) -> str:
    """A heading: of the section, or of the kinds of model that a derived class stands for."""
    if kind.__base__ is object:
        return f"## {section}"
    kinds = dict.fromkeys(word for leaf in _family(kind) if not _derived(leaf) for word in _kinds(leaf))
    return f"### {section}.kind = " + ", ".join(f'"{word}"' for word in kinds)


def _kinds(leaf: type) -> list[str]:
    """The values of ``kind`` that a class takes: it refuses those of other classes."""
    field = next(field for field in dataclasses.fields(leaf) if field.name == "kind")
    return [word for word in _words(leaf, field) if "kind" not in _refusal(leaf, kind=word).partition(" ")[0]]


def _refusal(kind: type, /, **values: Any) -> str:
    """What a class says to some values; nothing if it takes them."""
    try:
        kind(**values)
    except (TypeError, ValueError) as error:
        return str(error)
    return ""


def _own_keys(kind: type) -> list[dataclasses.Field]:
    """The fields that a class adds to those of its parent."""
    inherited = {
        field.name for base in kind.__mro__[1:] if dataclasses.is_dataclass(base) for field in dataclasses.fields(base)
    }
    return [field for field in dataclasses.fields(kind) if field.name not in inherited]


def _prose(kind: type) -> str:
    """A docstring as Markdown: one backtick for two, and no roles."""
    text = inspect.cleandoc(kind.__doc__ or "").partition("\n\nAttributes:")[0]
    text = re.sub(r":\w+:`([^`]+)`", r"`\1`", text)
    return text.replace("``", "`")


def _type(kind: type, key: dataclasses.Field) -> str:
    """The type of a key; of a text the words that it may be, as the check of the dataclass names them."""
    words = _words(kind, key)
    if words:
        return ", ".join(f"`{word}`" for word in words)
    return _show(get_type_hints(kind)[key.name])


def _show(hint: Any) -> str:
    names: dict[Any, str] = {str: "text", int: "integer", float: "number", bool: "`true` or `false`"}
    if hint in names:
        return names[hint]
    inner = get_args(hint)
    if inner and inner[-1] is Ellipsis:
        return f"list of {_plural(_show(inner[0]))}"
    return f"{len(inner)} {_plural(_show(inner[0]))}" if inner else str(hint)


def _plural(name: str) -> str:
    if name.endswith("s"):
        return name.replace("list", "lists") if name.startswith("list") else f"{name} each"
    return f"{name}s"


def _words(kind: type, key: dataclasses.Field) -> list[str]:
    """What a text may be: the check of a wrong one says so. A dataclass may need ``steps`` before it looks further."""
    if get_type_hints(kind)[key.name] is not str:
        return []
    leaf = _family(kind)[-1]
    for others in ({}, {"steps": 1}):
        if words := re.search(r"must be one of (.+); got '\?'", _refusal(leaf, **others, **{key.name: "?"})):
            return words[1].split(", ")
    return []


def _default(section: str, kind: type, key: dataclasses.Field) -> str:
    """The value without an entry: that of a recipe without the section, where its kind of model has the key."""
    whole = Config.__dataclass_fields__[section].default
    value = getattr(whole, key.name) if isinstance(whole, kind) else key.default
    return "required" if value is dataclasses.MISSING else f"`{json.dumps(value)}`"


PAGES: dict[str, Callable[[], str]] = {"command-line.md": command_line, "recipe-keys.md": recipe_keys}


def main() -> None:
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")
        print(f"wrote {FOLDER / name}")


if __name__ == "__main__":
    main()
