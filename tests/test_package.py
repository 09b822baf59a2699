"""What a user sees of the package as a whole."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path

import pytest

import lotr_tn

ROOT = Path(__file__).parents[1]
MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(lotr_tn.__path__, "lotr_tn.")
    if name != "lotr_tn.demo.train"
]


@pytest.mark.parametrize("name", MODULES)
def test_all_names_exist_and_are_documented(name):
    """A name without an underscore is for others to use, in its room or beyond."""
    module = importlib.import_module(name)
    assert module.__doc__
    listed = {public: getattr(module, public) for public in getattr(module, "__all__", ())}
    for public, thing in {**vars(module), **listed}.items():
        mine = getattr(thing, "__module__", None) == name and not public.startswith("_")
        if (mine or public in listed) and (inspect.isclass(thing) or inspect.isfunction(thing)):
            assert inspect.getdoc(thing), f"{name}.{public} has no docstring"


def test_public_names_are_sorted_and_complete():
    in_capitals_first = sorted(lotr_tn.__all__, key=lambda name: (not name.isupper(), name))
    assert lotr_tn.__all__ == in_capitals_first
    ours = {k: v for k, v in vars(lotr_tn).items() if k[0] != "_" and callable(v)}
    public = {k for k, v in ours.items() if v.__module__.startswith("lotr_tn.")}
    assert public <= set(lotr_tn.__all__)


@pytest.mark.parametrize("room", lotr_tn.ROOMS)
def test_rooms_are_reached_by_attribute(room):
    assert getattr(lotr_tn, room) is importlib.import_module(f"lotr_tn.{room}")
    assert room in dir(lotr_tn)


def test_names_that_moved_are_found_with_a_word_where():
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    for room, moved in lotr_tn.MOVED.items():
        for entry in moved.split():
            new, _, old = entry.partition("=")
            with pytest.warns(DeprecationWarning, match=rf"is now lotr_tn\.{room}\.{new}$"):
                assert getattr(lotr_tn, old or new) is getattr(getattr(lotr_tn, room), new)
            assert (old or new) not in lotr_tn.__all__
            assert f"`{new}`" in changelog, "the table of old and new names"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        importlib.import_module("lotr_tn").__getattr__("nothing")


def test_import_is_light():
    script = (
        "import sys, lotr_tn\n"
        "heavy = {'torch', 'tensorly', 'matplotlib', 'peft', 'hypothesis', 'typer', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_version_is_that_of_the_metadata():
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert lotr_tn.__version__ == metadata["version"]


def test_types_are_shipped():
    """The marker that makes pyright and mypy read the annotations of an installed package."""
    assert (resources.files(lotr_tn) / "py.typed").is_file()
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert wheel["targets"]["wheel"] == {"packages": ["lotr_tn"]}  # whole: nothing is left out


def test_no_file_is_a_drawer():
    """Files carry an idea, and stay short."""
    for path in (ROOT / "lotr_tn").rglob("*.py"):
        assert path.stem not in {"utils", "helpers", "misc", "common"}
        lines = len(path.read_text().splitlines())
        assert lines <= 400, f"{path.name} has {lines} lines: split it"


DOORS = {
    "add",
    "add_lotr",
    "analyze",
    "analyze_adapters",
    "convert",
    "convert_adapter",
    "count",
    "make",
    "make_bank",
    "merge_adapters",
}
"""Commands, and functions of the public interface, that ask many things by keyword."""


def test_functions_are_short_and_ask_for_little():
    for path in (ROOT / "lotr_tn").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                where = f"{path.name}:{node.name}"
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                assert lines <= 60, f"{where} has {lines} lines: split it"
                asked = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                count = len([a for a in asked if a.arg not in ("self", "cls")])
                assert count <= 8 or node.name in DOORS, f"{where} has {count} parameters"
