"""The examples in the documentation are tests.

In README.md and docs/*.md every ```python block runs, and every ```console block is compared with
what its commands print. One document is one story: its blocks run in order, in one fresh folder
that holds the demo adapter. The doctests of the package run too. With pytest-xdist, use
--dist loadfile.
"""

import contextlib
import doctest
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from sybil import Example, Sybil
from sybil.evaluators.doctest import NUMBER
from sybil.integration import pytest as integration
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser
from sybil.parsers.rest import DocTestParser

os.environ.setdefault("HF_HUB_OFFLINE", "1")

DEMO_ADAPTER = Path(__file__).parent / "lotr_tn" / "demo" / "adapter"
HELP_LAYOUT = "0.29"
"""The typer whose layout the shown help texts have; under others only the options must agree."""

COLOURED = ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS")
"""Variables that make rich or typer print escape codes into a pipe."""


def check_console(example: Example) -> str | None:
    """Compare a console block with what its commands print: nothing is right, text is a complaint.

    `...` stands for any text, and seconds may differ. A command that fails must be followed by
    `$ echo $?`, which shows its exit status.
    """
    if not example.parsed.startswith("$ "):
        return "a console block begins with a command, after `$ `"
    status = 0
    for part in re.split(r"^\$ ", example.parsed, flags=re.MULTILINE)[1:]:
        command, _, wanted = part.partition("\n")
        if status and command != "echo $?":
            return f"the command before `{command}` exits with {status}, which is not shown"
        done = subprocess.run(
            ["sh", "-c", f"(exit {status}); {command}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_environment(),
            encoding="utf-8",
            check=False,
        )
        status = done.returncode
        if not _agree(command, wanted, done.stdout):
            return f"$ {command}\nprints\n{done.stdout}\nand not\n{wanted}"
    return f"the last command exits with {status}, which is not shown" if status else None


def _environment() -> dict[str, str]:
    """A plain terminal of 80 columns, in which `lotr` is the one that is being tested."""
    kept = {k: v for k, v in os.environ.items() if k not in COLOURED}
    path = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
    return kept | {"COLUMNS": "80", "OMP_NUM_THREADS": "1", "PATH": path}


def _agree(command: str, wanted: str, found: str) -> bool:
    if command.endswith("--help") and not version("typer").startswith(f"{HELP_LAYOUT}."):
        return _options(wanted) == _options(found)
    return doctest.OutputChecker().check_output(_plain(wanted), _plain(found), doctest.ELLIPSIS)


def _plain(text: str) -> str:
    """A text without seconds, blanks at the ends of lines, and blank lines at its own ends."""
    text = re.sub(r"\d+\.\d s\b", "0.0 s", text)
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).strip()


def _options(text: str) -> set[str]:
    return set(re.findall(r"(?<=[\s│])--?[a-z][\w-]*", text))


def enter_folder(namespace: dict[str, Any]) -> None:
    """Begin a document: a fresh folder with the demo adapter."""
    stack = namespace["_leave"] = contextlib.ExitStack()
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    stack.enter_context(contextlib.chdir(folder))
    shutil.copytree(DEMO_ADAPTER, "lotr-demo/adapter")


def leave_folder(namespace: dict[str, Any]) -> None:
    """End a document."""
    namespace["_leave"].close()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let examples load models: peft reads an attribute that transformers has renamed."""
    if isinstance(item, integration.SybilItem):
        item.add_marker(
            pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
        )


def documents(path: str, *names: str) -> Sybil:
    """Markdown documents whose blocks are run."""
    return Sybil(
        [
            PythonCodeBlockParser(doctest_optionflags=doctest.ELLIPSIS | NUMBER),
            CodeBlockParser("console", check_console),
        ],
        path=path,
        patterns=names,
        setup=enter_folder,
        teardown=leave_folder,
    )


pytest_collect_file = integration.pytest_integration(
    documents("docs", "*.md"),
    documents(".", "README.md"),
    Sybil([DocTestParser()], path="lotr_tn", pattern="*.py"),
)
