"""What an analysis means, in sentences; every number comes from the record."""

from typing import Any

from lotr_tn.analysis.forms import FORMS, LOTR
from lotr_tn.analysis.forms.truncated import FORM as TRUNCATED
from lotr_tn.report.forms import is_kept, is_pairs, phrase_of
from lotr_tn.report.numbers import byte_size, error, times

SHARED = 0.5
"""Mean overlap from which layers are said to share a subspace."""

UNSHARED = 0.1
"""Mean overlap below which they are said not to."""

HARDLY = 0.97
"""Share of the LoRA's parameters above which a form hardly saves anything."""


def question_text(question: dict[str, Any]) -> str:
    """A question in words: at most 5% error in each group."""
    value = question["value"]
    match question["kind"]:
        case "rel_error":
            return f"at most {value:.3g} relative error in each group"
        case "total_error":
            return f"at most {value:.3g} relative error over all groups"
        case "max_params":
            return f"at most {value:,} parameters"
        case _:
            return f"at most {byte_size(value)} in the file"


def verdict(record: dict[str, Any]) -> list[str]:
    """What a person should read first, a sentence each."""
    if all(group["norm"] == 0 for group in record["groups"]):
        return ["All updates are zero: there is nothing to keep."]
    sentences = [_recommendation(record), *_sharing(record), *_other_stackings(record)]
    if not record["met"]:
        sentences.append(
            f"What was asked, {question_text(record['question'])}, cannot be met in "
            f"{record['dtype']}."
        )
    return sentences


def group_advice(group: dict[str, Any]) -> str:
    """One group in a sentence: what sharing costs, what cutting ranks costs, and why."""
    if group["norm"] == 0:
        return "All updates are zero: there is nothing to keep."
    by_format = {candidate["format"]: candidate for candidate in group["candidates"]}
    layers = group["shape"][0]
    parts = []
    if (lotr := by_format.get(LOTR.name)) is not None:
        parts.append(
            f"sharing U and V across {_these(layers)} costs {_ratio(lotr)} the LoRA at "
            f"{_percent(lotr['relative_error'])} error"
        )
    if (cut := by_format.get(TRUNCATED.name)) is not None:
        parts.append(
            f"cutting each layer's rank costs {_ratio(cut)} at {_percent(cut['relative_error'])}"
        )
    if layers > 1:
        parts.append(_subspaces(group))
    if len(group["clusters"]) > 1 and group["clustered_params"] < _least(group):
        parts.append(
            f"apart, in {len(group['clusters'])} sets of layers, they would take "
            f"{times(group['clustered_params'], group['params'])}"
        )
    text = "; ".join(parts) + "."
    return text[0].upper() + text[1:]


def _recommendation(record: dict[str, Any]) -> str:
    before, found = record["params"], record["recommended"]
    forms = {group["recommended"] for group in record["groups"] if group["norm"]}
    loses = f"at {_percent(found['relative_error'])} error, measured"
    nothing = all(map(is_kept, forms))
    if nothing and record["question"]["kind"] in ("max_params", "max_bytes"):
        return f"The LoRA as it is, of {before:,} parameters, has room: nothing need be lost."
    if nothing:
        return (
            f"Nothing compresses: {question_text(record['question'])} needs all "
            f"{before:,} parameters of the LoRA."
        )
    size = (
        f"{times(found['params'], before)} the parameters ({before:,} -> {found['params']:,}) "
        f"{loses}"
    )
    how = _how(record, forms)
    if record["question"]["kind"] in ("max_params", "max_bytes"):
        return f"Best of this size: {how}, {size}."
    if found["params"] > HARDLY * before:
        return f"It hardly compresses: the smallest form, {how}, takes {size}."
    return f"Smallest: {how} takes {size}."


def _how(record: dict[str, Any], forms: set[str]) -> str:
    if len(forms) == 1:
        return phrase_of(*forms)
    counted = []
    for form in FORMS:
        count = sum(group["recommended"] == form for group in record["groups"] if group["norm"])
        if count:
            counted.append(f"{phrase_of(form)} for {count} group{'s' if count > 1 else ''}")
    return ", ".join(counted[:-1]) + f" and {counted[-1]}"


def _sharing(record: dict[str, Any]) -> list[str]:
    """What LoTR for all groups would take, where it is not what is recommended."""
    lotr = [_of_format(group, LOTR.name) for group in record["groups"]]
    if any(c is None for c in lotr) or all(is_pairs(g["recommended"]) for g in record["groups"]):
        return []
    if record["question"]["kind"] not in ("rel_error",):
        return []
    total = sum(candidate["params"] for candidate in lotr if candidate is not None)
    words = f"LoTR for all groups would take {times(total, record['params'])}"
    means = [
        max(group["overlap"]["means"])
        for group in record["groups"]
        if group["shape"][0] > 1 and group["norm"]
    ]
    if means and max(means) < UNSHARED:
        words += ": these layers do not share a subspace"
    elif means and total > record["params"]:
        words += ": these layers share too little"
    return [words + "."]


def _other_stackings(record: dict[str, Any]) -> list[str]:
    measured = [s for s in record["stackings"] if s["params"] is not None]
    chosen = next((s for s in measured if s["chosen"]), None)
    others = [s for s in measured if not s["chosen"]]
    if chosen is None or not others:
        return []
    several = len(record["sources"]) > 1
    by_error = record["question"]["kind"] in ("max_params", "max_bytes")
    if several:
        shown = "; ".join(f"{s['label']} {_stacking_figure(s, record, by_error)}" for s in others)
        own = _stacking_figure(chosen, record, by_error)
        return [f"Best stacked: {chosen['label']}, {own}; {shown}."]
    key = "relative_error" if by_error else "params"
    best = min(others, key=lambda s: s[key])
    if best[key] < HARDLY * chosen[key]:
        figure = _stacking_figure(best, record, by_error)
        return [f"Stacked as {best['label']} it would be {figure}: --group-by {best['name']}."]
    return []


def _stacking_figure(stacking: dict[str, Any], record: dict[str, Any], by_error: bool) -> str:
    if by_error:
        return f"{_percent(stacking['relative_error'])} error"
    return times(stacking["params"], record["params"])


def _of_format(group: dict[str, Any], form: str) -> dict[str, Any] | None:
    return next((c for c in group["candidates"] if c["format"] == form), None)


def _least(group: dict[str, Any]) -> int:
    return min(candidate["params"] for candidate in group["candidates"])


def _subspaces(group: dict[str, Any]) -> str:
    overlap, (left, right) = max(group["overlap"]["means"]), group["overlap"]["means"]
    figures = f"outputs overlap {left:.2g}, inputs {right:.2g}; chance is " + " and ".join(
        f"{value:.1g}" for value in group["overlap"]["chance"]
    )
    if overlap >= SHARED:
        return f"these layers share a subspace ({figures})"
    if overlap < UNSHARED:
        return f"these layers do not share a subspace ({figures})"
    return f"these layers share some directions ({figures})"


def _these(layers: int) -> str:
    return "one layer" if layers == 1 else f"these {layers} layers"


def _ratio(candidate: dict[str, Any]) -> str:
    return "-" if candidate["ratio"] is None else f"{candidate['ratio']:.2f}x"


def _percent(value: float) -> str:
    """An error as a percentage with three digits; small ones as they are."""
    return f"{value * 100:.3g}%" if value >= 1e-4 or value == 0 else error(value)
