"""CP: single directions shared by all layers, with a weight for each layer."""

from lotr_tn.analysis.forms.form import Form, Look, Options
from lotr_tn.decompose.cp import cp
from lotr_tn.formats import CP, LoRAStack
from lotr_tn.linalg.ranks import Energy, FixedRank, RelativeError


def _at_ranks(stack: LoRAStack, ranks: FixedRank, options: Options) -> CP:
    return cp(stack, ranks.r1, dtype=options.dtype)


def _within(stack: LoRAStack, rule: RelativeError | Energy, options: Options) -> CP:
    return cp(stack, rule, dtype=options.dtype)


FORM = Form(
    "cp",
    CP,
    "CP",
    {"a": "out r", "weights": "layer r", "b": "in r"},
    ranks=lambda stack: (stack.rank,),
    at_ranks=_at_ranks,
    takes_cores=True,
    look=Look("#7A4EAB", "#6a3fa0", "#b79ae6", "X", (1, 2)),
    within=_within,
)
