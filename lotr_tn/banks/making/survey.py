"""Adapters of one base, read once and one at a time: what they hold, with their factors spooled."""

from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from lotr_tn._arrays import UNIT_ROUNDOFF
from lotr_tn.adapters.adapter import Adapter, Layout, LoRAAdapter, LoRAModule, Target, common_dtype
from lotr_tn.adapters.as_lora import as_lora_adapter
from lotr_tn.adapters.base_models import base_model_of, require_same_base
from lotr_tn.adapters.paths import require_common, shapes_of
from lotr_tn.adapters.raw_tensor import RawTensor
from lotr_tn.banks.bank import BankAdapter
from lotr_tn.banks.contents import Contents
from lotr_tn.errors import CheckpointError
from lotr_tn.files.spool import Slot, Spool


@dataclass(eq=False)
class ModuleLayers:
    """The updates of one module by all adapters that have it.

    Its numbers are columns, so that thousands of adapters take little memory: adapter, rank, width
    of the output factor, place of both factors in the spool, dtype; scale and squared norm.
    """

    name: str
    layout: Layout
    shape: tuple[int, int]
    first: str  # the adapter that it was first seen in
    whole: array = field(default_factory=lambda: array("q"))
    real: array = field(default_factory=lambda: array("d"))

    FIELDS = 6
    DTYPES = tuple(UNIT_ROUNDOFF)

    def add(self, adapter: int, module: LoRAModule, spool: Spool, energy: float) -> None:
        """Spool one update."""
        up, down = spool.put(module.up), spool.put(module.down)
        code = self.DTYPES.index(module.up.dtype.name)
        other = self.DTYPES.index(module.down.dtype.name)
        self.whole.extend((adapter, module.target.rank, up.offset, down.offset, code, other))
        self.real.extend((module.scale, energy))

    @property
    def integers(self) -> np.ndarray:
        """(N, 6): adapter, rank, place of up, place of down, dtype of up, dtype of down."""
        return np.frombuffer(self.whole, dtype=np.int64).reshape(-1, self.FIELDS)

    @property
    def reals(self) -> np.ndarray:
        """(N, 2): scale, ‖ΔW‖²."""
        return np.frombuffer(self.real, dtype=np.float64).reshape(-1, 2)

    def module(self, row: int, spool: Spool) -> LoRAModule:
        """One update, read from the spool."""
        _, rank, up, down, code, other = (int(x) for x in self.integers[row])
        m, n = self.shape
        width = rank // self.layout.groups
        return LoRAModule(
            Target(self.name, self.layout, rank),
            spool.get(Slot(up, (m, width), self.DTYPES[code])),
            spool.get(Slot(down, (rank, n), self.DTYPES[other])),
            float(self.reals[row, 0]),
        )

    def dtype(self) -> str:
        """The finest dtype of all its factors."""
        return common_dtype({self.DTYPES[int(c)] for c in np.unique(self.integers[:, 4:])})


