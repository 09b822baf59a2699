"""Small adapters in memory for the tests of banks, and plain loops that say what they hold."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import ml_dtypes
import numpy as np

import lotr_tn as lt
from lotr_tn.adapters import Layout, LoRAGroup, LoRAModule, Target
from lotr_tn.adapters.raw_tensor import RawTensor

BASE = "acme/tiny"
DTYPES = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
    "float64": np.float64,
}
QV = {"q": ((23, 17), Layout()), "v": ((11, 17), Layout())}
"""Kinds of module: shape (m, n) and layout."""

ODD = {
    "embed": ((13, 29), Layout("embedding")),
    "conv": ((14, 6 * 3), Layout("conv", (3,))),
    "grouped": ((16, 5 * 4), Layout("conv", (2, 2), 2)),
}
HEAD = "base_model.model.score.weight"


def paths(kinds=QV, layers=2):
    """Path, shape and layout of every module."""
    return {
        f"model.layers.{layer}.{kind}": kinds[kind] for layer in range(layers) for kind in kinds
    }


def spaces(seed, modules, shared):
    """For each module the directions, (m, shared) and (n, shared), that a lineage has in common."""
    rng = np.random.default_rng([seed, 77])
    return {
        path: (rng.standard_normal((shape[0], shared)), rng.standard_normal((shape[1], shared)))
        for path, (shape, _) in modules.items()
    }


def adapter(
    seed=0,
    *,
    planted=None,
    modules=None,
    rank=3,
    noise=0.01,
    dtype="float32",
    scale=0.7,
    size=1.0,
    extras=None,
    base=BASE,
    **config,
):
    """A LoRA with factors in planted spaces and some noise, or without spaces at random."""
    rng = np.random.default_rng([seed, 5])
    found = []
    for path, ((m, n), layout) in (modules or paths()).items():
        width = rank * layout.groups
        if planted is None:
            up, down = rng.standard_normal((m, rank)), rng.standard_normal((width, n))
        else:
            u, v = planted[path]
            up = u @ rng.standard_normal((u.shape[1], rank))
            down = rng.standard_normal((width, v.shape[1])) @ v.T
            up, down = noisy(up, noise, rng), noisy(down, noise, rng)
        kept = (size * up).astype(DTYPES[dtype]), down.astype(DTYPES[dtype])
        found.append(LoRAModule(Target(path, layout, width), *kept, scale))
    return assembled(found, extras, base=base, rank=rank, **config)


def noisy(x, noise, rng):
    """An array with random entries of a relative norm added."""
    more = rng.standard_normal(x.shape)
    return x + noise * np.linalg.norm(x) / np.linalg.norm(more) * more


def assembled(modules, extras=None, *, base=BASE, rank=3, **config):
    """Modules as an adapter with a configuration."""
    whole = {
        "base_model_name_or_path": base,
        "bias": "none",
        "lora_alpha": rank,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted({m.target.name.rpartition(".")[2] for m in modules}),
        **config,
    }
    text = json.dumps(whole, indent=1)
    return lt.LoRAAdapter(tuple(modules), extras or {}, json.loads(text), text)


def fleet(count=4, *, lineages=1, seed=0, shared=4, kinds=QV, layers=2, ranks=(3,), **options):
    """Adapters a0, a1, …; each lineage in spaces of its own, one after another in turn."""
    modules = paths(kinds, layers)
    planted = [spaces([seed, number], modules, shared) for number in range(lineages)]
    return {
        f"a{i}": adapter(
            1000 * seed + i,
            planted=planted[i % lineages],
            modules=modules,
            rank=ranks[i % len(ranks)],
            **options,
        )
        for i in range(count)
    }


def strangers(count=4, *, seed=0, ranks=(3,), **options):
    """Adapters that have nothing in common."""
    return {
        f"s{i}": adapter(1000 * seed + i, rank=ranks[i % len(ranks)], **options)
        for i in range(count)
    }


def mixed(seed=0):
    """Adapters that differ in all that adapters of one base may differ in."""
    modules = paths(QV, 2) | paths(ODD, 1)
    planted = spaces(seed, modules, 4)
    some = {path: form for path, form in modules.items() if not path.endswith(("1.v", "0.grouped"))}
    common = {HEAD: head(0)}

    def one(number, only=modules, **options):
        return adapter(1000 * seed + number, planted=planted, modules=only, **options)

    return {
        "plain": one(0, extras=common),
        "half": one(1, dtype="float16", rank=2, extras=common),
        "brain": one(2, dtype="bfloat16", rank=5, extras={HEAD: head(1)}),
        "double": one(3, some, dtype="float64", lora_alpha=32, size=100.0),
        "tiny": one(4, dtype="float32", rank=1, size=1e-4),
        "zero": without_update(one(5)),
        "partly": partly_zero(one(6, some, rank=4)),
    }


def head(seed, shape=(5, 17)):
    """A tensor that is no update."""
    return RawTensor.of(np.random.default_rng([seed, 9]).standard_normal(shape).astype(np.float32))


def without_update(one):
    """The same adapter as it is before training: every output factor is zero."""
    return replace(one, modules=tuple(replace(m, up=np.zeros_like(m.up)) for m in one.modules))


def partly_zero(one):
    """The same adapter with its first module not trained."""
    first, *rest = one.modules
    return replace(one, modules=(replace(first, up=np.zeros_like(first.up)), *rest))


# --- what is true: plain loops in float64


def module_delta(module):
    """ΔW of one LoRA module."""
    up, down = module.up.astype(np.float64), module.down.astype(np.float64)
    groups = module.target.layout.groups
    rows, width = len(up) // groups, len(down) // groups
    parts = [
        up[g * rows : (g + 1) * rows] @ down[g * width : (g + 1) * width] for g in range(groups)
    ]
    return module.scale * np.concatenate(parts)


def dense(one):
    """ΔW of every module of an adapter of either kind, by its path."""
    if isinstance(one, lt.LoRAAdapter):
        return {module.target.name: module_delta(module) for module in one.modules}
    found = {}
    for group in one.groups.values():
        if isinstance(group, LoRAGroup):
            layers = [module_delta(module) for module in group.modules]
        else:
            layers = dense_layers(group.stack)
        for target, layer in zip(group.targets, layers, strict=True):
            assert target.name not in found, f"{target.name} is stored twice"
            found[target.name] = layer
    return found


def dense_layers(stack):
    """Every layer of a stack of any stored format."""
    if isinstance(stack, lt.Tucker2):
        u, v = wide(stack.u), wide(stack.v)
        return [u @ core @ v.T for core in wide(stack.core)]
    if isinstance(stack, lt.Tucker1):
        shared, own = wide(stack.shared), wide(stack.own)
        return [x @ shared.T if stack.side == "in" else shared @ x.T for x in own]
    up, down = wide(stack.up), wide(stack.down)
    if isinstance(stack, lt.LowRankTucker2):
        up, down = wide(stack.u) @ up, down @ wide(stack.v).T
    return [up[:, a:b] @ down[a:b] for a, b in pairwise(np.cumsum([0, *stack.ranks]))]


def wide(x):
    return np.asarray(x).astype(np.float64)


def squared(updates: Mapping[str, np.ndarray]) -> float:
    return sum(float((w**2).sum()) for w in updates.values())


def error(found, wanted):
    """Relative error over all modules; both have the very same ones."""
    assert set(found) == set(wanted)
    lost = squared({path: found[path] - wanted[path] for path in wanted})
    return 0.0 if lost == 0 else (lost / squared(wanted)) ** 0.5


def joint_error(bank, originals):
    """‖T − T̂‖ / ‖T‖ of all adapters together."""
    wanted = {name: dense(one) for name, one in originals.items()}
    lost = sum(
        squared({path: w - wanted[name][path] for path, w in dense(bank[name]).items()})
        for name in bank.names
    )
    return (lost / sum(map(squared, wanted.values()))) ** 0.5


def require_true(bank, originals, epsilon=None, names: Iterable[str] | None = None):
    """Every adapter's figures are what a plain loop finds, and within an error."""
    for name in names or originals:
        wanted, figures = dense(originals[name]), bank.figures(name)
        found = error(dense(bank[name]), wanted)
        assert figures.modules == len(wanted)
        assert found <= figures.bound * (1 + 1e-9) + 1e-12, name
        if figures.bound == figures.relative_error:
            assert abs(found - figures.relative_error) <= 1e-4 * found + 1e-13, name
        if epsilon is not None:
            assert found <= epsilon * (1 + 1e-9), name


