"""Forms by the names that records hold; one that is not registered here has a plain look."""

from typing import Any

from lotr_tn.analysis.forms import FORMS, LOTR, Look
from lotr_tn.linalg.ranks import ITEM_SIZES

IN_BITS, RATE = "in-bits", "gaussian-rate"
BESIDE = {
    IN_BITS: ("in bits", Look("#5e35a5", "#5e35a5", "#b99cff", "X", ())),
    RATE: ("rate of a Gaussian model", Look("#5e35a5", "#5e35a5", "#b99cff", "X", (1, 1.5))),
}
"""What is drawn beside forms: its label, and how it looks."""


def label_of(name: str) -> str:
    """For tables and legends."""
    return BESIDE[name][0] if name in BESIDE else FORMS[name].label if name in FORMS else name


def phrase_of(name: str) -> str:
    """Within a sentence."""
    return FORMS[name].in_a_sentence if name in FORMS else name


def look_of(name: str) -> Look:
    """How it is drawn; the same grey for all that are unknown."""
    return BESIDE[name][1] if name in BESIDE else FORMS[name].look if name in FORMS else Look()


def is_kept(name: str) -> bool:
    """Whether it is the LoRA as it is."""
    return name in FORMS and FORMS[name].kept


def is_pairs(name: str) -> bool:
    """Whether its points are pairs of ranks of the error surface."""
    return name in FORMS and FORMS[name].pairs


def forms_in(record: dict[str, Any]) -> list[str]:
    """The forms that the record of an analysis names, each once, and that of its fronts."""
    groups = record["groups"]
    named = [part["format"] for budget in record["budgets"] for part in budget["groups"]]
    for group in groups:
        parts = (*group["curves"], *group["candidates"], *group["clusters"])
        named += [part["format"] for part in parts]
    if any(group.get("in_bits") for group in groups):
        named += BESIDE
    return list(dict.fromkeys([LOTR.name, *named]))


def candidate_of(group: dict[str, Any], form: str | None = None) -> dict[str, Any] | None:
    """The candidate of a group in one form, or in the one that is recommended."""
    wanted = group["recommended"] if form is None else form
    return next((c for c in group["candidates"] if c["format"] == wanted), None)


def number_bytes(record: dict[str, Any]) -> int | None:
    """Bytes of one number of what is not kept as it is; None for a dtype that is not known."""
    return ITEM_SIZES.get(record["dtype"])


def form_record(name: str) -> dict[str, Any]:
    """What the page needs to draw a form."""
    look = look_of(name)
    return {
        "label": label_of(name),
        "kept": is_kept(name),
        "pairs": is_pairs(name),
        "marker": look.marker,
        "light": look.light,
        "dark": look.dark,
        "dashes": list(look.dashes),
    }
