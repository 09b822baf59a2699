"""The record of an analysis, for `--json`, the tables, the plots and the page."""

from typing import Any

import numpy as np

from lotr_tn.adapters.question import Rule
from lotr_tn.analysis.break_even import break_even_layers
from lotr_tn.analysis.candidates import Candidate, joint_error
from lotr_tn.analysis.curve import Curve, best_point
from lotr_tn.analysis.error_surface import surface_of
from lotr_tn.analysis.forms import FORMS, LORA, LOTR
from lotr_tn.analysis.spectra import Spectra
from lotr_tn.inspection.analysis import Analysis, GroupAnalysis, StackingCost
from lotr_tn.inspection.bits import BitsCurve
from lotr_tn.linalg.ranks import Budget, Energy, RelativeError, TotalError
from lotr_tn.report.advice import group_advice, verdict_lines
from lotr_tn.report.forms import is_pairs, label_of
from lotr_tn.report.numbers import rank_range
from lotr_tn.report.text import ranks_text

ERRORS = (0.3, 0.1, 0.05, 0.01)  # errors at which every group says what each format would store
FRONT_POINTS = 64
CURVE_POINTS = 200
SURFACE_RANKS = 97
MEMBERS = {"adapters": "adapter", "adapters-layers": "update"}  # of stacks by ways of stacking
BEYOND = 2.5  # how far beyond the LoRA's own size the LoTR front is listed


def analysis_record(analysis: Analysis, *, surfaces: bool = False) -> dict[str, Any]:
    """What `lotr analyze --json` prints; with `surfaces`, what its page needs beside."""
    groups = [_group(group, analysis) for group in analysis.groups]
    for group, curve in zip(groups, _bits_curves(analysis)[1:], strict=False):
        group["in_bits"] = _bits_curve(curve)
    unit = "relative error" if isinstance(analysis.question, Budget) else "bytes"
    record: dict[str, Any] = {
        "sources": list(analysis.sources),
        "lotr_sources": list(analysis.lotr_sources),
        "base_model": analysis.base_model,
        "dtype": analysis.dtype,
        "question": question_record(analysis.question),
        "met": analysis.met,
        "verdict": [],
        "params": analysis.parameters,
        "bytes": analysis.bytes,
        "recommended": _recommended(analysis),
        "in_bits": _in_bits(analysis),
        "bound": analysis.bound,
        "bound_unit": None if analysis.bound is None else unit,
        "bound_forms": list(analysis.bound_forms),
        "seconds": analysis.seconds,
        "groups": groups,
        "stackings": [_stacking(cost) for cost in analysis.stackings],
        "budgets": [_budget(candidates, analysis) for candidates in analysis.path],
    }
    record["verdict"] = verdict_lines(record)
    return with_surfaces(record, analysis) if surfaces else record


def _in_bits(analysis: Analysis) -> dict[str, Any] | None:
    """What it takes in bits, at what was asked and at other errors."""
    if (found := analysis.in_bits) is None:
        return None
    kept = ("bytes", "update_bytes", "relative_error")
    curves = _bits_curves(analysis)
    return {key: getattr(found, key) for key in kept} | {
        "curve": _bits_curve(curves[0]) if curves else None,
        "within": {f"{bound:g}": _bits_at(analysis, bound) for bound in ERRORS} if curves else {},
    }


def _bits_curves(analysis: Analysis) -> tuple[BitsCurve, ...]:
    """Of all updates, and of each group; none where bits were not asked for."""
    return (analysis.in_bits and analysis.in_bits.curves) or ()


def _bits_curve(curve: BitsCurve) -> dict[str, Any]:
    return {key: found.tolist() for key, found in vars(curve).items()}


def _bits_at(analysis: Analysis, error: float) -> dict[str, float] | None:
    """About the bytes of all updates in bits at an error, and a Gaussian's; None where unknown."""
    curves = _bits_curves(analysis)
    found = curves[0].at(error) if curves else None
    return None if found is None else {"bytes": round(found[0]), "rate": round(found[1])}


def _recommended(analysis: Analysis) -> dict[str, Any]:
    """What is written when it is followed: of several adapters and an error, a bank."""
    if (bank := analysis.bank) is not None:
        return {
            "params": bank.parameters,
            "bytes": bank.bytes,
            "update_bytes": bank.update_bytes,
            "relative_error": bank.relative_error,
            "stacking": bank.stacking,
        }
    return {
        "params": sum(group.choice.candidate.parameters for group in analysis.groups),
        "bytes": analysis.written,
        "update_bytes": sum(group.choice.candidate.bytes for group in analysis.groups),
        "relative_error": analysis.relative_error,
    }


