"""Architectures as lists of linear modules: from a shipped table, a config, or bare shapes."""

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, final

from lotr_tn._arguments import door
from lotr_tn.catalogue.expressions import regular_expression
from lotr_tn.catalogue.grouping import kind_of
from lotr_tn.catalogue.text_models import described
from lotr_tn.errors import OptionError


@final
@dataclass(frozen=True)
class ModuleShape:
    """One linear module: y = x Wᵀ with W of shape (m, n).

    Attributes:
        name: its path in the model, such as `model.layers.0.self_attn.q_proj`.
        m: outputs.
        n: inputs.
        expert: whether it is one expert's matrix in a parameter that holds those of all; its name
            is then the parameter's with the expert's number.

    Raises:
        OptionError: m or n is below 1.
    """

    name: str
    m: int
    n: int
    expert: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        if min(self.m, self.n) < 1:
            raise OptionError(
                f"{self.name} must have at least 1 output and 1 input; found {self.m}x{self.n}"
            )

    @property
    def kind(self) -> str:
        """The path without its block numbers."""
        return kind_of(self.name)

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.m, self.n

    @property
    def path(self) -> str:
        """What targets are compared with: the module, or the parameter of all experts."""
        return self.name.rpartition(".")[0] if self.expert else self.name


@final
@dataclass(frozen=True)
class Architecture:
    """The linear modules of a model that adapters may change, block by block.

    Attributes:
        name: what to call it.
        modules: the modules; embeddings, poolers and heads are not among them.
        default_targets: names of the modules that hold attention queries and values; empty where
            that is not known, which means all.

    Raises:
        OptionError: there is no module, or two have one name.
    """

    name: str
    modules: tuple[ModuleShape, ...]
    default_targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.modules:
            raise OptionError(f"{self.name} has no linear module; needed at least one")
        if len({module.name for module in self.modules}) < len(self.modules):
            raise OptionError(f"two modules of {self.name} have one name; each needs its own")

    def __repr__(self) -> str:
        return f"Architecture({self.name!r}, {len(self.modules)} modules, {self.parameters:,})"

    @property
    def parameters(self) -> int:
        """The number of entries of all weights, without biases."""
        return sum(module.m * module.n for module in self.modules)

    def select(self, targets: str | Iterable[str] | None = None) -> tuple[ModuleShape, ...]:
        """The modules that an adapter changes, by the rules of PEFT's `target_modules`.

        Args:
            targets: names: a module is chosen when its path is one of them or ends in one, after a
                dot. One string is a regular expression that the whole path has to match, and
                `all-linear` chooses every module. None chooses `default_targets`. Experts that
                one parameter holds are chosen by the parameter's path, as by PEFT's
                `target_parameters`; `all-linear` leaves them out.

        Raises:
            OptionError: a target matches nothing, or the regular expression is not valid.

        Examples:
            >>> model = architecture("roberta-base")
            >>> [len(model.select(targets)) for targets in (None, ["dense"], r".*[.]1[.].*")]
            [24, 36, 6]
        """
        if targets is None:
            targets = self.default_targets or "all-linear"
        if targets == "all-linear":
            return tuple(module for module in self.modules if not module.expert)
        if isinstance(targets, str):
            return self._matching(targets)
        targets = tuple(targets)
        for target in targets or ("",):
            if not any(_ends_in(module.path, target) for module in self.modules):
                raise self._no_match(f"target {target!r}")
        return tuple(m for m in self.modules if any(_ends_in(m.path, t) for t in targets))

    def _matching(self, expression: str) -> tuple[ModuleShape, ...]:
        pattern = regular_expression(
            expression, "a target is a regular expression, or names in a list"
        )
        chosen = tuple(module for module in self.modules if pattern.fullmatch(module.path))
        if not chosen:
            raise self._no_match(
                f"the regular expression {expression!r}, which has to match whole paths such as "
                f"{self.modules[0].name},"
            )
        return chosen

    def _no_match(self, what: str) -> OptionError:
        ends = dict.fromkeys(module.path.rpartition(".")[2] for module in self.modules)
        return OptionError(
            f"{what} matches no module of {self.name}; its modules end in {', '.join(ends)}"
        )