@dataclass(eq=False)
class Survey:
    """All adapters, with the factors in the spool."""

    spool: Spool  # where the factors are
    contents: Contents  # configurations and other tensors
    # in order; their clusters are not known yet
    adapters: list[BankAdapter] = field(default_factory=list)
    modules: dict[str, ModuleLayers] = field(default_factory=dict)  # by path
    bytes: int = 0  # of all tensors read
    update_bytes: int = 0  # of those of updates
    base: tuple[str, str] | None = None  # the base model that they name

    @property
    def energies(self) -> np.ndarray:
        """(N,) ‖ΔW‖² of each adapter, all modules together."""
        sums = np.zeros(len(self.adapters))
        for layers in self.modules.values():
            np.add.at(sums, layers.integers[:, 0], layers.reals[:, 1])
        return sums

    @property
    def counts(self) -> np.ndarray:
        """(N,) how many modules each adapter updates."""
        owners = [layers.integers[:, 0] for layers in self.modules.values()]
        return np.bincount(np.concatenate(owners), minlength=len(self.adapters))

    @property
    def dtype(self) -> str:
        """The finest dtype of all factors."""
        return min({a.dtype for a in self.adapters}, key=lambda name: UNIT_ROUNDOFF[name])

    def add(self, name: str, adapter: Adapter, *, any_base: bool) -> None:
        """Read one adapter; nothing of it is kept in memory."""
        lora = as_lora_adapter(adapter)
        require_modules(name, lora)
        base = base_model_of(lora)
        if self.base is None and base:
            self.base = name, base
        if self.base is not None and not any_base:
            require_same_base(self.base, (name, base))
        known = {path: (layers.first, layers.shape) for path, layers in self.modules.items()}
        require_common(known, name, shapes_of(lora))
        for module in lora.modules:
            layers = self._layers_of(name, module)
            layers.add(len(self.adapters), module, self.spool, squared_norm(module))
        self.adapters.append(bank_adapter(name, lora, self.contents, self.spool))
        own = sum(m.up.nbytes + m.down.nbytes for m in lora.modules)
        self.update_bytes += own
        self.bytes += own + sum(tensor.nbytes for tensor in lora.extras.values())

    def _layers_of(self, name: str, module: LoRAModule) -> ModuleLayers:
        path, layout = module.target.name, module.target.layout
        known = self.modules.get(path)
        if known is None:
            known = self.modules[path] = ModuleLayers(path, layout, module.shape, name)
        require_same_module(module, name, known.first, known.shape, known.layout)
        return known


def require_modules(name: str, lora: LoRAAdapter) -> None:
    """Refuse an adapter without updates, or without a name."""
    if not name:
        raise CheckpointError("the name of an adapter is empty; give it a name")
    if not lora.modules:
        raise CheckpointError(f"{name} updates no module; leave it out")


def require_same_module(
    module: LoRAModule, name: str, first: str, shape: tuple[int, int], layout: Layout
) -> None:
    """Refuse a module whose shape or layout is not the one that it has in the first adapter."""
    path, found = module.target.name, module.shape
    if found != shape:
        raise CheckpointError(
            f"{path} is {shape[0]}x{shape[1]} in {first} and {found[0]}x{found[1]} in {name}; "
            "needed adapters of one base"
        )
    if module.target.layout != layout:
        raise CheckpointError(
            f"{path} is a {layout.kind} module in {first} and a {module.target.layout.kind} "
            f"module of another layout in {name}; needed adapters of one base"
        )


def survey_of(
    adapters: Mapping[str, Adapter],
    spool: Spool,
    *,
    packs: bool,
    any_base: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Survey:
    """Read all adapters once, one at a time, and refuse those of different bases.

    `packs` says whether configurations and other tensors are packed.
    """
    if not adapters:
        raise CheckpointError("a bank needs at least one adapter; found none")
    survey = Survey(spool, Contents(packs))
    for name in adapters:
        if progress is not None:
            progress(name)
        survey.add(name, adapters[name], any_base=any_base)
    return survey


def bank_adapter(
    name: str, lora: LoRAAdapter, contents: Contents, spool: Spool | None, cluster: int = 0
) -> BankAdapter:
    """An adapter's entry, its configuration and other tensors being added to the contents."""
    text = np.frombuffer(lora.config_text.encode(), dtype=np.uint8)
    config = contents.add(RawTensor("U8", text.shape, text), spool)
    extras = {key: contents.add(tensor, spool) for key, tensor in lora.extras.items()}
    return BankAdapter(name, config, extras, lora.dtype, lora.parameters, cluster)


def squared_norm(module: LoRAModule) -> float:
    """‖ΔW‖² from the Gram matrices of both factors."""
    up, down = (factor.astype(np.float64) for factor in (module.up, module.down))
    up, down = replace(module, up=up, down=down).factors()
    return max(float(((up.T @ up) * (down @ down.T).T).sum()), 0.0)