def with_surfaces(record: dict[str, Any], analysis: Analysis) -> dict[str, Any]:
    """A record with what its page needs beside: errors at up to 97 x 97 pairs of ranks a group."""
    pairs = zip(record["groups"], analysis.groups, strict=True)
    return record | {"groups": [one | {"surface": _surface(group)} for one, group in pairs]}


def question_record(question: Rule) -> dict[str, Any]:
    """A question as its kind and its value."""
    match question:
        case Budget():
            kind = "max_bytes" if question.params is None else "max_params"
            return {"kind": kind, "value": question.size}
        case TotalError():
            return {"kind": "total_error", "value": question.epsilon}
        case RelativeError() | Energy():
            return {"kind": "rel_error", "value": question.epsilon}


def _stacking(cost: StackingCost) -> dict[str, Any]:
    same = ("bytes", "relative_error", "stacks", "chosen", "note")
    named = {"name": cost.stacking, "label": cost.label, "params": cost.parameters}
    return named | {key: getattr(cost, key) for key in same}


def _budget(candidates: tuple[Candidate, ...], analysis: Analysis) -> dict[str, Any]:
    error = joint_error(candidates, [group.subject for group in analysis.groups])
    return {
        "params": sum(candidate.parameters for candidate in candidates),
        "bytes": sum(candidate.bytes for candidate in candidates),
        "relative_error": error,
        "in_bits": _bits_at(analysis, error),
        "groups": [
            {
                "format": candidate.format,
                "ranks": _ranks_text(candidate, group),
                "params": candidate.parameters,
                "relative_error": candidate.relative_error,
            }
            for candidate, group in zip(candidates, analysis.groups, strict=True)
        ],
    }


def _group(group: GroupAnalysis, analysis: Analysis) -> dict[str, Any]:
    coordinates, subject = group.subject.coordinates, group.subject
    order = list(group.stacked.order)
    targets = [group.stacked.group.targets[i] for i in order]
    spectra = Spectra(coordinates.left_sigma, coordinates.right_sigma, coordinates.layer_values)
    record: dict[str, Any] = {
        "name": group.stacked.name,
        "modules": [target.name for target in targets],
        "labels": [group.stacked.labels[i] for i in order],
        "shape": list(group.shape),
        "member": _member(analysis),
        "layer_ranks": [target.rank for target in targets],
        "params": subject.stored,
        "bytes": subject.bytes_of(LORA.name, subject.stored, analysis.dtype),
        "norm": coordinates.energy**0.5,
        "spectra": {
            "left": spectra.left.tolist(),
            "right": spectra.right.tolist(),
            "layers": [spectra.layers[i].tolist() for i in order],
        },
        "stable_ranks": list(spectra.stable_ranks),
        "numerical_ranks": list(spectra.numerical_ranks),
        "candidates": [_candidate(candidate, group) for candidate in group.choice.all],
        "recommended": group.choice.candidate.format,
        "front": _front(group),
        "curves": [_curve(curve, coordinates.energy) for curve in subject.curves.values()],
        "overlap": {
            "left": group.overlaps.left[np.ix_(order, order)].tolist(),
            "right": group.overlaps.right[np.ix_(order, order)].tolist(),
            "chance": list(group.overlaps.chance),
            "means": list(group.overlaps.means),
        },
        "clusters": [
            {
                "layers": sorted(order.index(layer) for layer in cluster.layers),
                "format": cluster.format,
                "params": cluster.parameters,
            }
            for cluster in group.clustering.clusters
        ],
        "clustered_params": group.clustering.parameters,
        "clustered_error": group.clustering.relative_error,
        "params_within": {
            curve.format: _params_within(curve, coordinates.energy)
            for curve in subject.curves.values()
        },
        "break_even_layers": _break_even(group),
    }
    record["advice"] = group_advice(record)
    return record


def _member(analysis: Analysis) -> str:
    """What one slice of a stack is called: a layer, or where adapters are stacked, an adapter."""
    chosen = next((cost.stacking for cost in analysis.stackings if cost.chosen), "")
    return MEMBERS.get(chosen, "layer")


def _candidate(candidate: Candidate, group: GroupAnalysis) -> dict[str, Any]:
    stored = group.subject.stored
    return {
        "format": candidate.format,
        "label": label_of(candidate.format),
        "params": candidate.parameters,
        "bytes": candidate.bytes,
        "ratio": candidate.parameters / stored if stored else None,
        "relative_error": candidate.relative_error,
        "ranks": _ranks_text(candidate, group),
        "measured": candidate.measured,
        "least_params": candidate.least,
    }


