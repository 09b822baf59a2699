"""Records of analyses for the tests of figures: plausible numbers, and every edge."""

import numpy as np

LABELS = {
    "lora": "LoRA as it is",
    "truncated": "each layer's rank cut",
    "lotr": "LoTR: U and V shared",
    "shared-in": "V shared",
    "shared-out": "U shared",
    "lotr-low-rank": "LoTR with low-rank cores",
}


def candidate(form: str, params: int, error: float, lora: int) -> dict:
    return {
        "format": form,
        "label": LABELS[form],
        "params": params,
        "bytes": 4 * params,
        "ratio": params / lora,
        "relative_error": error,
        "ranks": "4",
    }


def group(name: str = "q_proj", layers: int = 12, rank: int = 4, seed: int = 0) -> dict:
    """A group as an analysis records it, of plausible numbers."""
    rng = np.random.default_rng(seed)
    m, n, total = 40, 30, layers * rank
    lora = total * (m + n)
    own = np.sort(rng.uniform(0.1, 1, (layers, rank)))[:, ::-1] * np.logspace(0, -1, rank)
    side = np.sort(own.ravel())[::-1]
    norm = float(np.linalg.norm(side))
    tails = np.sqrt(np.append(np.cumsum(side[::-1] ** 2)[::-1], 0.0)) / norm
    front = [
        {
            "r1": r,
            "r2": r,
            "params": (m + n) * r + layers * r * r,
            "relative_error": float(tails[r]),
            "lower_bound": 0.9 * float(tails[r]),
            "layer_errors": [float(tails[r]) * (1 + i) / layers for i in range(layers)],
        }
        for r in range(1, total + 1)
    ]
    terms = range(1, total + 1)
    found = next(r for r in terms if tails[r] <= 0.1)
    curves = [
        {
            "format": form,
            "params": [cost * r for r in terms],
            "relative_error": [float(tails[r]) for r in terms],
        }
        for form, cost in {
            "truncated": m + n,
            "shared-in": n + layers * m,
            "shared-out": m + layers * n,
        }.items()
    ]
    sizes = {"truncated": (m + n) * found, "lotr": front[found - 1]["params"]}
    overlap = np.clip(np.eye(layers) + 0.1, 0, 1).tolist()
    return {
        "name": name,
        "modules": [f"model.layers.{i}.{name}" for i in range(layers)],
        "labels": [str(i) for i in range(layers)],
        "member": "layer",
        "shape": [layers, m, n],
        "layer_ranks": [rank] * layers,
        "params": lora,
        "bytes": 4 * lora,
        "norm": norm,
        "spectra": {"left": side.tolist(), "right": side.tolist(), "layers": own.tolist()},
        "stable_ranks": [2.0, 2.0],
        "numerical_ranks": [total, total],
        "candidates": [
            candidate("lora", lora, 0.0, lora),
            *(candidate(form, size, float(tails[found]), lora) for form, size in sizes.items()),
            candidate("lotr-low-rank", lora - 1, float(tails[found]), lora),
        ],
        "recommended": "truncated",
        "front": front,
        "curves": curves,
        "overlap": {"left": overlap, "right": overlap, "chance": [0.1, 0.1]},
        "clusters": [],
        "break_even_layers": None,
        "advice": "cut each layer's rank",
    }


def zero_group() -> dict:
    """A group whose updates are all zero."""
    zeros = {"left": [0.0], "right": [0.0], "layers": [[0.0]] * 3}
    changed = {"norm": 0.0, "spectra": zeros, "front": [], "curves": []}
    return group("k_proj", layers=3) | changed


def record_of(*groups: dict, **changed) -> dict:
    lora = sum(g["params"] for g in groups)
    return {
        "sources": ["runs/first/adapter"],
        "lotr_sources": [],
        "base_model": "roberta-base",
        "dtype": "bfloat16",
        "question": {"kind": "rel_error", "value": 0.1},
        "met": True,
        "verdict": ["a sentence"],
        "params": lora,
        "bytes": 2 * lora,
        "recommended": {"params": lora // 2, "bytes": lora, "relative_error": 0.0987},
        "seconds": 0.1,
        "groups": list(groups),
        "stackings": [],
        "budgets": [],
    } | changed


def one_point() -> dict:
    found = group(layers=3)
    return found | {"front": found["front"][:1], "curves": []}


def exact() -> dict:
    """Layers that are equal: rank 1 for all together, and no error at all."""
    found = one_point()
    found["front"][0] |= {"relative_error": 0.0, "lower_bound": 0.0, "layer_errors": [0.0] * 3}
    found["candidates"] = [c | {"relative_error": 0.0} for c in found["candidates"]]
    return found


def zero_layer() -> dict:
    found = group(layers=3)
    found["spectra"]["layers"][1] = []
    found["layer_ranks"] = [4, 0, 4]
    for point in found["front"]:
        point["layer_errors"][1] = None
    return found


def with_origin() -> dict:
    """A front that begins with nothing stored."""
    found = group(layers=3)
    nothing = {"r1": 0, "r2": 0, "params": 0, "relative_error": 1.0, "lower_bound": 1.0}
    return found | {"front": [nothing | {"layer_errors": [1.0] * 3}, *found["front"]]}


EDGES = {
    "nothing to keep": zero_group(),
    "one layer": group(layers=1),
    "one layer, rank one": group(layers=1, rank=1),
    "one layer, no front": group(layers=1) | {"front": []},
    "one point": one_point(),
    "exact": exact(),
    "zero layer": zero_layer(),
    "from nothing": with_origin(),
    "nothing recommended": group(layers=2) | {"recommended": None},
    "LoRA recommended": group(layers=2) | {"recommended": "lora"},
    "unknown format": group(layers=2)
    | {"curves": [{"format": "new", "params": [10, 90], "relative_error": [0.5, None]}]},
    "many layers": group(layers=40) | {"labels": [f"checkpoint-{i:05}/layer" for i in range(40)]},
    "many names": group("$a_very$.long_name_of_a_group.that.goes.on"),
}
