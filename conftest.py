"""The examples in the documentation are tests.

In README.md and docs/*.md every ```python block runs, and every ```console block is compared with
what its commands print. One document is one story: its blocks run in order, in one fresh folder
that holds the demo's adapters. The doctests of the package run too.

Tests run on all cores, file by file (`--dist loadfile`); a run of one file starts no workers.
"""

import contextlib
import doctest
import gc
import glob
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from decimal import Decimal
from importlib.metadata import version
from itertools import starmap
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from sybil import Example, Sybil
from sybil.evaluators.doctest import NUMBER
from sybil.integration import pytest as integration
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser
from sybil.parsers.rest import DocTestParser

gc.disable()  # until all tests are collected: what is imported and collected stays to the end
os.environ.setdefault("HF_HUB_OFFLINE", "1")
for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(threads, "1")  # before numpy loads: each core has a worker of its own

DEMO = Path(__file__).parent / "lotr_tn" / "demo"
HELP_LAYOUT = "0.29"
"""The typer whose layout the shown help texts have; under others only the options must agree."""

COLOURED = ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS")
"""Variables that make rich or typer print escape codes into a pipe."""


IN_PROCESS = "LOTR_DOCUMENTS_IN_PROCESS" in os.environ
REAL_PROCESSES = () if IN_PROCESS else ("README.md", "quickstart.md")
"""Documents whose commands are typed into a shell; in all others `lotr` runs in this process."""

DECIMAL = re.compile(r"(?<![\w.])\d+\.\d+(?:e[-+]?\d+)?(?!\.?\d|\.[a-z])")
"""A number with a decimal point, but no part of a name or a version."""


def check_console(example: Example) -> str | None:
    """Compare a console block with what its commands print: nothing is right, text is a complaint.

    `...` stands for any text, seconds may differ, and so may the last digit shown of a number with
    a decimal point and three digits or more, by one. A command that fails must be followed by
    `$ echo $?`, which shows its exit status.
    """
    if not example.parsed.startswith("$ "):
        return "a console block begins with a command, after `$ `"
    run = _run_in_shell if Path(example.path).name in REAL_PROCESSES else _run
    status = 0
    for part in re.split(r"^\$ ", example.parsed, flags=re.MULTILINE)[1:]:
        command, _, wanted = part.partition("\n")
        if status and command != "echo $?":
            return f"the command before `{command}` exits with {status}, which is not shown"
        status, found = run(command, status)
        if not _agree(command, wanted, found):
            return f"$ {command}\nprints\n{found}\nand not\n{wanted}"
    return f"the last command exits with {status}, which is not shown" if status else None


def _run_in_shell(command: str, status: int, given: str | None = None) -> tuple[int, str]:
    """Exit status and output of a command, after one that ended with a status."""
    done = subprocess.run(
        ["sh", "-c", f"(exit {status}); {command}"],
        input=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=_environment(),
        encoding="utf-8",
        check=False,
    )
    return done.returncode, done.stdout


def _run(command: str, status: int) -> tuple[int, str]:
    """The same; `lotr` runs in this process, and what it is piped into in a shell."""
    if not command.startswith("lotr ") or re.search(r"[;&<>`$]", command):
        return _run_in_shell(command, status)
    lexer = shlex.shlex(command, posix=False, punctuation_chars="|")
    lexer.whitespace_split, lexer.commenters = True, ""
    words = list(lexer)
    end = words.index("|") if "|" in words else len(words)
    arguments = shlex.split(" ".join(words[1:end]))
    status, out, err = _lotr([path for word in arguments for path in _expanded(word)])
    if end < len(words):
        status, out = _run_in_shell(" ".join(words[end + 1 :]), 0, out)
    return status, err + out


def _expanded(word: str) -> list[str]:
    return sorted(glob.glob(word)) or [word]


def _lotr(arguments: list[str]) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of the program."""
    from lotr_tn.cli import main

    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", ["lotr", *arguments]),
        mock.patch.object(sys.modules["__main__"], "__package__", ""),  # so the name is argv[0]
        mock.patch.dict(os.environ, _environment(), clear=True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as done:
            status = done.code if isinstance(done.code, int) else int(done.code is not None)
    return status, out.getvalue(), err.getvalue()


def _environment() -> dict[str, str]:
    """A plain terminal of 80 columns, in which `lotr` is the one that is being tested."""
    kept = {k: v for k, v in os.environ.items() if k not in COLOURED}
    path = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
    return kept | {"COLUMNS": "80", "PATH": path}


def _agree(command: str, wanted: str, found: str) -> bool:
    if "--help" in command and not version("typer").startswith(f"{HELP_LAYOUT}."):
        return _options(wanted) == _options(found)
    return _alike(_plain(wanted), _plain(found))


def _alike(wanted: str, found: str) -> bool:
    """Whether the pieces between `...` follow each other in what was found, from end to end."""
    pieces = wanted.split("...")
    place, last = 0, len(pieces) - 1
    for at, piece in enumerate(pieces):
        begin, end = "" if at else r"\A", "" if at < last else r"\Z"
        pattern = re.compile(f"{begin}{_pattern(piece)}{end}")
        numbers = DECIMAL.findall(piece)
        for match in pattern.finditer(found, place):
            if all(starmap(_near, zip(numbers, match.groups(), strict=True))):
                place = match.end()
                break
        else:
            return False
    return True


def _pattern(piece: str) -> str:
    """The text as it is, with any number where it has a decimal one, at whatever indent."""
    texts = [re.escape(text) for text in DECIMAL.split(piece)]
    indents = [re.sub(r"(\\ )+$", " *", text) for text in texts[:-1]]
    return r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)".join([*indents, texts[-1]])


def _near(wanted: str, found: str) -> bool:
    """Equal, or one unit of the last digit apart where three digits or more are shown."""
    a, b = Decimal(wanted), Decimal(found)
    _, digits, exponent = a.as_tuple()
    return a == b or (len(digits) >= 3 and abs(a - b) <= Decimal((0, (1,), int(exponent))))


def _plain(text: str) -> str:
    """A text without seconds, blanks at the ends of lines, and blank lines at its own ends."""
    text = re.sub(r"\d+\.\d s\b", "0.0 s", text)
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).strip()


def _options(text: str) -> set[str]:
    return set(re.findall(r"(?<=[\s│])--?[a-z][\w-]*", text))


def enter_folder(namespace: dict[str, Any]) -> None:
    """Begin a document: a fresh folder with the demo's adapters."""
    stack = namespace["_leave"] = contextlib.ExitStack()
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    stack.enter_context(contextlib.chdir(folder))
    shutil.copytree(DEMO / "adapter", "lotr-demo/adapter")
    for folder in DEMO.glob("checkpoint-*"):
        shutil.copytree(folder, f"lotr-demo/run/{folder.name}")
    shutil.copytree(DEMO / "adapter", "lotr-demo/run/checkpoint-190")


def leave_folder(namespace: dict[str, Any]) -> None:
    """End a document."""
    namespace["_leave"].close()


def pytest_collection_finish() -> None:
    """Thousands of tests stay to the end: the collector need not look through them each time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)
    gc.enable()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let examples load models: peft reads an attribute that transformers has renamed."""
    if isinstance(item, integration.SybilItem):
        item.add_marker(
            pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
        )


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """No workers for one file: they would only have to start."""
    if len(config.args) != 1 or not Path(config.args[0].partition("::")[0]).is_file():
        return None
    config.option.dist = "no"
    return 0


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
