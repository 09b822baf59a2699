"""What PEFT stores in adapter_config.json for LoTR."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from peft import PeftConfig

from lotr_tn.errors import OptionError
from lotr_tn.nn.grouping import rank_pair
from lotr_tn.nn.layer import require_dropout, require_trained

__all__ = ["LotrConfig", "LotrType"]

BIASES = ("none", "all", "lotr_only")


class LotrType(str, Enum):  # noqa: UP042 - PEFT reads the text of its own kind of enumeration
    """The name of the method: PEFT's own list of methods cannot be added to from outside."""

    LOTR = "LOTR"


@dataclass
class LotrConfig(PeftConfig):
    """A LoTR adapter for `peft.get_peft_model`: U and V shared by groups of layers, own cores.

    Attributes:
        r: one rank, or (r1, r2) for the output and the input side.
        target_modules: names, or a regular expression, as in all of PEFT; "all-linear" too.
        exclude_modules: likewise, what is left out.
        group_by: which layers share U and V. "kind": those that differ by block indices only.
            "shape": those of one size, such as queries and values. A regular expression, as for
            `lotr_tn.group_modules`. Or the layers of each group by its name.
        group_ranks: other ranks for single groups, by name.
        lotr_alpha: the update is multiplied by lotr_alpha / r, with r = √(r1 r2); by 1 where left
            out.
        use_rslora: by lotr_alpha / √r instead.
        lotr_dropout: the share of the update's input that is dropped while training.
        init: how training begins, as for `lotr_tn.nn.add_lotr`: "balanced", "orthonormal",
            "equalised", "reference", "zero-u", "weights", "principal"; or the path of an adapter to
            continue, a LoRA or a LoTR.
        train: "all"; "cores", L·r1·r2 numbers a group; or "factors", U and V alone.
        seed: of the start.
        bias: "none", "all" or "lotr_only", as in LoRA.
        modules_to_save: other modules to train and to save in full.
        layers_to_transform: only layers of these numbers.
        layers_pattern: the name before the number, where it is an unusual one.
        groups: the layers of each group by path, in stack order. PEFT fills it in: it makes a file
            complete in itself.
        fan_in_fan_out: whether layers store (in, out). It is found out and filled in.
        target_parameters: not supported; PEFT asks for the name.

    Raises:
        OptionError: a value that makes no sense.
        RankError: r is neither a number nor a pair.

    Examples:
        >>> config = LotrConfig(r=(8, 4), target_modules=["q_proj", "v_proj"], group_by="shape")
        >>> config.r, config.peft_type.value
        ((8, 4), 'LOTR')
    """

    r: Any = field(default=8)
    target_modules: Any = field(default=None)
    exclude_modules: Any = field(default=None)
    group_by: Any = field(default="kind")
    group_ranks: dict[str, Any] | None = field(default=None)
    lotr_alpha: float | None = field(default=None)
    use_rslora: bool = field(default=False)
    lotr_dropout: float = field(default=0.0)
    init: str = field(default="balanced")
    train: str = field(default="all")
    seed: int = field(default=0)
    bias: str = field(default="none")
    modules_to_save: list[str] | None = field(default=None)
    layers_to_transform: Any = field(default=None)
    layers_pattern: Any = field(default=None)
    groups: dict[str, list[str]] | None = field(default=None)
    fan_in_fan_out: bool = field(default=False)
    target_parameters: None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._put_in = False  # set once a model has it: until then `groups` are those of a file
        self.peft_type = LotrType.LOTR  # pyright: ignore[reportAttributeAccessIssue]
        self.r = _narrowest(self.r)
        self.group_ranks = {k: _narrowest(v) for k, v in (self.group_ranks or {}).items()} or None
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if isinstance(value, list | tuple):
                setattr(self, name, set(value))
        require_trained(self.train)
        require_dropout(self.lotr_dropout)
        if self.bias not in BIASES:
            raise OptionError(f"bias must be {', '.join(BIASES)}; found {self.bias!r}")
        if self.target_parameters:
            raise OptionError(
                "LoTR adapts modules and no single parameters; name the layers in target_modules"
            )
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise OptionError(
                "layers_to_transform goes with a list of target_modules; write the numbers into "
                "the regular expression"
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise OptionError("layers_pattern needs layers_to_transform; give both or neither")


def _narrowest(r: Any) -> int | tuple[int, int]:
    """One number where both ranks are equal, else the pair."""
    r1, r2 = rank_pair(r)
    return r1 if r1 == r2 else (r1, r2)
