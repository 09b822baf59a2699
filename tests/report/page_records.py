"""Records of analyses for the tests of the page: one of a real adapter, and made-up ones."""

from pathlib import Path
from typing import Any

import numpy as np

import lotr_tn as lt

DEMO = Path(__file__).parents[2] / "lotr_tn" / "demo" / "adapter"
FORMS = {
    "lora": "LoRA as it is",
    "truncated": "each layer's rank cut",
    "lotr": "LoTR: U and V shared",
    "shared-in": "V shared",
    "shared-out": "U shared",
    "lotr-low-rank": "LoTR with low-rank cores",
}
MOST_POINTS = 64


def demo_surfaces(names: tuple[str, ...] | None = None) -> dict[str, lt.analysis.ErrorSurface]:
    """The library's surfaces of the demo adapter's groups."""
    groups = lt.group_modules(lt.load_adapter(DEMO))
    return {
        k: lt.analysis.error_surface(g.stack)
        for k, g in groups.items()
        if names is None or k in names
    }


def demo_record(names: tuple[str, ...] | None = None) -> dict[str, Any]:
    """An analysis of the demo adapter, its errors those of the library."""
    found = lt.group_modules(lt.load_adapter(DEMO))
    surfaces = demo_surfaces(names)
    groups = [_demo_group(name, found[name], surface) for name, surface in surfaces.items()]
    return record_of(groups, sources=["lotr-demo/adapter"], base_model="lotr-demo/tiny-llama")


def _demo_group(name: str, group: Any, surface: lt.analysis.ErrorSurface) -> dict[str, Any]:
    front = surface.front()[1:]
    kept = np.unique(np.linspace(0, len(front) - 1, MOST_POINTS).astype(int))
    points = []
    for pair in (front[i] for i in kept):
        tucker = lt.hosvd(group.stack, ranks=lt.FixedRank(pair.r1, pair.r2))
        certificate = tucker.certificate
        assert certificate is not None
        points.append((pair, [float(x) for x in certificate.layer_errors]))
    spectra = lt.analysis.mode_spectra(group.stack)
    return group_of(
        name=name,
        modules=[target.name for target in group.targets],
        shape=group.shape,
        rank=group.stack.ranks[0],
        norm=float(lt.norm(group.stack)),
        front=[
            {
                "r1": pair.r1,
                "r2": pair.r2,
                "params": pair.parameters,
                "relative_error": pair.relative_error,
                "lower_bound": pair.lower_bound,
                "layer_errors": errors,
            }
            for pair, errors in points
        ],
        spectra=(spectra.left.tolist(), spectra.right.tolist()),
        surface=surface_of(surface.errors, surface.lower),
    )


def surface_of(
    errors: np.ndarray,
    lower: np.ndarray,
    ranks: tuple[list[int], list[int]] | None = None,
) -> dict[str, Any]:
    """A group's surface; ranks are 0, 1, 2, … where left out."""
    r1, r2 = ranks or (list(range(errors.shape[0])), list(range(errors.shape[1])))
    return {"r1": r1, "r2": r2, "errors": errors.tolist(), "lower": lower.tolist()}