def _ends_in(path: str, target: str) -> bool:
    return path == target or path.endswith("." + target)


@cache
def _table() -> dict[str, dict[str, Any]]:
    return json.loads(files("lotr_tn.analysis").joinpath("architectures.json").read_text("utf-8"))


def known_architectures() -> tuple[str, ...]:
    """The names that `architecture` takes."""
    return tuple(_table())


@door
def architecture(name: str) -> Architecture:
    """A well-known model, by its name, without its files.

    Args:
        name: such as `roberta-base` or `llama-2-7b`; a Hub's `owner/` and capitals do not matter.

    Returns:
        Its linear modules, with the paths of the transformers model.

    Raises:
        OptionError: the name is not in the table.

    Examples:
        >>> architecture("llama-2-7b")
        Architecture('llama-2-7b', 224 modules, 6,476,005,376)
    """
    plain = name.rpartition("/")[2].lower().removesuffix("-hf")
    if plain not in _table():
        near = difflib.get_close_matches(plain, _table(), n=3) or list(_table())[:3]
        raise OptionError(
            f"no model {name!r} in the table; near it are {', '.join(near)}; any other model can "
            "be given by architecture_from_config or architecture_from_shapes"
        )
    return architecture_from_config(_table()[plain], plain)


@door
def architecture_from_config(config: Mapping[str, Any], name: str | None = None) -> Architecture:
    """The model that a transformers `config.json` describes.

    Args:
        config: the contents of the file.
        name: what to call it; the config's model_type where left out.

    Returns:
        Its linear modules, with the paths of the transformers model. Of a model that also sees or
        hears it is the text model, which the name says; towers and projectors are not counted.

    Raises:
        UnsupportedError: the model_type is not known here.
        CheckpointError: a size is missing, or no whole number.

    Examples:
        >>> config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2}
        >>> config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
        >>> architecture_from_config(config).modules[1]
        ModuleShape(name='model.layers.0.self_attn.k_proj', m=32, n=64)
    """
    found = described(config)
    modules = tuple(ModuleShape(*module) for module in found.modules)
    label = name or str(config["model_type"])
    return Architecture(f"{label} (text model)" if found.nested else label, modules, found.targets)


@door
def architecture_from_shapes(shapes: Iterable[str]) -> Architecture:
    """Any model, from the shapes of its modules.

    Args:
        shapes: NAME=COUNTxOUTxIN or COUNTxOUTxIN each: COUNT modules of OUT outputs and IN inputs.
            A name is the end of their paths.

    Returns:
        The modules, as `layers.0.NAME`, `layers.1.NAME`, …; all of them are targets.

    Raises:
        OptionError: a shape is written otherwise, or has the name of another one.

    Examples:
        >>> architecture_from_shapes(["q_proj=32x4096x4096", "v_proj=32x1024x4096"])
        Architecture('q_proj=32x4096x4096, v_proj=32x1024x4096', 64 modules, 671,088,640)
    """
    shapes = tuple(shapes)
    stacks: dict[str, tuple[int, int, int]] = {}
    for text in shapes:
        match = re.fullmatch(r"(?:([A-Za-z_][\w.-]*)=)?([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", text)
        if match is None:
            raise OptionError(
                f"a shape is NAME=COUNTxOUTxIN or COUNTxOUTxIN, such as q_proj=32x4096x4096; "
                f"found {text!r}"
            )
        count, m, n = (int(match[group]) for group in (2, 3, 4))
        name = match[1] or f"{m}x{n}"
        if name in stacks:
            raise OptionError(
                f"two shapes are called {name}; name each, such as first={count}x{m}x{n}"
            )
        stacks[name] = count, m, n
    modules = tuple(
        ModuleShape(f"layers.{block}.{name}", m, n)
        for name, (count, m, n) in stacks.items()
        for block in range(count)
    )
    return Architecture(", ".join(shapes), modules)
