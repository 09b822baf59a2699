"""Many adapters into one bank: joint conversion in bounded memory."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from lotr_tn._arguments import door
from lotr_tn._arrays import require_dtype
from lotr_tn._shown import Shown, lines_of
from lotr_tn.adapters.adapter import Adapter
from lotr_tn.adapters.asked import Asked, require_directions
from lotr_tn.adapters.storage import other_dtypes_for, storage_dtype_for
from lotr_tn.analysis.forms import FormatName, Options, auto_forms, form_named
from lotr_tn.analysis.forms.lotr import DECOMPOSITIONS
from lotr_tn.analysis.requested import require_curves
from lotr_tn.banks.bank import Bank, Stacking
from lotr_tn.banks.file import load_bank, save_bank
from lotr_tn.banks.layout import require_layout
from lotr_tn.banks.making.choosing import sharing
from lotr_tn.banks.making.joint import BankRule, Job
from lotr_tn.banks.making.outcome import StackChoice, bank_of
from lotr_tn.banks.making.stacks import Route
from lotr_tn.banks.making.survey import survey_of
from lotr_tn.conversion.coding import require_codable
from lotr_tn.conversion.convert import Method
from lotr_tn.errors import CheckpointError, OptionError, meant, not_among, printable
from lotr_tn.files.locking import exclusive
from lotr_tn.files.spool import Spool
from lotr_tn.files.writing import refuse_existing
from lotr_tn.linalg.ranks import Budget, FixedRank, RelativeError, TotalError

StackingChoice: TypeAlias = Literal["auto", "adapters", "layers", "all"]
STACKINGS: tuple[Stacking, ...] = ("adapters", "layers", "all")
ROUTES: tuple[Route, ...] = ("auto", "whole", "updated", "sketch", "apart")

NOTHING = 1e-30
"""A relative error that any rounding exceeds."""


@dataclass(frozen=True, eq=False, repr=False)
class BankConversion(Shown):
    """A bank that was made, and what making it cost and lost.

    Attributes:
        bank: the bank, opened from its file.
        bytes_before: of all tensors of all adapters.
        bytes_updates_before: of those of their updates.
        parameters_before: numbers of all LoRAs.
        parameters_after: numbers of all stacks.
        bytes_separate: what each adapter's own ranks, cut at the same error, would take; None
            where it was not computed.
        stackings: the ways of stacking that were compared.
        routes: how each stack was made small.
        met: whether the rule was met.
    """

    bank: Bank
    bytes_before: int
    bytes_updates_before: int
    parameters_before: int
    parameters_after: int
    bytes_separate: int | None
    stackings: tuple[StackChoice, ...]
    routes: Mapping[str, str]
    met: bool

    def __repr__(self) -> str:
        errors, size = self.errors, f"{self.parameters_before:,} -> {self.parameters_after:,}"
        return lines_of(
            f"BankConversion({len(errors)} adapters, {size} parameters)",
            (f"{printable(name)}: relative error {error:.4g}" for name, error in errors.items()),
        )

    @property
    def errors(self) -> dict[str, float]:
        """The relative error of each adapter, measured."""
        return {name: self.bank.figures(name).relative_error for name in self.bank.names}


@door
def make_bank(
    adapters: Mapping[str, Adapter],
    destination: str | Path,
    rule: BankRule,
    *,
    each: bool = True,
    stack: StackingChoice = "auto",
    format: FormatName = "auto",
    method: Method = "hooi",
    group_by: str = "kind",
    cluster: bool = True,
    dtype: str = "auto",
    coding: str = "none",
    route: Route = "auto",
    sketch: int | None = None,
    seed: int = 0,
    any_base: bool = False,
    force: bool = False,
    progress: Callable[[str], None] | None = None,
) -> BankConversion:
    """Convert adapters of one base to a bank: one file, from which each can be taken out.

    Args:
        adapters: by name; each is asked for once and released before the next. They may differ in
            rank, dtype and modules; a module that an adapter does not have is absent.
        destination: the file to write, ending in .safetensors.
        rule: a `RelativeError` of every adapter (of all together with `each=False`, or as a
            `TotalError`), a `Budget` for the whole file (bytes) or for all stacks (parameters), or
            a `FixedRank` for every stack.
        each: whether every adapter counts the same, whatever its norm, and keeps to the error.
            The weights 1 / ‖ΔW‖² are the objective JD-Full of Compress-then-Serve.
        stack: `adapters`: the updates of each module by all adapters are a stack. `layers`: of each
            kind of module, over the layers too. `all`: of each shape. `auto`: what takes least,
            among those whose stacks have at most 1024 rank terms.
        format: `auto`: the smallest for each stack; or one for all, as for `convert_adapter`.
        method: how shared factors are found: `hooi`, `st-hosvd` or `hosvd`.
        group_by: how kinds are told apart; see `group_modules`.
        cluster: whether adapters get bases of their own in several clusters where that takes less
            at the error asked for.
        dtype: storage dtype, or `auto`, as for `convert_adapter`.
        coding: `auto`: stacks are stored in bits where that takes less, as for `convert_adapter`:
            bases that adapters share and their cores, or each layer's own directions, all in
            steps of one size. For an error, or bytes; of stacks that are held whole, and then all
            at once.
        route: how stacks become small: `whole` holds all factors of one stack; `updated` holds
            bases that grow as the error asks; `sketch` holds bases of a given size; `apart` cuts
            stacks into pieces of 512 rank terms; `auto` takes `whole` up to 512 rank terms, else
            `updated`, or `apart` where that shares too little or a format has not both bases.
        sketch: the size for the route `sketch`.
        seed: for the route `sketch`.
        any_base: whether differing names of the base model are let through.
        force: whether an existing file may be replaced.
        progress: called with the name of each adapter read, and of each stack looked at or made.

    Returns:
        The bank and the figures of its making. Errors are measured on what is stored.

    Raises:
        CheckpointError: adapters do not belong to one base, the target exists, or writing failed.
        OptionError: a rule or option makes no sense, or a budget is too small.

    Cost: each adapter is read once. Memory of one adapter, and of one stack: its factors, or
    8·(m + n)·k bytes for bases of k directions with its coordinates. A temporary file beside the
    destination takes as many bytes as all factors.

    Source: Brüel-Gabrielsson et al. (2024), Compress then Serve, arXiv 2407.00066, for JD-Full.
    """
    path = Path(destination)
    _check(rule, stack, format, method, dtype, route, sketch)
    require_codable(Asked(rule, form="auto", dtype=dtype, coding=coding))
    if coding != "none" and (format, route) != ("auto", "auto"):
        raise OptionError(
            "coding chooses between shared bases and each layer's own directions; leave the format "
            "and the route at auto, or the coding at none"
        )
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path} must end in .safetensors, such as name.lotr.safetensors")
    refuse_existing(path, force=force)
    each = each and not isinstance(rule, TotalError)
    if route == "auto" and format not in ("auto", *sharing()):
        route = "apart"
    # whoever else changes a bank that is to be replaced is refused, or refuses this, at once
    with (
        exclusive(path) if path.exists() else nullcontext(path) as target,
        Spool(path.resolve().parent) as spool,
    ):
        survey = survey_of(
            adapters, spool, packs=coding != "none", any_base=any_base, progress=progress
        )
        chosen, others = dtype, ()
        if dtype == "auto":
            chosen = storage_dtype_for(survey.dtype, rule)
            others = other_dtypes_for(survey.dtype, rule)
        forms = auto_forms() if format == "auto" else (format,)
        job = Job(
            survey,
            survey.energies,
            _as_good_as(rule),
            each,
            Options(forms, chosen, method, others=others),
            route,
            (sketch or 0, seed),
            group_by,
            cluster,
            _asked(rule, each)
            | ({} if cluster else {"cluster": False})
            | ({} if coding == "none" else {"coding": coding}),
            progress,
            coding,
        )
        made = job.made(STACKINGS if stack == "auto" else (stack,))
        save_bank(bank_of(survey, made, job.asked), target, force=force)
    bank = load_bank(path)
    return BankConversion(
        bank,
        survey.bytes,
        survey.update_bytes,
        sum(adapter.parameters for adapter in survey.adapters),
        sum(one.numbers for one in made.groups),
        made.bytes_separate,
        made.stackings,
        made.routes,
        _met(rule, each, bank),
    )


def _check(
    rule: BankRule, stack: str, format: str, method: str, dtype: str, route: str, sketch: int | None
) -> None:
    if stack not in ("auto", *STACKINGS):
        names = ", ".join(STACKINGS)
        raise OptionError(f"stack must be auto, {names}; found {stack!r}{meant(stack, STACKINGS)}")
    form = None if format == "auto" else form_named(format)
    if form is not None:
        require_layout(form)
    if route not in ROUTES:
        raise OptionError(not_among("route", route, ROUTES))
    if (route == "sketch") != (sketch is not None):
        raise OptionError(
            "the route sketch, and no other, needs the size of its bases, such as 256"
        )
    if isinstance(rule, FixedRank):
        require_directions(rule)
    if isinstance(rule, FixedRank) and form is not None and form.kept:
        raise OptionError(
            f"format {format} has no ranks to be told; ask for an error or a size, or for "
            "another format"
        )
    if form is not None and form.curve is None and not isinstance(rule, FixedRank):
        require_curves((format,))
    if route in ("updated", "sketch") and format not in ("auto", *sharing()):
        raise OptionError(
            f"the route {route} finds bases of both sides, and so makes {' or '.join(sharing())}; "
            f"for the format {format} choose the route whole or apart"
        )
    if method not in DECOMPOSITIONS:
        raise OptionError(not_among("method", method, [*DECOMPOSITIONS]))
    require_dtype(dtype, "auto")
    if not isinstance(rule, RelativeError | TotalError | FixedRank | Budget):
        raise OptionError(
            f"a bank is asked for an error, a size or ranks; found {type(rule).__name__}"
        )


def _as_good_as(rule: BankRule) -> BankRule:
    """An error of nothing is one that only what is kept as it is keeps to."""
    if isinstance(rule, RelativeError | TotalError):
        return replace(rule, epsilon=max(rule.epsilon, NOTHING))
    return rule


def _asked(rule: BankRule, each: bool) -> dict[str, Any]:
    match rule:
        case RelativeError() | TotalError():
            return {"relative_error": rule.epsilon, "each": each}
        case Budget():
            return {"params": rule.params, "bytes": rule.bytes, "each": each}
        case FixedRank():
            return {"ranks": list(rule.pair), "each": each}


def _met(rule: BankRule, each: bool, bank: Bank) -> bool:
    if not isinstance(rule, RelativeError | TotalError):
        return True
    if each:
        errors = [bank.figures(name).relative_error for name in bank.names]
        return max(errors) <= rule.epsilon
    return bank.relative_error <= rule.epsilon
