"""One stack in the smallest form there is, or in one that is asked for."""

from lotr_tn._arguments import door
from lotr_tn.analysis.candidates import Stored, Subject
from lotr_tn.analysis.choice import choose_within
from lotr_tn.analysis.coordinates import coordinates_of
from lotr_tn.analysis.division import choose_point, divide, require_room
from lotr_tn.analysis.forms import FormatName, Options, auto_forms, form_named
from lotr_tn.decompose.guarded import guarded
from lotr_tn.decompose.search import asked_dtype
from lotr_tn.errors import OptionError
from lotr_tn.formats import Stack
from lotr_tn.linalg.ranks import Budget, FixedRank, RankLimits, RankRule, as_rule
from lotr_tn.ops.checks import refuse_gradient
from lotr_tn.ops.conversion import as_lora
from lotr_tn.ops.counts import parameter_count


@door
@guarded
def compress(
    stack: Stack,
    ranks: RankRule | int | tuple[int, int],
    format: FormatName = "auto",
    *,
    dtype: str | None = None,
    limits: RankLimits | None = None,
) -> Stored:
    """A stack in the form that stores least within an error, or loses least within a budget.

    Args:
        stack: any stack (L, m, n).
        ranks: a `RelativeError`, an `Energy` or a `Budget`; or ranks, for one format.
        format: `auto`, the best of all; or one of `truncated` (each layer's rank cut), `lotr`
            (Tucker-2 by HOOI), `shared-in` and `shared-out` (one shared side), `lotr-low-rank`
            (Tucker-2 with low-rank cores), or of those that `auto` does not try: `cp`, `tt`, and
            what was registered.
        dtype: storage dtype of the result; the stack's own where left out.
        limits: the ranks that may be chosen.

    Returns:
        A stack with a certificate: a `LoRAStack`, `Tucker2`, `Tucker1` or `LowRankTucker2`, or in
        the format that was asked for. Where nothing is smaller than the stack as LoRA factors,
        these factors, without a certificate.

    Raises:
        OptionError: `auto` is given fixed ranks, or a budget is too small for one direction.
        RankError: a rule is out of range.
        DerivativeError: torch records the factors.

    Cost: that of the coordinates and curves of `error_surface`, and of one or two decompositions.

    Examples:
        >>> import numpy as np
        >>> from lotr_tn import LoRAStack, RelativeError, parameter_count
        >>> rng = np.random.default_rng(0)
        >>> up = np.tile(rng.standard_normal((30, 2)), 5)  # five layers, one output subspace
        >>> stack = LoRAStack(up, rng.standard_normal((10, 20)), (2,) * 5)
        >>> found = compress(stack, RelativeError(0.01))
        >>> type(found).__name__, found.side, parameter_count(stack), parameter_count(found)
        ('Tucker1', 'out', 500, 260)
    """
    refuse_gradient("compress", stack)
    storage = asked_dtype(stack, dtype)
    rule = as_rule(ranks, storage)
    lora = as_lora(stack)
    formats = auto_forms() if format == "auto" else (form_named(format).name,)
    options = Options(formats, storage, limits=limits or RankLimits())
    if isinstance(rule, FixedRank):
        if format == "auto":
            raise OptionError("auto chooses ranks itself; ask for an error or a budget")
        return form_named(format).at_ranks(lora, rule, options)
    subject = Subject.of(coordinates_of(stack), parameter_count(lora), storage, options)
    if isinstance(rule, Budget):
        division = divide([subject], rule, options)
        require_room(rule, int(division.cost))
        (point,) = division.points
        return choose_point(lora, subject, point, options).stack
    return choose_within(lora, subject, rule, options).stack
