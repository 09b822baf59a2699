"""What is asked of an adapter, and where it is worked out: built once, and handed down whole."""

from dataclasses import dataclass

from lotr_tn._arrays import require_dtype
from lotr_tn.adapters.adapter import LoRAGroup
from lotr_tn.adapters.restrictions import Limits
from lotr_tn.adapters.storage import AdapterRule, other_dtypes_for, storage_dtype_for
from lotr_tn.analysis.forms import FormatName, Options, auto_forms, form_named
from lotr_tn.analysis.forms.lotr import DECOMPOSITIONS
from lotr_tn.errors import OptionError, RankError
from lotr_tn.formats import LoRAStack
from lotr_tn.linalg.ranks import FixedRank, RankLimits


@dataclass(frozen=True)
class Asked:
    """What is asked of the groups of an adapter; `convert_adapter` tells what the values mean."""

    rule: AdapterRule  # the ranks, or the error or the size
    form: FormatName = "lotr"  # in which they are stored, or `auto`
    method: str = "hooi"  # how shared factors are found
    group_by: str = "kind"  # which modules are a group
    dtype: str = "auto"  # in which numbers are stored, or `auto`
    limits: Limits = None  # the ranks that may be chosen
    keep: str | None = None  # which modules are kept as they are
    each_layer: bool = False  # whether an error bounds every layer, and not the group alone
    coding: str = "none"  # whether numbers may be stored in bits, where the file is smaller
    beside: tuple[FormatName, ...] = ()  # forms that are looked at beside `form`

    def options(self, own: str) -> Options:
        """How candidates are made, of a LoRA that is stored in the dtype `own`."""
        require_dtype(self.dtype, "auto")
        self._require_ranks()
        if self.method not in DECOMPOSITIONS:
            named = ", ".join(DECOMPOSITIONS)
            raise OptionError(f"method must be one of {named}; found {self.method!r:.60}")
        forms = auto_forms() if self.form == "auto" else (form_named(self.form).name,)
        forms = tuple(dict.fromkeys([*forms, *(form_named(name).name for name in self.beside)]))
        chosen = storage_dtype_for(own, self.rule) if self.dtype == "auto" else self.dtype
        others = other_dtypes_for(own, self.rule) if self.dtype == "auto" else ()
        return Options(
            forms, chosen, self.method, others=others, headers=True, each_layer=self.each_layer
        )

    def _require_ranks(self) -> None:
        """Refuse fixed ranks that keep nothing, or that limits are to bound."""
        if not isinstance(self.rule, FixedRank):
            return
        require_directions(self.rule)
        if self.limits not in (None, RankLimits()):
            raise OptionError(
                "limits bound the ranks that are chosen for an error or a size; with fixed ranks "
                "nothing is chosen: give ranks or limits"
            )


def require_directions(ranks: FixedRank) -> None:
    """Refuse ranks that keep nothing."""
    if 0 in ranks.pair:
        raise RankError(
            "ranks must be at least 1, since rank 0 keeps nothing of the updates; found "
            f"{','.join(map(str, ranks.pair))}"
        )


@dataclass(frozen=True)
class Where:
    """The library that computes, and its device."""

    backend: str = "numpy"
    device: str | None = None

    def stack(self, group: LoRAGroup) -> LoRAStack:
        """The stack of a group, built there."""
        return group.to_stack(self.backend, self.device)