def _ranks_text(candidate: Candidate, group: GroupAnalysis) -> str:
    """Ranks as a reader wants them: 8, or 2-7; r1, r2; with low-rank cores how many terms."""
    form, subject = FORMS[candidate.format], group.subject
    if form.kept:
        return rank_range(target.rank for target in group.stacked.group.targets)
    if candidate is group.choice.candidate:
        return ranks_text(form.name, list(form.ranks(group.choice.stack)))
    ranks = candidate.setting
    if form.ranks_at is not None and not candidate.measured:
        ranks = form.ranks_at(ranks, subject.coordinates, subject.limits)
    return ranks_text(form.name, list(ranks))


def _front(group: GroupAnalysis) -> list[dict[str, Any]]:
    """The LoTR that answers, and points of its front evenly spread up to some times the LoRA."""
    coordinates, curve = group.subject.coordinates, group.subject.curves[LOTR.name]
    energy = coordinates.energy
    within = np.flatnonzero(curve.parameters <= max(BEYOND * group.subject.stored, 1))
    if energy == 0 or not within.size:
        return []
    asked = [c.parameters for c in group.choice.all if is_pairs(c.format)]
    even = np.linspace(0, float(curve.parameters[within[-1]]), FRONT_POINTS)
    wanted = np.concatenate([even, asked])
    places = np.unique(np.searchsorted(curve.parameters[within], wanted).clip(max=within.size - 1))
    pairs = [(int(r1), int(r2)) for r1, r2 in curve.settings[places]]
    return [
        {
            "r1": r1,
            "r2": r2,
            "params": int(curve.parameters[place]),
            "relative_error": float((curve.lost[place] / energy) ** 0.5),
            "lower_bound": float((coordinates.lower[r1, r2] / energy) ** 0.5),
            "layer_errors": errors,
        }
        for place, (r1, r2), errors in zip(places, pairs, _layer_errors(group, pairs), strict=True)
    ]


def _layer_errors(group: GroupAnalysis, pairs: list[tuple[int, int]]) -> list[list[float | None]]:
    """The relative error of each layer at each pair; None for a layer that is zero."""
    order = list(group.stacked.order)
    sizes = group.subject.coordinates.layer_energies[order]
    lost = group.subject.coordinates.layer_lost(pairs)[:, order]
    return [
        [float((one / size) ** 0.5) if size else None for one, size in zip(row, sizes, strict=True)]
        for row in lost
    ]


def _curve(curve: Curve, energy: float) -> dict[str, Any]:
    count = len(curve.parameters)
    places = np.unique(np.linspace(0, count - 1, min(count, CURVE_POINTS)).round().astype(int))
    errors = np.sqrt(curve.lost[places] / energy) if energy else np.zeros(len(places))
    return {
        "format": curve.format,
        "params": curve.parameters[places].tolist(),
        "relative_error": errors.tolist(),
    }


def _params_within(curve: Curve, energy: float) -> dict[str, int | None]:
    """The fewest parameters of a format within some errors, by the error; None where none is."""
    places = {f"{bound:g}": best_point(curve, bound**2 * energy) for bound in ERRORS}
    return {k: None if at is None else int(curve.parameters[at]) for k, at in places.items()}


def _surface(group: GroupAnalysis) -> dict[str, Any]:
    surface = surface_of(group.subject.coordinates)
    r1, r2 = (_listed_ranks(size - 1) for size in surface.errors.shape)
    grid = np.ix_(r1, r2)
    return {
        "r1": r1.tolist(),
        "r2": r2.tolist(),
        "errors": surface.errors[grid].tolist(),
        "lower": surface.lower[grid].tolist(),
    }


def _listed_ranks(most: int) -> np.ndarray:
    """All ranks where they are few, else all small ones and larger ones ever wider apart."""
    if most < SURFACE_RANKS:
        return np.arange(most + 1)
    small = SURFACE_RANKS // 2
    wide = np.geomspace(small, most, SURFACE_RANKS - small).round().astype(int)
    return np.unique(np.concatenate([np.arange(small), wide]))


def _break_even(group: GroupAnalysis) -> int | None:
    """Layers from which the LoTR found would store less than the LoRA, of its mean rank."""
    found = next((c for c in group.choice.all if is_pairs(c.format)), None)
    if found is None or not all(found.setting):
        return None
    layers, m, n = group.shape
    rank = round(sum(target.rank for target in group.stacked.group.targets) / layers)
    return break_even_layers(m, n, max(rank, 1), found.setting[0], found.setting[1])
