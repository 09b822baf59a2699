"""Forms without a curve, which are made when they are asked for."""

from collections.abc import Iterable

from lotr_tn._arrays import UNIT_ROUNDOFF
from lotr_tn.analysis.forms import FORMS, Form, FormatName, Options
from lotr_tn.errors import OptionError
from lotr_tn.formats import LoRAStack
from lotr_tn.linalg.ranks import Energy, FixedRank, RankLimits, RelativeError


def made_within(stack: LoRAStack, form: Form, rule: RelativeError | Energy, options: Options):
    """The stack in a form within an error, as stored, by the form's own search or by its rank.

    The rank is doubled until the error is met, then halved in between; the largest where none does.
    """
    if form.within is not None and options.limits == RankLimits():
        return form.within(stack, rule, options)
    least, most = options.limits.bounds(sum(stack.ranks))
    allowed = rule.epsilon or 16 * UNIT_ROUNDOFF[options.dtype]
    low, rank = least, max(least, min(1, most))
    made = form.at_ranks(stack, FixedRank(rank), options)
    while made.certificate.relative_error > allowed and rank < most:
        low, rank = rank, min(2 * rank, most)
        made = form.at_ranks(stack, FixedRank(rank), options)
    while rank - low > 1 and made.certificate.relative_error <= allowed:
        middle = (low + rank) // 2
        smaller = form.at_ranks(stack, FixedRank(middle), options)
        if smaller.certificate.relative_error <= allowed:
            rank, made = middle, smaller
        else:
            low = middle
    return made


def require_curves(formats: Iterable[FormatName]) -> None:
    """Refuse forms without a curve where a size or an error is divided by curves."""
    for name in formats:
        if FORMS[name].curve is None:
            raise OptionError(
                f"nothing says what the form {name} would lose at each size, so no size and no "
                "error is divided with it; ask for ranks, or for an error in each group "
                "(RelativeError)"
            )