def stack_bytes(bank):
    """Bytes of the numbers of all stacks, bases and layers."""
    tensors = []
    for group in bank.groups.values():
        tensors += [*group.outputs, *group.inputs]
        tensors += [tensor for part in group.parts for tensor in part.tensors.values()]
    return sum(tensor.entry.nbytes for tensor in tensors)


def formats_of(bank):
    """The formats of all layers."""
    return {part.format for group in bank.groups.values() for part in group.parts}


# --- files

_MADE: dict[str, bytes] = {}


def bank_of(fleet: Mapping[str, lt.LoRAAdapter], path: Path, rule=None, **options) -> lt.banks.Bank:
    """A bank to start from, at 5% if nothing else is said; equal ones are made once a process."""
    rule = rule or lt.RelativeError(0.05)
    key = f"{rule} {sorted(options.items())} {_digest(fleet)}"
    if key in _MADE:
        path.write_bytes(_MADE[key])
    else:
        lt.banks.make_bank(fleet, path, rule, **options)
        _MADE[key] = path.read_bytes()
    return lt.banks.load_bank(path)


def _digest(fleet: Mapping[str, lt.LoRAAdapter]) -> str:
    """What tells fleets apart: everything of their adapters."""
    found = hashlib.sha256()
    for name, one in fleet.items():
        found.update(repr((name, one.config_text, sorted(extras_of(one).items()))).encode())
        for module in one.modules:
            found.update(repr((module.target, module.scale, module.up.dtype)).encode())
            found.update(module.up.tobytes() + module.down.tobytes())
    return found.hexdigest()


