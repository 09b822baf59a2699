"""The report of an analysis as one HTML file that needs no network.

The page is hand-written, as plotly's script alone is larger than the two megabytes it may have.
What a reader must not miss is plain HTML, written here; the script adds what moves.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from lotr_tn.report.forms import forms_in, look_of
from lotr_tn.report.page.command import command_html, command_parts
from lotr_tn.report.page.payload import payload
from lotr_tn.report.page.tables import (
    facts,
    group_sections,
    question,
    saving,
    stackings,
    summary,
    title,
    verdict_html,
)

__all__ = ["page_html"]

SCRIPTS = ("numbers.js", "drawing.js", "chart.js", "heat.js", "panels.js", "command.js", "page.js")
"""In the order in which they are joined into one script."""


def page_html(record: dict[str, Any], told: Mapping[str, Sequence[str]] | None = None) -> str:
    """The page that `lotr analyze --html` writes, of a record with surfaces.

    A group without a surface is shown by its front alone. The document has no address of anything
    outside itself, and its policy forbids the browser to ask for one. `told` holds the values of
    other options of the analysis by their names, for the commands that the page shows.

    Raises:
        ValueError: the record holds a number that is not finite.
    """
    told = told or {}
    style = _asset("page.css") + _form_styles(record)
    script = "(() => {\n'use strict';\n" + "\n".join(map(_asset, SCRIPTS)) + "\n})();\n"
    parts = {
        "policy": _policy(style, script),
        "style": style,
        "script": script,
        "record": payload(record | {"command": command_parts(record, told)}),
        "title": escape(title(record)),
        "question": question(record),
        "saving": saving(record),
        "verdict": verdict_html(record),
        "command": command_html(record, told),
        "facts": facts(record),
        "summary": summary(record),
        "groups": group_sections(record),
        "stackings": stackings(record),
    }
    # one pass, so that nothing of a record is ever taken for a mark
    return re.sub(r"<!--put (\w+)-->", lambda mark: parts[mark[1]], _asset("page.html"))


def _form_styles(record: dict[str, Any]) -> str:
    """The colours and dashes of the forms, by day, by night and on paper."""
    looks = {name: look_of(name) for name in forms_in(record) if re.fullmatch(r"[\w-]+", name)}
    light = dark = dashes = ""
    for name, look in looks.items():
        light += f".form-{name} {{ --own: {look.light}; }}\n"
        dark += f".form-{name} {{ --own: {look.dark}; }}\n"
        if line := " ".join(f"{2 * dash:g}" for dash in look.dashes):
            dashes += f".curve.form-{name} {{ stroke-dasharray: {line}; }}\n"
    return (
        f"{light}{dashes}@media (prefers-color-scheme: dark) {{\n{dark}}}\n"
        f"@media print {{\n{light}}}\n"
    )


def _asset(name: str) -> str:
    return files("lotr_tn.report.page").joinpath(name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """What the browser may do: run this script, use this style, and ask nobody for anything."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_digest(script)}'",
            f"style-src '{_digest(style)}'",
            "img-src data:",  # the empty icon, so that no browser asks a server for one
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
