"""Parameters of LoRA and LoTR, by rank, for the modules of an architecture."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from lotr_tn._arguments import door
from lotr_tn.catalogue.architecture import Architecture
from lotr_tn.catalogue.grouping import group_paths, kind_of
from lotr_tn.decompose.legs import PUBLISHED, legs_of
from lotr_tn.decompose.train_rounding import numbers
from lotr_tn.errors import OptionError, RankError, not_among

RANKS = (1, 2, 4, 8, 16, 32)  # the ranks of the LoTR paper's table


@final
@dataclass(frozen=True)
class GroupCount:
    """L modules of one shape that share their LoTR factors.

    Attributes:
        name: of the group.
        modules: their paths.
        shape: (L, m, n).
    """

    name: str
    modules: tuple[str, ...]
    shape: tuple[int, int, int]

    @property
    def dense(self) -> int:
        """Entries of the weights: L m n."""
        return math.prod(self.shape)

    def lora(self, rank: int) -> int:
        """Parameters of a LoRA of this rank: L r (m + n)."""
        layers, m, n = self.shape
        return layers * rank * (m + n)

    def lotr(self, r1: int, r2: int | None = None) -> int:
        """Parameters of LoTR of ranks (r1, r2), equal where r2 is left out: m r1 + n r2 + L r1 r2.

        Examples:
            >>> GroupCount("qv", (), (24, 768, 768)).lotr(2)
            3168
        """
        _, m, n = self.shape
        r2 = r1 if r2 is None else r2
        return m * r1 + n * r2 + self.cores(r1, r2)

    def cp(self, rank: int, heads: int | None = None) -> int:
        """Parameters of CP of this rank: r (m + n + L).

        With heads as LoRTA stores it: outputs cut into heads, and layers apart from kinds of
        modules, r (n + m / heads + heads + blocks + kinds).

        Raises:
            OptionError: the outputs cannot be cut into so many heads.

        Examples:
            >>> paths = tuple(f"h.{block}.attn.{kind}" for block in range(12) for kind in "qkvo")
            >>> GroupCount("attention", paths, (48, 768, 768)).cp(4, heads=12)
            3440
        """
        layers, m, n = self.shape
        if heads is None:
            return rank * (m + n + layers)
        if heads < 1 or m % heads:
            raise OptionError(
                f"the {m} outputs of group {self.name} cannot be cut into {heads} heads; choose a "
                "number that divides them"
            )
        blocks = {
            tuple(part for part in path.split(".") if part.isdigit()) for path in self.modules
        }
        kinds = {kind_of(path) for path in self.modules}
        return rank * (n + m // heads + heads + len(blocks) + len(kinds))

    def tt(self, rank: int, legs: str = "balanced") -> int:
        """Parameters of tensor trains of these bonds, one a module: L Σ r_{k-1} d_k r_k.

        Args:
            rank: of every bond.
            legs: `balanced`, or of a publication by its name in `lotr_tn.decompose.PUBLISHED`.

        Raises:
            OptionError: no such legs, or the publication has none for such matrices.

        Examples:
            >>> GroupCount("q", (), (12, 768, 768)).tt(5, "tt-lora")
            11880
        """
        layers, m, n = self.shape
        out, into = legs_of(legs, m, n)
        sizes = (*out, *into)
        return layers * numbers([rank] * (len(sizes) - 1), sizes)

    def cores(self, r1: int, r2: int | None = None) -> int:
        """Parameters of the LoTR cores alone: L r1 r2."""
        return self.shape[0] * r1 * (r1 if r2 is None else r2)


@final
@dataclass(frozen=True)
class CountRow:
    """The counts at one rank, over all groups.

    Attributes:
        rank: of every LoRA, and both ranks of every LoTR.
        lora: parameters of LoRA.
        lotr: parameters of LoTR.
        cores: parameters of LoTR with only the cores trained.
        cp: parameters of CP; with heads, as LoRTA stores it.
        tt: parameters of tensor trains, every bond of the rank.
        equal_size_rank: the largest LoTR rank with no more parameters than this LoRA; 0 where rank
            1 has more already.
    """

    rank: int
    lora: int
    lotr: int
    cores: int
    cp: int
    tt: int
    equal_size_rank: int

    @property
    def ratio(self) -> float:
        """LoTR over LoRA."""
        return self.lotr / self.lora


@final
@dataclass(frozen=True)
class CountTable:
    """Counts of one architecture, with one choice of targets and groups.

    Attributes:
        architecture: its name.
        targets: what chose the modules: names, one regular expression, or `all-linear`.
        group_by: how they were grouped.
        groups: modules that share factors, in the order of the model.
        rows: one for each rank that was asked for.
        heads: into which outputs are cut for CP; None where they are not.
        legs: of tensor trains; None for balanced ones that were not asked for.
    """

    architecture: str
    targets: tuple[str, ...]
    group_by: str
    groups: tuple[GroupCount, ...]
    rows: tuple[CountRow, ...]
    heads: int | None = None
    legs: str | None = None

    def __str__(self) -> str:
        lines = [("rank", "LoRA", "LoTR", "cores only")]
        lines += [(str(r.rank), f"{r.lora:,}", f"{r.lotr:,}", f"{r.cores:,}") for r in self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(4)]
        return "\n".join(
            "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True))
            for line in lines
        )

    @property
    def dense(self) -> int:
        """Entries of all targeted weights."""
        return sum(group.dense for group in self.groups)

    @property
    def break_even_rank(self) -> float:
        """The rank at which LoTR and LoRA of equal rank store the same; below it LoTR stores less.

        It is Σ (L − 1)(m + n) / Σ L over the groups: 0 where no modules share.
        """
        shapes = [group.shape for group in self.groups]
        saved = sum((layers - 1) * (m + n) for layers, m, n in shapes)
        return saved / sum(layers for layers, _, _ in shapes)


@door
def count_table(
    architecture: Architecture,
    targets: str | Iterable[str] | None = None,
    ranks: Iterable[int] = RANKS,
    group_by: str = "kind",
    heads: int | None = None,
    legs: str | None = None,
) -> CountTable:
    """How many parameters LoRA, LoTR and LoTR's cores alone have, by rank.

    Args:
        architecture: the modules of a model.
        targets: the modules to adapt, as in PEFT: names that paths end in, a regular expression
            for whole paths, or `all-linear`. None means attention queries and values.
        ranks: of LoRA, and r1 = r2 of LoTR.
        group_by: which modules share LoTR factors: `kind`, `shape` or a regular expression, as in
            `group_modules`. The LoTR paper uses `shape`.
        heads: for the counts of CP as LoRTA stores it, into how many heads outputs are cut; None
            for CP without parts.
        legs: for the counts of tensor trains, `balanced` or the name of a publication.

    Returns:
        A table, whose text is one line a rank. Biases, and heads that are trained with an adapter,
        are not counted.

    Raises:
        OptionError: a target matches no module, `group_by` is not valid, or outputs cannot be cut
            into so many heads, or the publication has no legs for a matrix.
        RankError: a rank is not a whole number of at least 1, or there is none.

    Source: Bershatsky et al. (2024), LoTR, arXiv 2402.01376.

    Examples:
        >>> from lotr_tn.catalogue import architecture
        >>> print(count_table(architecture("roberta-base"), group_by="shape"))
        rank       LoRA    LoTR  cores only
           1     36,864   1,560          24
           2     73,728   3,168          96
           4    147,456   6,528         384
           8    294,912  13,824       1,536
          16    589,824  30,720       6,144
          32  1,179,648  73,728      24,576
    """
    if targets is not None and not isinstance(targets, str):
        targets = tuple(targets)
    ranks = _checked(ranks)
    modules = architecture.select(targets)
    if targets is None:
        targets = architecture.default_targets or "all-linear"
    named = [(module.name, module.shape) for module in modules]
    groups = tuple(
        GroupCount(name, tuple(named[i][0] for i in found), (len(found), *named[found[0]][1]))
        for name, found in group_paths(named, group_by).items()
    )
    if legs is not None and legs not in ("balanced", *PUBLISHED):
        raise OptionError(not_among("legs", legs, ("balanced", *PUBLISHED)))
    chosen = (targets,) if isinstance(targets, str) else targets
    rows = tuple(_row(groups, rank, heads, legs or "balanced") for rank in ranks)
    return CountTable(architecture.name, chosen, group_by, groups, rows, heads, legs)


def _checked(ranks: Iterable[int]) -> tuple[int, ...]:
    ranks = tuple(ranks)
    for rank in ranks or (None,):
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise RankError(
                f"ranks must be whole numbers of at least 1, and there must be one; found {rank}"
            )
    return ranks


def _row(groups: tuple[GroupCount, ...], rank: int, heads: int | None, legs: str) -> CountRow:
    lora = sum(group.lora(rank) for group in groups)
    lotr = sum(group.lotr(rank) for group in groups)
    cores = sum(group.cores(rank) for group in groups)
    cp = sum(group.cp(rank, heads) for group in groups)
    tt = sum(group.tt(rank, legs) for group in groups)
    return CountRow(rank, lora, lotr, cores, cp, tt, _largest_rank(groups, lora))


def _largest_rank(groups: tuple[GroupCount, ...], budget: int) -> int:
    """The largest r with r Σ(m + n) + r² ΣL <= budget, in whole numbers."""
    layers = sum(group.shape[0] for group in groups)
    sides = sum(sum(group.shape[1:]) for group in groups)
    return (math.isqrt(sides**2 + 4 * layers * budget) - sides) // (2 * layers)
