"""What a stored form supplies, and the table of all forms, which is open."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, replace
from importlib.metadata import entry_points
from typing import Any, Literal, TypeAlias

import numpy as np

from lotr_tn._arrays import UNIT_ROUNDOFF
from lotr_tn.analysis.coordinates import Coordinates
from lotr_tn.analysis.curve import Curve
from lotr_tn.errors import OptionError, not_among
from lotr_tn.formats import Certificate, LoRAStack
from lotr_tn.linalg.ranks import ITEM_SIZES, Energy, FixedRank, RankLimits, RelativeError

FormatName: TypeAlias = str
"""The name of a stored form, a key of `FORMS`."""

ENTRY_POINTS = "lotr_tn.formats"  # where packages say which of their modules register forms
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
TENSOR_ENTRY = 140  # bytes of a header that a tensor takes, about
RANK_ENTRY = 4  # bytes of a header that a rank takes, about
SIDES: tuple[Literal["out", "in"], ...] = ("out", "in")


@dataclass(frozen=True)
class Look:
    """How a form is drawn, in figures and on the page.

    Attributes:
        colour: in figures, on white.
        light: on the page, on light paper.
        dark: on the page, on dark paper.
        marker: as matplotlib calls it: o, s, ^, v, D, P or X.
        dashes: strokes and gaps of its line, in widths of the line; none for a whole one.
    """

    colour: str = "#8a8a8a"
    light: str = "#00588f"
    dark: str = "#7cc4f4"
    marker: Literal["o", "s", "^", "v", "D", "P", "X", "h"] = "X"
    dashes: tuple[float, ...] = (3, 3)

    def __post_init__(self) -> None:
        for colour in (self.colour, self.light, self.dark):
            if not COLOUR.fullmatch(colour):
                raise OptionError(f"a colour is written as #rrggbb; found {colour!r}")


@dataclass(frozen=True)
class Search:
    """Within what a curve is looked for.

    Attributes:
        stored: numbers that the LoRA as it is stores.
        limits: on all ranks but those of the LoRA as it is.
        pairs: pairs of shared ranks that are tried, for each guess of the terms kept.
    """

    stored: int
    limits: RankLimits
    pairs: int


FORMS: "dict[FormatName, Form]" = {}
"""All forms that are registered, the earlier chosen among equals."""


def auto_forms() -> tuple[FormatName, ...]:
    """The forms among which `auto` chooses: those with a curve."""
    return tuple(name for name, form in FORMS.items() if form.curve is not None)


@dataclass(frozen=True)
class Options:
    """How stacks are made.

    Attributes:
        formats: the forms that may be chosen.
        dtype: in which all but the LoRA as it is are stored.
        others: dtypes that may be taken instead, where the error is kept to in them.
        each_layer: whether an error bounds every layer, and not the stack alone.
        headers: whether what is chosen is written to a file, whose header counts.
        method: how shared factors are found: `hooi`, `st-hosvd` or `hosvd`.
        limits: on the ranks, where a subject is made with these options.
    """

    formats: tuple[FormatName, ...] = field(default_factory=auto_forms)
    dtype: str = "float32"
    method: str = "hooi"
    limits: RankLimits = field(default_factory=RankLimits)
    others: tuple[str, ...] = ()
    headers: bool = False
    each_layer: bool = False

    @property
    def each(self) -> "tuple[Options, ...]":
        """The same for each dtype alone, the narrowest first and of equals the more exact."""
        dtypes = {self.dtype, *self.others}
        order = sorted(dtypes, key=lambda name: (ITEM_SIZES[name], UNIT_ROUNDOFF[name]))
        return tuple(replace(self, dtype=dtype, others=()) for dtype in order)


@dataclass(frozen=True, eq=False)
class Form:
    """One way to store a stack; files, banks, choice, report, figures and page read it here.

    The stack type is a dataclass with a field `certificate`. A form with a `curve` also has
    `losses` and `make`, and is a candidate of `auto`; one without is made when it is asked for.

    Attributes:
        name: in files, on the command line and in JSON: small letters, digits and hyphens.
        stack: the format in memory.
        label: for tables and legends.
        axes: of every array, in the order of the file: `layer` (L), `term` (all rank terms side by
            side), `out` (m), `in` (n), or a name for a rank: `{"u": "out r1", …}`.
        ranks: those that the file's header holds, of a stack.
        at_ranks: makes a stack from a LoRA at given ranks, or the largest that it has; certified.
        shared_ranks: how many of the ranks are of the whole stack, before those of each layer;
            all where left out.
        setting_of: the point of the curve where a stack lies; its ranks where left out.
        built: a stack from its arrays, ranks and certificate; the type is called with the arrays
            where left out.
        arrays: a stack's arrays as a file has them, by the names in `axes`; its fields of these
            names where left out.
        geometry: whole numbers that the file's header holds beside the ranks; `built` is given
            them behind these.
        geometry_numbers: how many these are, about.
        holds: whether a stack of the type is in this form, where several forms have one type.
        kept: whether it is the LoRA as it is, in its modules' own factors.
        pairs: whether it is a Tucker2, whose setting is a pair (r1, r2) of the error surface.
        takes_cores: whether `at_ranks` and `make` also take a LowRankTucker2 for the LoRA, which a
            bank has of a stack that is only known between its bases.
        in_bits: whether its numbers may be stored in bits: they are singular directions.
        phrase: what it is called within a sentence; the label where left out.
        look: how it is drawn.
        within: makes the smallest stack within an error by a search of its own, without limits.
        curve: what the form loses at each size.
        losses: (L,) squared error of each layer at a setting, as the curve predicts it.
        make: makes a stack at a setting; coordinates are asked for where the setting needs them.
        ranks_at: the ranks that a setting stands for; the setting where left out.
        least: the fewest numbers that any method may need within a squared loss; None where
            the curve is what is made.
        lower_bounds: numbers, and squared losses, that no stack of the form undercuts; `curve`
            where the curve is that itself. Where left out, a stated bound leaves the form out.
    """

    name: FormatName
    stack: type[Any]
    label: str
    axes: Mapping[str, str]
    ranks: Callable[[Any], Sequence[int]]
    at_ranks: Callable[[Any, FixedRank, Options], Any]
    shared_ranks: int | None = None
    setting_of: Callable[[Any], tuple[int, ...]] | None = None
    built: Callable[[Mapping[str, Any], Sequence[int], Certificate | None], Any] | None = None
    arrays: Callable[[Any], Mapping[str, Any]] | None = None
    geometry: Callable[[Any], Sequence[int]] = lambda stack: ()
    geometry_numbers: int = 0
    holds: Callable[[Any], bool] = lambda stack: True
    kept: bool = False
    pairs: bool = False
    takes_cores: bool = False
    in_bits: bool = False
    phrase: str = ""
    look: Look = field(default_factory=Look)
    within: Callable[[LoRAStack, RelativeError | Energy, Options], Any] | None = None
    curve: Callable[[Coordinates, Search], Curve] | None = None
    losses: Callable[[Coordinates, Sequence[int], RankLimits], np.ndarray] | None = None
    make: Callable[[Any, Sequence[int], Options, Callable[[], Coordinates]], Any] | None = None
    ranks_at: Callable[[Sequence[int], Coordinates, RankLimits], Sequence[int]] | None = None
    least: Callable[[Coordinates, float, Options], int | None] | None = None
    lower_bounds: (
        Callable[[Coordinates, RankLimits], tuple[np.ndarray, np.ndarray]] | Literal["curve"] | None
    ) = None

    @property
    def fields(self) -> tuple[str, ...]:
        """The tensors of a group in a native file."""
        return tuple(self.axes)

    @property
    def own(self) -> tuple[str, ...]:
        """The tensors that hold each layer's own numbers."""
        return tuple(name for name in self.axes if self.per_layer(name) or self.per_term(name))

    @property
    def shares(self) -> frozenset[str]:
        """The sides, `out` and `in`, whose factor all layers share."""
        own = {*self.own}
        return frozenset(
            side
            for side in SIDES
            for name in self.axes
            if name not in own and side in self.axes_of(name)
        )

    def axes_of(self, name: str) -> tuple[str, ...]:
        """The axes of an array."""
        return tuple(self.axes[name].split())

    def per_layer(self, name: str) -> bool:
        """Whether an array has a row for each layer."""
        return "layer" in self.axes_of(name)

    def per_term(self, name: str) -> bool:
        """Whether an array has a row, or a column, for each rank term of all layers."""
        return "term" in self.axes_of(name)

    def setting(self, stack: Any) -> tuple[int, ...]:
        """The point of the curve where a stack lies."""
        return tuple(self.ranks(stack)) if self.setting_of is None else self.setting_of(stack)

    def stack_of(
        self, arrays: Mapping[str, Any], ranks: Sequence[int], certificate: Certificate | None
    ) -> Any:
        """The stack of some arrays."""
        if self.built is None:
            return self.stack(**arrays, certificate=certificate)
        return self.built(arrays, ranks, certificate)

    def arrays_of(self, stack: Any) -> Mapping[str, Any]:
        """The arrays of a stack, as a file has them."""
        if self.arrays is None:
            return {name: getattr(stack, name) for name in self.fields}
        return self.arrays(stack)

    def split(self, ranks: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ranks of the whole stack, and those of each layer."""
        shared = len(ranks) if self.shared_ranks is None else self.shared_ranks
        return tuple(ranks[:shared]), tuple(ranks[shared:])

    def header(self, layers: int) -> int:
        """Bytes, about, by which a file's header grows with a stack of this form."""
        ranks = 2 if self.shared_ranks is None else self.shared_ranks + layers
        numbers = ranks + self.geometry_numbers
        return TENSOR_ENTRY * len(self.axes) + RANK_ENTRY * numbers

    def width(self, stack: Any, layer: int) -> int:
        """The rank of one layer, at most."""
        shared, each = self.split(tuple(self.ranks(stack)))
        return each[layer] if each else min(shared)

    @property
    def in_a_sentence(self) -> str:
        """What it is called there."""
        return self.phrase or self.label


def register_form(form: Form) -> Form:
    """Add a form to those in which stacks are stored.

    Args:
        form: the form; the format that it stores is registered for the algebra beside.

    Returns:
        The form.

    Raises:
        OptionError: the name is taken by another type or is none, the type cannot be stored, or
            the form has half of what a curve needs.
    """
    if not NAME.fullmatch(form.name):
        raise OptionError(
            f"a form is named in small letters, digits and hyphens, such as tensor-train; found "
            f"{form.name!r}"
        )
    known = FORMS.get(form.name)
    if known is not None and known.stack.__qualname__ != form.stack.__qualname__:
        raise OptionError(f"the name {form.name} is taken, by {known.stack.__qualname__}")
    _require_storable(form)
    if len({form.curve is None, form.losses is None, form.make is None}) > 1:
        raise OptionError(f"the form {form.name} needs curve, losses and make, or none of them")
    FORMS[form.name] = form
    return form


def _require_storable(form: Form) -> None:
    """Refuse a type that could not be written and read back."""
    known: dict[str, Any] = getattr(form.stack, "__dataclass_fields__", {})
    for name in (*form.axes, "certificate"):
        if name not in known:
            raise OptionError(
                f"the form {form.name} needs {form.stack.__qualname__} to be a dataclass with a "
                f"field {name}"
            )
    needed = [
        name
        for name, entry in known.items()
        if entry.init and entry.default is MISSING and entry.default_factory is MISSING
    ]
    left = [name for name in needed if name not in form.axes]
    if left and form.built is None:
        raise OptionError(
            f"the form {form.name} leaves out {', '.join(left)} of {form.stack.__qualname__}: give "
            "their axes, or say how a stack is built"
        )


def form_named(name: FormatName) -> Form:
    """A form by its name; one of an installed package is looked for where it is not known yet.

    Raises:
        OptionError: there is none of that name.
    """
    found = known_form(name)
    if found is not None:
        return found
    raise OptionError(not_among("format", name, ("auto", *FORMS)))


def known_form(name: FormatName) -> Form | None:
    """The same; None where there is none of that name."""
    if name not in FORMS:
        all_forms()
    return FORMS.get(name)


def all_forms() -> tuple[FormatName, ...]:
    """The names of all forms, those of installed packages among them.

    Raises:
        OptionError: what a package registers cannot be loaded.
    """
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            loaded = entry.load()
            if callable(loaded):
                loaded()
        except Exception as error:  # whatever a foreign module does
            whose = entry.dist.name if entry.dist is not None else entry.value
            raise OptionError(
                f"the forms of the package {whose} could not be loaded "
                f"({type(error).__name__}: {error}); mend or uninstall it"
            ) from error
    return tuple(FORMS)


def form_of(stack: Any) -> Form:
    """The form in which a compressed stack is stored.

    Raises:
        OptionError: there is none for its type.
    """
    for form in FORMS.values():
        if form.stack is type(stack) and form.holds(stack):
            return form
    raise OptionError(
        f"{type(stack).__name__} is stored in no form; register one with register_form, or convert "
        "the stack to a format that has one"
    )
