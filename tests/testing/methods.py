"""Every function of the package that cuts ranks, with what it takes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from hypothesis import strategies as st

import lotr_tn as lt
from lotr_tn.testing import strategies

one_rank = st.integers(1, 5)
ranks = strategies.ranks()


@dataclass(frozen=True)
class Method:
    """A function of a stack and ranks, and strategies for both."""

    call: Callable[..., Any]
    stacks: Callable[..., st.SearchStrategy]
    ranks: st.SearchStrategy
    alternates: bool = False  # it stops when a sweep gains little: then neither is exact


METHODS = {
    "hosvd": Method(lt.hosvd, strategies.stacks, ranks),
    "st_hosvd": Method(lt.st_hosvd, strategies.stacks, ranks),
    "hooi": Method(lt.hooi, strategies.stacks, ranks, alternates=True),
    "round LoRAStack": Method(lt.round, strategies.lora_stacks, one_rank),
    "round Tucker2": Method(lt.round, strategies.tucker2s, ranks),
    "round LowRankTucker2": Method(lt.round, strategies.low_rank_tucker2s, one_rank),
    "round Tucker1": Method(lt.round, strategies.tucker1s, one_rank),
    "round Dense": Method(lt.round, strategies.dense_stacks, one_rank),
    "tucker1 in": Method(partial(lt.tucker1, side="in"), strategies.stacks, one_rank),
    "tucker1 out": Method(partial(lt.tucker1, side="out"), strategies.stacks, one_rank),
}
