"""The documentation is whole: nothing public is missing, and what checks its examples can fail.

The examples themselves are run by the conftest.py in the root of the repository.
"""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import typer

import lotr_tn as lt
from lotr_tn.cli.main import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted(DOCS.rglob("*.md"))
ALL = typer.main.get_command(app).commands
COMMON = {"--help", "--help-all", "--json", "--quiet", "--debug", "--force"}
"""Options of most commands, told once on the first page of them."""

COMMANDS = [name for name, command in ALL.items() if not command.hidden] + [
    f"bank {name}" for name in ALL["bank"].commands
]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"loaded_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


console = load(ROOT / "conftest.py")


@pytest.mark.parametrize(
    ("name", "start"), [("demo", "python -m pip install . "), ("test", "python -m pip install ")]
)
def test_readme_marks_the_two_commands(name, start):
    marked = rf"^<!-- command: {name} -->\n```sh\n(.+)\n```$"
    (command,) = re.findall(marked, README, flags=re.MULTILINE)
    assert command.startswith(start)


def test_readme_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    local = [link for link in links if "://" not in link]
    assert len(local) > 5
    assert [link for link in local if not (ROOT / link).is_file()] == []


def test_every_public_name_is_on_one_page_of_the_api():
    pages = "".join(page.read_text("utf-8") for page in DOCS.glob("api/*.md"))
    shown = re.findall(r"^::: lotr_tn\.(\w+)$", pages, re.MULTILINE)
    assert sorted(shown) == sorted(lt.__all__)