def grown(
    fleet: Mapping[str, lt.LoRAAdapter], path: Path, first: int, rule=None, **options
) -> lt.banks.Bank:
    """A bank of the first adapters, to which the others are appended one after another."""
    names = list(fleet)
    bank = bank_of({name: fleet[name] for name in names[:first]}, path, rule, **options)
    for name in names[first:]:
        bank = lt.banks.add_adapters(path, {name: fleet[name]}).bank
    return bank


def export(bank, name, folder: Path) -> dict[str, bytes]:
    """An adapter of a bank as the files of a PEFT folder, byte for byte."""
    shutil.rmtree(folder, ignore_errors=True)
    lt.save_adapter(lt.to_lora(bank[name]).adapter, folder)
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def exports(bank, folder: Path, names: Sequence[str] | None = None) -> dict[str, dict[str, bytes]]:
    """The same of several adapters."""
    return {name: export(bank, name, folder) for name in (names or bank.names)}


def extras_of(one) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Other tensors of an adapter, byte for byte."""
    return {
        key: (raw.code, tuple(raw.shape), np.ascontiguousarray(raw.data).tobytes())
        for key, raw in one.extras.items()
    }


def told_whole(header):
    """The header of a bank in which each group tells all of itself."""
    each = header.pop("each")
    header["groups"] = {name: {**each, **own} for name, own in header["groups"].items()}
    for group in header["groups"].values():
        group["modules"] = [{"name": name} for name in group["modules"]]
    return header
