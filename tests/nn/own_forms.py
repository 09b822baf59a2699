"""Two forms that the library does not have: one of which a group has all, and one with no group."""

import array_api_compat
import torch
from torch import nn
from torch.nn import functional

import lotr_tn as lt
import lotr_tn.nn as ln


def diagonal_cores(shared, owns, sites):
    weights = shared["weights"]
    xp = array_api_compat.array_namespace(weights)
    eye = xp.eye(weights.shape[1], dtype=weights.dtype)
    chosen = [weights[site.index, :] for site in sites]
    return lt.Tucker2(shared["a"], xp.stack([eye * w for w in chosen]), shared["b"])


def weights_of(stack):
    xp = array_api_compat.array_namespace(stack.core)
    weights = xp.stack([xp.sum(core, axis=0) for core in stack.core])
    return {"a": stack.u, "b": stack.v, "weights": weights}, [{}] * stack.shape[0]


class Sited(ln.Form):
    """CP: ΔW_l = A diag(w_l) Bᵀ. A layer has nothing of its own but its place."""

    method = ln.Method(
        name="sited",
        label="The sited CP",
        shared=("a", "b", "weights"),
        own=lambda shared: {},
        stack=diagonal_cores,
        apart=weights_of,
        options=lambda stack: {"rank": stack.ranks[0]},
        size=lambda options: options["rank"],
    )
    starts = ("zero", "random", "principal")

    def __init__(self, a, b, weights, group=""):
        super().__init__((a.shape[0], b.shape[0]), group)
        self.a, self.b, self.weights = (nn.Parameter(x) for x in (a, b, weights))

    @classmethod
    def begin(cls, group, start):
        (layers, m, n), r = group.sizes, group.options["rank"]
        generator = torch.Generator().manual_seed(start.seed)
        a, b, weights = (
            torch.randn(k, r, generator=generator, dtype=torch.float64).to(start.like)
            for k in (m, n, layers)
        )
        if start.init == "zero":
            a = torch.zeros_like(a)
        return cls(a / start.scale, b, weights, group.name), [{}] * layers

    def forward(self, x, own, site):
        return functional.linear((x @ self.b) * self.weights[site.index], self.a)

    def rows(self, index, own, site):
        inside = functional.embedding(index, self.b, site.padding)
        return functional.linear(inside * self.weights[site.index], self.a)

    def delta(self, own, site, scale=1.0):
        return (self.a * (scale * self.weights[site.index])) @ self.b.mT


def side_by_side(shared, owns, sites):
    xp = array_api_compat.array_namespace(owns[0]["up"])
    up, down = (xp.concat([own[k] for own in owns], axis=a) for k, a in (("up", 1), ("down", 0)))
    return lt.LoRAStack(up, down, tuple(own["up"].shape[1] for own in owns))


class Alone(ln.Form):
    """LoRA: ΔW_l = up_l down_l, with nothing shared; no embeddings."""

    method = ln.Method(
        name="alone",
        label="The lone form",
        shared=(),
        own=lambda shared: {"up": None, "down": None},
        stack=side_by_side,
        apart=lambda stack: (
            {}, [{"up": stack.up[:, at], "down": stack.down[at, :]} for at in stack.slices]
        ),
        options=lambda stack: {"rank": stack.ranks[0]},
        size=lambda options: options["rank"],
    )  # fmt: skip
    starts = ("zero", "random")

    @classmethod
    def begin(cls, group, start):
        (m, n), r = group.shape, group.options["rank"]
        owns = []
        for index in range(len(group.modules)):
            generator = torch.Generator().manual_seed(1000 * start.seed + index)
            up, down = (torch.randn(*s, generator=generator) for s in ((m, r), (r, n)))
            up = (up * (start.init != "zero") / start.scale).to(start.like)
            owns.append({"up": up, "down": down.to(start.like)})
        return cls(group.shape, group.name), owns

    def forward(self, x, own, site):
        return functional.linear(functional.linear(x, own["down"]), own["up"])

    def delta(self, own, site, scale=1.0):
        return scale * own["up"] @ own["down"]