def text_of(*pages: str) -> str:
    return "".join((DOCS / page).read_text("utf-8") for page in pages)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_its_help(name):
    page = text_of(f"cli/{name.partition(' ')[0]}.md")
    assert re.search(rf"^\$ lotr {name} --help( \| head -\d)?$", page, re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name):
    """On the page of the command; of a bank also where that page sends its reader."""
    command = ALL["bank"].commands[name[5:]] if name.startswith("bank ") else ALL[name]
    shown = [found for found in command.params if not getattr(found, "hidden", False)]
    options = {word for found in shown for word in found.opts + found.secondary_opts}
    asked = {word for word in options if word.startswith("--")} - COMMON
    family = name.partition(" ")[0]
    told = ("banks.md", "cli/merge.md", "cli/export.md") if family == "bank" else ()
    text = text_of(f"cli/{family}.md", *told)
    assert {word for word in asked if not re.search(rf"(?<![\w-]){word}(?![\w-])", text)} == set()
    assert {word for word in COMMON if word not in text_of("cli/index.md")} == set()


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *PAGES], ids=lambda page: f"{page.parent.name}/{page.name}"
)
def test_every_lotr_command_is_checked(page):
    """Nobody shows a command in a block that is not run."""
    text = page.read_text("utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert page.name == "changelog.md" or blocks or "\n::: lotr_tn." in text
    unchecked = [body for language, body in blocks if language != "console" and "$ lotr" in body]
    assert unchecked == []


def shown(command: str, output: str, page: str = "index.md") -> SimpleNamespace:
    return SimpleNamespace(parsed=f"$ {command}\n{output}", path=page)


def print_(text: str) -> str:
    escaped = text.replace("\n", "\\n")
    return f"printf %b {shlex.quote(escaped)}"


@pytest.mark.parametrize(
    ("output", "wanted"),
    [
        ("one\ntwo\n", "one\ntwo\n"),
        ("one  \n\n", "one\n"),
        ("\n one\nand\ntwo\n", " one\n...\ntwo\n"),
        ("in 0.3 s", "in 12.0 s\n"),
        ("", "$ echo $?\n0\n"),
        ("norm  0.0496 of 2.31 kB\n", "norm 0.04961 of 2.30 kB\n"),
        ("0.2 or 0.25\n", "...0.251\n"),
        ("1.000", "0.9999\n"),
    ],
)
def test_right_output_passes(output, wanted):
    assert not console.check_console(shown(print_(output), wanted))


@pytest.mark.parametrize(
    ("output", "wanted"),
    [
        ("one\ntwo\n", "one\n"),
        ("one\n", "one\ntwo\n"),
        ("one\n", "two\n"),
        ("0.31", "0.32\n"),
        ("0.312", "0.314\n"),
        ("312", "313\n"),
        ("0.312 k", "0.313 M\n"),
        ("-0.312", "0.312\n"),
        ("0.1.0", "0.2.0\n"),
        ("x-0.111.txt", "x-0.112.txt\n"),
        ("0.25 or 0.2\n", "...0.251\n"),
        ("one\nand\nthree\n", "one\n...\ntwo\n"),
        ("", "$ echo $?\n3\n"),
    ],
)
def test_wrong_output_fails(output, wanted):
    assert console.check_console(shown(print_(output), wanted))


def test_a_failure_has_to_be_shown():
    assert "exits with 3, which is not shown" in console.check_console(shown("exit 3", ""))
    assert "exits with 3" in console.check_console(shown("exit 3", "$ true\n"))
    assert not console.check_console(shown("exit 3", "$ echo $?\n3\n"))
    assert console.check_console(shown("exit 3", "$ echo $?\n2\n"))


def test_a_block_without_a_command_fails():
    assert "begins with a command" in console.check_console(
        SimpleNamespace(parsed="lotr demo\n", path="index.md")
    )


@pytest.mark.parametrize("page", ["index.md", "README.md"])
def test_the_terminal_is_plain(page, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not console.check_console(shown("lotr --version", f"lotr_tn {lt.__version__}\n", page))
    wanted = "Usage: lotr demo [OPTIONS]\n..."
    assert not console.check_console(shown("lotr demo --help", wanted, page))


@pytest.mark.parametrize("page", ["index.md", "README.md"])
def test_commands_are_those_of_a_shell(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.json").write_text("{}")

    def check(command, output):
        return console.check_console(shown(command, output, page))

    assert not check("lotr --version | tr _ - | cut -c 1-7", "lotr-tn\n")
    assert not check("lotr inspect *.json | grep nothing", "lotr: one.json...\n$ echo $?\n1\n")
    assert check("lotr demo --nothing", "")
    if page in console.REAL_PROCESSES:
        return  # the shell itself does what follows
    assert not check("lotr --version | grep -c '|'", "0\n$ echo $?\n1\n")
    assert not check("lotr inspect 'no|thing'", "lotr: no|thing...\n$ echo $?\n1\n")
    assert not check("lotr --version > said; cat said", "lotr_tn ...\n")


def test_help_of_another_typer_is_compared_by_its_options(monkeypatch):
    monkeypatch.setattr(console, "version", lambda name: "0.19.2")
    box = "│ --json  Print JSON. │\n│ --quiet  -q  Say nothing. │\n"
    assert not console.check_console(shown(f"{print_(box)} # --help", " --quiet  -q\n --json\n"))
    assert console.check_console(shown(f"{print_(box)} # --help", " --quiet  -q\n"))


@pytest.fixture
def draw():
    pytest.importorskip("matplotlib", reason="the extra docs is not installed")
    return load(DOCS / "figures" / "tucker2.py").main


def test_the_picture_is_the_same_each_time(draw, tmp_path):
    draw(tmp_path / "one.svg")
    draw(tmp_path / "two.svg")
    text = (tmp_path / "one.svg").read_text("utf-8")
    assert text == (tmp_path / "two.svg").read_text("utf-8")
    assert "<dc:date>" not in text
    assert str(ROOT) not in text


def test_the_site_builds_without_warnings(tmp_path):
    pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    built = {page.relative_to(tmp_path).with_suffix(".md") for page in tmp_path.rglob("*.html")}
    assert {page.relative_to(DOCS) for page in PAGES} <= built
