"""A small model whose sizes all differ, with queries and values that are given one input."""

import torch
from torch import nn

import lotr_tn.nn as ln

TOKENS = torch.arange(20).reshape(4, 5) % 17


class Block(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.q, self.v = nn.Linear(width, inner), nn.Linear(width, inner)
        self.out = nn.Linear(inner, width, bias=False)

    def forward(self, x):
        return x + self.out(torch.tanh(self.q(x)) * self.v(x))


class Model(nn.Module):
    def __init__(self, layers=3):
        super().__init__()
        self.embed = nn.Embedding(17, 8)
        self.blocks = nn.ModuleList(Block(8, 12) for _ in range(layers))
        self.head = nn.Linear(8, 5)

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def model(seed=0, dtype=torch.float32, layers=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Model(layers).to(dtype)


def shake(adapted, seed=1, size=0.3):
    """Give everything that is trained other values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(size * noise.to(parameter.dtype))
    return adapted


def pairs(adapted, name="default"):
    """The identities of all U and of all V that the layers hold: a pair for each group."""
    return {
        (id(layer.lotr_factors[name].u), id(layer.lotr_factors[name].v))
        for layer in ln.lotr_layers(adapted).values()
    }
