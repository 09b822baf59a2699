"""The doors for LoTR: groups and models, by ranks."""

from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias, TypeVar

from torch import nn

from lotr_tn.nn.forms.tucker2 import Ranks, Tucker2Form
from lotr_tn.nn.forms.tucker2_starts import TuckerStart
from lotr_tn.nn.grouping import Group, GroupBy
from lotr_tn.nn.model import add
from lotr_tn.nn.planning import Plan, Updates

Model = TypeVar("Model", bound=nn.Module)
Trained: TypeAlias = Literal["all", "cores", "factors"]


def add_lotr(
    model: Model,
    targets: str | Iterable[str],
    r: Ranks,
    *,
    group_by: GroupBy = "kind",
    ranks: Mapping[str, Ranks] | None = None,
    alpha: float | None = None,
    root_scale: bool = False,
    dropout: float = 0.0,
    init: TuckerStart | Updates = "balanced",
    train: Trained = "all",
    seed: int = 0,
    name: str = "default",
) -> Model:
    """Adapt layers of a model in place: shared U and V for each group, a core for each layer.

    All other parameters are frozen. The model computes at first what it computed before, bit for
    bit where the core (or U) is zero.

    Args:
        model: any module.
        targets: which layers: names that are paths or ends of paths, or a regular expression for
            whole paths. Linear layers, GPT-2's Conv1D and embeddings can be adapted.
        r: one rank, or (r1, r2) for the output and the input side.
        group_by: `kind`: layers that differ by block indices only share. `shape`: layers of one
            size share, as in the paper. A regular expression, as for `group_modules`. Or the
            layers of each group, by the group's name.
        ranks: other ranks for single groups, by name.
        alpha: the update is multiplied by alpha/r, with r = √(r1 r2); by 1 where left out.
        root_scale: by alpha/√r instead.
        dropout: the share of the update's input that is dropped while training.
        init: "balanced", "orthonormal" and "equalised" are the gauges of `random_factors`, around
            cores of zeros. "reference" has entries N(0, 1), as the authors' code. "zero-u" has U
            zero and unit cores. "weights" has the leading directions of the pretrained weights
            around cores of zeros. "principal" takes the leading part of the weights out of them and
            trains it. Or low-rank updates to continue with, by module path: exact where the
            ranks are those of the updates together.
        train: "all", "cores" or "factors"; `train_only` changes it later.
        seed: of all random numbers.
        name: the adapter's name. It becomes the active one.

    Returns:
        The same model.

    Raises:
        OptionError: targets, groups, ranks or names that match nothing; the adapter exists.
        FormatError: layers that cannot be adapted, or that cannot share.
        UnsupportedError: quantised layers.
        RankError: a rank is out of its range.

    Cost: memory of the factors; for the starts from weights that of `initial_factors_of_weights`.

    Examples:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 6))
        >>> model = add_lotr(model, ["0", "1"], r=(2, 3))
        >>> [tuple(p.shape) for p in model.parameters() if p.requires_grad]
        [(2, 3), (5, 2), (6, 3), (2, 3), (6, 2), (5, 3)]
    """
    return add(
        model, targets, Tucker2Form, {"ranks": r}, group_options=_by_group(ranks),
        group_by=group_by, alpha=alpha, root_scale=root_scale, dropout=dropout, init=init,
        train=train, seed=seed, name=name,
    )  # fmt: skip


def plan_groups(
    modules: Mapping[str, nn.Module],
    group_by: GroupBy,
    r: Ranks,
    ranks: Mapping[str, Ranks] | None = None,
) -> dict[str, Group]:
    """The groups that `add_lotr` would form of these modules by path, with its errors."""
    return Plan(Tucker2Form, {"ranks": r}, _by_group(ranks), group_by).groups(modules)


def _by_group(ranks: Mapping[str, Ranks] | None) -> dict[str, dict[str, Ranks]]:
    return {name: {"ranks": pair} for name, pair in (ranks or {}).items()}
