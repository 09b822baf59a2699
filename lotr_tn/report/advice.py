"""What an analysis means, in sentences; every number comes from the record."""

from typing import Any

from lotr_tn.analysis.forms import FORMS, LOTR
from lotr_tn.analysis.forms.truncated import FORM as TRUNCATED
from lotr_tn.report.forms import candidate_of, is_kept, is_pairs, phrase_of
from lotr_tn.report.numbers import byte_size, counted, file_growth, percent, times
from lotr_tn.report.text import ALL_ZERO

SHARED = 0.5  # mean overlap from which layers are said to share a subspace
UNSHARED = 0.1  # mean overlap below which they are said not to
HARDLY = 0.97  # share of the LoRA's parameters above which a form hardly saves anything


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


def verdict_lines(record: dict[str, Any]) -> list[str]:
    """What a person should read first, a sentence each."""
    if all(group["norm"] == 0 for group in record["groups"]):
        return [ALL_ZERO]
    sentences = [_recommendation(record), *_in_bits(record)]
    sentences += [*_sharing(record), *_other_stackings(record)]
    if not record["met"]:
        sentences.append(
            f"What was asked, {question_text(record['question'])}, cannot be met in "
            f"{record['dtype']}."
        )
    return sentences


def group_advice(group: dict[str, Any]) -> str:
    """One group in a sentence: what sharing costs, what cutting ranks costs, and why."""
    if group["norm"] == 0:
        return ALL_ZERO
    layers, member = group["shape"][0], group["member"]
    parts = []
    if lotr := candidate_of(group, LOTR.name):
        these = f"one {member}" if layers == 1 else f"these {layers} {member}s"
        parts.append(
            f"sharing U and V across {these} costs {_size(lotr, group)} the LoRA at "
            f"{percent(lotr['relative_error'])} error"
        )
    if cut := candidate_of(group, TRUNCATED.name):
        loss = percent(cut["relative_error"])
        parts.append(f"cutting each {member}'s rank costs {_size(cut, group)} at {loss}")
    if layers > 1:
        parts.append(_subspaces(group))
    least = min((candidate["params"] for candidate in group["candidates"]), default=0)
    if len(group["clusters"]) > 1 and group["clustered_params"] < least:
        parts.append(
            f"apart, in {len(group['clusters'])} sets of {member}s, they would take "
            f"{times(group['clustered_params'], group['params'])} the parameters"
        )
    text = "; ".join(parts) + "."
    return text[0].upper() + text[1:]


def _size(candidate: dict[str, Any], group: dict[str, Any]) -> str:
    return times(candidate["bytes"], group["bytes"])


def _recommendation(record: dict[str, Any]) -> str:
    found, numbers = record["recommended"], f"{record['params']:,} parameters"
    before, after = record["bytes"], found["update_bytes"]
    forms = {group["recommended"] for group in record["groups"] if group["norm"]}
    of_size = record["question"]["kind"] in ("max_params", "max_bytes")
    if all(map(is_kept, forms)):
        if of_size:
            return f"The LoRA as it is, of {numbers}, has room: nothing need be lost."
        return (
            f"Nothing compresses: {question_text(record['question'])} needs all "
            f"{numbers} of the LoRA."
        )
    if "stacking" in found:
        together = record["question"]["kind"] == "total_error"
        whom = "all together" if together else "the worst adapter"
        sizes = f"{byte_size(found['bytes'])}, its updates {file_growth(before, after)}"
        return f"One bank takes {sizes}, {whom} {_lost(found)}."
    how = _how(record, forms)
    size = _taken(before, found)
    if of_size:
        return f"Best of this size: {how}, {size}."
    if after > HARDLY * before:
        return f"It hardly compresses: the smallest form, {how}, takes {size}."
    which = "Smallest in numbers" if record.get("in_bits") else "Smallest"
    return f"{which}: {how} takes {size}."


def _in_bits(record: dict[str, Any]) -> list[str]:
    """What it takes in bits, where that was asked."""
    if (found := record.get("in_bits")) is None:
        return []
    return [f"In bits it takes {_taken(record['bytes'], found)}."]


def _taken(before: int, found: dict[str, Any]) -> str:
    """What updates of so many bytes take when a file is written, and what that loses."""
    after = found["update_bytes"]
    sizes = f"{byte_size(before)} -> {byte_size(after)}, in a file of {byte_size(found['bytes'])}"
    return f"{times(after, before)} the bytes ({sizes}) {_lost(found)}"


def _lost(found: dict[str, Any]) -> str:
    return f"at {percent(found['relative_error'])} error, measured"


def _how(record: dict[str, Any], forms: set[str]) -> str:
    if len(forms) == 1:
        return phrase_of(*forms)
    parts = []
    for form in FORMS:
        count = sum(group["recommended"] == form for group in record["groups"] if group["norm"])
        if count:
            parts.append(f"{phrase_of(form)} for {counted(count, 'group')}")
    return ", ".join(parts[:-1]) + f" and {parts[-1]}"


def _sharing(record: dict[str, Any]) -> list[str]:
    """What LoTR for all groups would take, where it is not what is recommended."""
    lotr = [c for group in record["groups"] if (c := candidate_of(group, LOTR.name))]
    if len(lotr) < len(record["groups"]) or record["question"]["kind"] != "rel_error":
        return []
    if all(is_pairs(group["recommended"]) for group in record["groups"]):
        return []
    total = sum(candidate["bytes"] for candidate in lotr)
    member = record["groups"][0]["member"]
    words = f"LoTR for all groups would take {times(total, record['bytes'])}"
    means = [
        max(group["overlap"]["means"])
        for group in record["groups"]
        if group["shape"][0] > 1 and group["norm"]
    ]
    if means and max(means) < UNSHARED:
        words += f": these {member}s do not share a subspace"
    elif means and total > record["bytes"]:
        words += f": these {member}s share too little"
    return [words + "."]


def _other_stackings(record: dict[str, Any]) -> list[str]:
    measured = [s for s in record["stackings"] if s["params"] is not None]
    chosen = next((s for s in measured if s["chosen"]), None)
    others = [s for s in measured if not s["chosen"]]
    if chosen is None or not others:
        return []
    by_error = record["question"]["kind"] in ("max_params", "max_bytes")

    def figure(way: dict[str, Any]) -> str:
        if by_error:
            return f"{percent(way['relative_error'])} error"
        if len(record["sources"]) > 1:
            return times(way["params"], record["params"])
        return byte_size(way["bytes"])

    if len(record["sources"]) > 1:
        shown = "; ".join(f"{way['label']} {figure(way)}" for way in others)
        of = "" if by_error else " the parameters"
        return [f"Best stacked: {chosen['label']}, {figure(chosen)}{of}; {shown}."]
    key = "relative_error" if by_error else "bytes"
    best = min(others, key=lambda s: s[key])
    if best[key] >= HARDLY * chosen[key]:
        return []
    return [f"Stacked as {best['label']} it would take {figure(best)}: --group-by {best['name']}."]


def _subspaces(group: dict[str, Any]) -> str:
    (left, right), chance = group["overlap"]["means"], group["overlap"]["chance"]
    what = "share some directions"
    if max(left, right) >= SHARED:
        what = "share a subspace"
    elif max(left, right) < UNSHARED:
        what = "do not share a subspace"
    random = " and ".join(f"{value:.1g}" for value in chance)
    return (
        f"these {group['member']}s {what} (outputs overlap {left:.2g}, inputs {right:.2g}; chance "
        f"is {random})"
    )