def group_of(
    *,
    name: str,
    modules: list[str],
    shape: tuple[int, int, int],
    rank: int,
    norm: float,
    front: list[dict[str, Any]],
    spectra: tuple[list[float], list[float]],
    surface: dict[str, Any] | None,
) -> dict[str, Any]:
    """One group of a record around a front; forms other than LoTR get plausible numbers."""
    layers, m, n = shape
    params = layers * rank * (m + n)
    good = [p for p in front if p["relative_error"] <= 0.05]
    lotr = good[0] if good else {"params": 0, "relative_error": 0.0, "r1": 0, "r2": 0}
    share = {"lora": 1.0, "truncated": 0.71, "shared-in": 0.9, "shared-out": 0.93}
    amounts = {form: int(part * params) for form, part in share.items()}
    amounts |= {"lotr": lotr["params"], "lotr-low-rank": int(0.83 * lotr["params"])}
    errors = {form: 0.0 if form == "lora" else 0.0493 for form in FORMS}
    errors["lotr"] = lotr["relative_error"]
    ranks = {"lora": f"{rank}", "truncated": f"1-{rank}", "lotr": f"{lotr['r1']}, {lotr['r2']}"}
    candidates = [
        {
            "format": form,
            "label": label,
            "params": amounts[form],
            "bytes": 4 * amounts[form],
            "ratio": amounts[form] / params if params else None,
            "relative_error": errors[form],
            "ranks": ranks.get(form, f"{lotr['r1']}"),
        }
        for form, label in FORMS.items()
    ]
    steps = np.linspace(0.02, 1.0, 30)
    rng = np.random.default_rng(layers + m)
    cosines = 0.1 + 0.2 * rng.random((layers, layers))
    overlap = ((cosines + cosines.T) / 2 * (1 - np.eye(layers)) + np.eye(layers)).tolist()
    group: dict[str, Any] = {
        "name": name,
        "modules": modules,
        "labels": [str(i) for i in range(layers)],
        "member": "layer",
        "shape": list(shape),
        "layer_ranks": [rank] * layers,
        "params": params,
        "bytes": 4 * params,
        "norm": norm,
        "spectra": {
            "left": spectra[0],
            "right": spectra[1],
            "layers": [list(norm / layers**0.5 * 0.6 ** np.arange(rank)) for _ in range(layers)],
        },
        "stable_ranks": [3.1, 4.2],
        "numerical_ranks": [len(spectra[0]), len(spectra[1])],
        "candidates": candidates,
        "recommended": "truncated" if params else "lora",
        "front": front,
        "curves": [
            {
                "format": form,
                "params": [int(part * x * params) for x in steps],
                "relative_error": [float((1 - x) ** 1.5) for x in steps],
            }
            for form, part in share.items()
            if form != "lora" and params
        ],
        "overlap": {"left": overlap, "right": overlap, "chance": [rank / m, rank / n]},
        "clusters": [
            {"layers": list(range(layers // 2)), "format": "lotr", "params": params // 2},
            {"layers": list(range(layers // 2, layers)), "format": "truncated", "params": 7},
        ],
        "break_even_layers": 10,
        "advice": f"Cut each layer's own rank: the layers of {name} hardly share a subspace.",
    }
    return group if surface is None else group | {"surface": surface}


def record_of(
    groups: list[dict[str, Any]],
    sources: list[str],
    base_model: str | None = None,
    budgets: int = 40,
) -> dict[str, Any]:
    """A record around groups."""
    params = sum(group["params"] for group in groups)
    best = [next(c for c in g["candidates"] if c["format"] == g["recommended"]) for g in groups]
    stored = sum(candidate["params"] for candidate in best)
    shares = np.geomspace(0.01, 1.0, budgets) if groups else []
    return {
        "sources": sources,
        "lotr_sources": [],
        "base_model": base_model,
        "dtype": "float32",
        "question": {"kind": "rel_error", "value": 0.05},
        "met": True,
        "verdict": [
            f"Cut the rank of each layer: {stored:,} of {params:,} parameters at an error of 5%.",
            "Sharing U and V over the layers does not pay here: the layers hardly share a "
            "subspace.",
        ],
        "params": params,
        "bytes": 4 * params,
        "recommended": {
            "params": stored,
            "bytes": 4 * stored,
            "update_bytes": 4 * stored,
            "relative_error": 0.0493,
        },
        "seconds": 0.8,
        "groups": groups,
        "stackings": [
            {
                "name": "kind",
                "label": "each kind over its layers",
                "params": stored,
                "bytes": 4 * stored,
                "relative_error": 0.0493,
                "stacks": len(groups),
                "chosen": True,
                "note": None,
            },
            {
                "name": "shape",
                "label": "all modules of a shape",
                "params": None,
                "bytes": None,
                "relative_error": None,
                "stacks": 3,
                "chosen": False,
                "note": "not measured: it would take too long",
            },
        ],
        "budgets": [_budget(groups, float(share)) for share in shares],
    }


def _budget(groups: list[dict[str, Any]], share: float) -> dict[str, Any]:
    parts = [
        {
            "format": "truncated" if share > 0.3 else "lotr",
            "ranks": f"{int(8 * share)}",
            "params": int(share * group["params"]),
            "relative_error": (1 - share) ** 1.5,
        }
        for group in groups
    ]
    stored = sum(part["params"] for part in parts)
    return {
        "params": stored,
        "bytes": 4 * stored,
        "relative_error": (1 - share) ** 1.5,
        "groups": parts,
    }


def empty_group(name: str = "silent") -> dict[str, Any]:
    """A group whose updates are all zero."""
    surface = surface_of(np.zeros((1, 1)), np.zeros((1, 1)))
    group = group_of(
        name=name,
        modules=["layers.0.silent", "layers.1.silent"],
        shape=(2, 6, 5),
        rank=0,
        norm=0.0,
        front=[
            {
                "r1": 0,
                "r2": 0,
                "params": 0,
                "relative_error": 0.0,
                "lower_bound": 0.0,
                "layer_errors": [0.0, 0.0],
            }
        ],
        spectra=([], []),
        surface=surface,
    )
    return group | {
        "stable_ranks": [0.0, 0.0],
        "overlap": None,
        "clusters": [],
        "break_even_layers": None,
    }


def made_up_group(
    name: str, shape: tuple[int, int, int], rank: int, positions: int
) -> dict[str, Any]:
    """A group of any size, without an adapter: errors fall with both ranks."""
    layers, m, n = shape
    most = min(m, n, layers * rank)
    ranks = np.unique(np.linspace(0, most, positions).astype(int)).tolist()
    left, right = np.meshgrid(np.array(ranks) / most, np.array(ranks) / most, indexing="ij")
    errors = np.sqrt(np.clip((1 - left**0.7) + (1 - right**0.8) * left, 0.0, 1.0))
    rng = np.random.default_rng(sum(map(ord, name)))
    front = [
        {
            "r1": r,
            "r2": r,
            "params": m * r + n * r + layers * r * r,
            "relative_error": float(errors[ranks.index(r), ranks.index(r)]),
            "lower_bound": float(0.9 * errors[ranks.index(r), ranks.index(r)]),
            "layer_errors": (rng.random(layers) * errors[ranks.index(r), ranks.index(r)]).tolist(),
        }
        for r in (
            ranks[i] for i in np.unique(np.linspace(1, len(ranks) - 1, MOST_POINTS).astype(int))
        )
    ]
    spectra = (1 / (1 + np.arange(most))).tolist()
    return group_of(
        name=name,
        modules=[f"model.layers.{i}.self_attn.{name}" for i in range(layers)],
        shape=shape,
        rank=rank,
        norm=1.28,
        front=front,
        spectra=(spectra, spectra),
        surface=surface_of(errors, 0.9 * errors, (ranks, ranks)),
    )


def llama_record() -> dict[str, Any]:
    """Of the size of an adapter of Llama 2 7B: seven kinds, 32 layers, rank 16."""
    shapes = {
        "q_proj": (4096, 4096),
        "k_proj": (4096, 4096),
        "v_proj": (4096, 4096),
        "o_proj": (4096, 4096),
        "gate_proj": (11008, 4096),
        "up_proj": (11008, 4096),
        "down_proj": (4096, 11008),
    }
    groups = [made_up_group(name, (32, *shape), 16, 97) for name, shape in shapes.items()]
    return record_of(groups, sources=["llama-adapter"], budgets=100)
