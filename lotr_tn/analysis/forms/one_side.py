"""One side shared by all layers, V or U, and each layer's own factor on the other (Tucker-1)."""

from collections.abc import Sequence

import numpy as np

from lotr_tn.analysis.coordinates import Coordinates
from lotr_tn.analysis.curve import Curve, front_of
from lotr_tn.analysis.forms.form import Form, Look, Options, Search
from lotr_tn.decompose.tucker1 import tucker1
from lotr_tn.formats import LoRAStack, SharedSide, Tucker1
from lotr_tn.linalg.ranks import FixedRank, RankLimits, tail_energies


def _form(name: str, side: SharedSide, label: str, phrase: str, look: Look) -> Form:
    inside = side == "in"

    def curve(coordinates: Coordinates, search: Search) -> Curve:
        """What cutting the shared side loses, the least that is possible."""
        layers, m, n = coordinates.shape
        tails = tail_energies(coordinates.right_sigma if inside else coordinates.left_sigma)
        least, most = search.limits.bounds(len(tails) - 1)
        ranks = np.arange(least, most + 1)
        cost = n + layers * m if inside else m + layers * n
        return front_of(name, ranks * cost, tails[least : most + 1], ranks[:, None])

    def losses(coordinates: Coordinates, setting: Sequence[int], limits: RankLimits) -> np.ndarray:
        full = coordinates.left.shape[0], coordinates.right.shape[0]
        pair = (full[0], setting[0]) if inside else (setting[0], full[1])
        return coordinates.layer_lost([pair])[0]

    def at_ranks(stack: LoRAStack, ranks: FixedRank, options: Options) -> Tucker1:
        return tucker1(stack, ranks, side, dtype=options.dtype)

    return Form(
        name,
        Tucker1,
        label,
        {"shared": "in r2", "own": "layer out r2"}
        if inside
        else {"shared": "out r1", "own": "layer in r1"},
        ranks=lambda stack: (stack.rank,),
        at_ranks=at_ranks,
        built=lambda arrays, ranks, certificate: Tucker1(
            **arrays, side=side, certificate=certificate
        ),
        holds=lambda stack: stack.side == side,
        phrase=phrase,
        look=look,
        curve=curve,
        losses=losses,
        make=lambda stack, setting, options, coordinates: at_ranks(
            stack, FixedRank(setting[0]), options
        ),
        lower_bounds="curve",
    )


IN = _form(
    "shared-in",
    "in",
    "V shared",
    "one shared V",
    Look("#009E73", "#00795a", "#2fc49a", "^", (5, 1.5, 1, 1.5)),
)
OUT = _form(
    "shared-out",
    "out",
    "U shared",
    "one shared U",
    Look("#CC79A7", "#a84a83", "#dd92bf", "v", (2, 1)),
)
