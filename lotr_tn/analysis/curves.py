"""What every form would cost and lose at every size, before anything is converted."""

from collections.abc import Sequence

import numpy as np

from lotr_tn.analysis.coordinates import Coordinates
from lotr_tn.analysis.curve import Curve
from lotr_tn.analysis.forms import FORMS, FormatName, Search
from lotr_tn.linalg.ranks import RankLimits

PAIRS = 24  # pairs of shared ranks tried for low-rank cores, for each guess of terms kept


def curves_of(
    coordinates: Coordinates,
    stored: int,
    formats: Sequence[FormatName] | None = None,
    limits: RankLimits | None = None,
    *,
    pairs: int = PAIRS,
) -> dict[FormatName, Curve]:
    """The curves of some forms, or of all that have one, for one stack, in the order of `FORMS`.

    `stored`, `limits` and `pairs` are those of a `Search`. `truncated`, `shared-in` and
    `shared-out` lose the least that is possible; `lotr` loses what the truncated HOSVD does, at
    most √2 times the least; `lotr-low-rank` is searched over some 50 pairs of shared ranks.
    """
    search = Search(stored, limits or RankLimits(), pairs)
    return {
        name: form.curve(coordinates, search)
        for name, form in FORMS.items()
        if form.curve is not None and (formats is None or name in formats)
    }


def layer_losses(
    coordinates: Coordinates, curve: Curve, place: int, limits: RankLimits
) -> np.ndarray:
    """(L,) squared error of each layer at one point of a curve, as the curve predicts it."""
    losses = FORMS[curve.format].losses
    assert losses is not None  # as every form with a curve has
    return losses(coordinates, curve.settings[place].tolist(), limits)
