"""What PEFT stores in adapter_config.json: for LoTR, and for a form of one's own."""

import functools
from abc import ABC
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any, ClassVar, Self

from peft import LoraConfig, PeftConfig

from lotr_tn.errors import OptionError
from lotr_tn.nn.form import Form
from lotr_tn.nn.forms.tucker2 import Tucker2Form, rank_pair
from lotr_tn.nn.holding import require_dropout
from lotr_tn.nn.planning import Plan

_OF_LORA = {each.name for each in fields(LoraConfig)}
_LIKE = {  # settings of LoRA, and how the names of those like them end
    "lora_alpha": ("alpha",),
    "lora_dropout": ("dropout",),
    "rank_pattern": ("group_ranks", "group_options"),
    "init_lora_weights": ("init",),
}


class Kind(str, Enum):  # noqa: UP042 - PEFT reads the text of its own kind of enumeration
    """The name of a method: PEFT's own list of methods cannot be added to from outside."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """By its text, as the class is made when it is asked for."""
        return kind, (self.value,)


@functools.cache
def kind(name: str) -> Kind:
    """The name of a method as PEFT has it."""
    enumeration: Any = Kind
    return enumeration(f"{name.title()}Type", {name: name})[name]


@dataclass
class AdapterConfig(PeftConfig, ABC):
    """What the configurations of all forms have; `LotrConfig` describes the fields.

    Raises:
        OptionError: a value that makes no sense.
    """

    form: ClassVar[type[Form]]

    def __new__(cls, *args: Any, **given: Any) -> Self:
        """Refuse settings that LoRA alone has; Python's own words would not say what is like it."""
        own = [each.name for each in fields(cls)]
        for name in sorted(given.keys() & _OF_LORA.difference(own)):
            like = next((x for x in own for end in _LIKE.get(name, ()) if x.endswith(end)), None)
            raise OptionError(
                f"{cls.__name__} has no {name}, which is LoRA's; "
                + (f"the setting like it is {like}" if like else "leave it out")
            )
        return super().__new__(cls)

    target_modules: Any = None
    exclude_modules: Any = None
    group_by: Any = "kind"
    use_rslora: bool = False
    init: Any = None
    train: str = "all"
    seed: int = 0
    bias: str = "none"
    modules_to_save: list[str] | None = None
    trainable_token_indices: Any = None
    ensure_weight_tying: bool = False
    layers_to_transform: Any = None
    layers_pattern: Any = None
    groups: dict[str, list[str]] | None = None
    fan_in_fan_out: bool = False
    target_parameters: None = None

    def plan(self) -> Plan:
        """What the adapter is to be, but for what each form calls by its own names."""
        return Plan(
            self.form, {}, group_by=self.group_by, root_scale=self.use_rslora, init=self.init,
            train=self.train, seed=self.seed,
        )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        self._put_in = False  # set once a model has it: until then `groups` are those of a file
        method = self.form.method
        self.peft_type = kind(method.kind)  # pyright: ignore[reportAttributeAccessIssue]
        self.init = self.form.starts[0] if self.init is None else self.init
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if isinstance(value, list | tuple):
                setattr(self, name, set(value))
        self.form.require_trained(self.train)
        require_dropout(self.plan().dropout)
        biases = ("none", "all", f"{method.name}_only")
        if self.bias not in biases:
            raise OptionError(f"bias must be {', '.join(biases)}; found {self.bias!r}")
        if self.target_parameters:
            raise OptionError(
                f"{method.label} adapts modules and no single parameters; name the layers in "
                "target_modules"
            )
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise OptionError(
                "layers_to_transform goes with a list of target_modules; write the numbers into "
                "the regular expression"
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise OptionError("layers_pattern needs layers_to_transform; give both or neither")


@dataclass
class FormConfig(AdapterConfig, ABC):
    """The configuration of a form of one's own: a subclass names the `form`, and is `entered`.

    Attributes:
        options: those of the form.
        group_options: other options for single groups, by name.
        alpha: the update is multiplied by alpha / r, with the form's r; by 1 where left out.
        dropout: the share of the update's input that is dropped while training.
    """

    options: dict[str, Any] = field(default_factory=dict)
    group_options: dict[str, dict[str, Any]] | None = None
    alpha: float | None = None
    dropout: float = 0.0

    def plan(self) -> Plan:
        """What the adapter is to be."""
        return replace(
            super().plan(), options=self.options, group_options=self.group_options or {},
            alpha=self.alpha, dropout=self.dropout,
        )  # fmt: skip


@dataclass
class LotrConfig(AdapterConfig):
    """A LoTR adapter for `peft.get_peft_model`: U and V shared by groups of layers, own cores.

    Attributes:
        r: one rank, or (r1, r2) for the output and the input side.
        target_modules: names, or a regular expression, as in all of PEFT; "all-linear" too.
        exclude_modules: likewise, what is left out.
        group_by: which layers share U and V, as for `lotr_tn.nn.add_lotr`.
        group_ranks: other ranks for single groups, by name.
        lotr_alpha: the update is multiplied by lotr_alpha / r, with r = √(r1 r2); by 1 where left
            out.
        use_rslora: by lotr_alpha / √r instead.
        lotr_dropout: the share of the update's input that is dropped while training.
        init: how training begins, as for `lotr_tn.nn.add_lotr`; or the path of an adapter to
            continue, a LoRA or a LoTR.
        train: "all"; "cores", L·r1·r2 numbers a group; or "factors", U and V alone.
        seed: of the start.
        bias: "none", "all" or "lotr_only", as in LoRA.
        modules_to_save: other modules to train and to save in full.
        trainable_token_indices: tokens whose rows of the embedding are trained, as in LoRA.
        ensure_weight_tying: whether what is tied to an embedding stays tied to it where that is
            trained as one of the two above; a tied embedding that is a target is refused.
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

    form = Tucker2Form

    r: Any = 8
    group_ranks: dict[str, Any] | None = None
    lotr_alpha: float | None = None
    lotr_dropout: float = 0.0

    def plan(self) -> Plan:
        """What the adapter is to be."""
        by_group = {name: {"ranks": pair} for name, pair in (self.group_ranks or {}).items()}
        return replace(
            super().plan(), options={"ranks": self.r}, group_options=by_group,
            alpha=self.lotr_alpha, dropout=self.lotr_dropout,
        )  # fmt: skip

    def __post_init__(self) -> None:
        self.r = _narrowest(self.r)
        self.group_ranks = {k: _narrowest(v) for k, v in (self.group_ranks or {}).items()} or None
        super().__post_init__()


def _narrowest(r: Any) -> int | tuple[int, int]:
    """One number where both ranks are equal, else the pair."""
    r1, r2 = rank_pair(r)
    return r1 if r1 == r2 else (r1, r2)
