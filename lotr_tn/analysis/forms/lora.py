"""The LoRA as it is."""

import numpy as np

from lotr_tn.analysis.curve import Curve
from lotr_tn.analysis.forms.form import Form, Look
from lotr_tn.formats import LoRAStack

FORM = Form(
    "lora",
    LoRAStack,
    "LoRA as it is",
    {"up": "out term", "down": "term in"},
    ranks=lambda stack: stack.ranks,
    at_ranks=lambda stack, ranks, options: stack,
    shared_ranks=0,
    built=lambda arrays, ranks, certificate: LoRAStack(**arrays, ranks=tuple(ranks)),
    holds=lambda stack: False,
    kept=True,
    phrase="the LoRA as it is",
    look=Look("#000000", "#1b1f24", "#e9ebee", "P", (1, 1)),
    curve=lambda coordinates, search: Curve(
        "lora", np.array([search.stored]), np.zeros(1), np.zeros((1, 0), int)
    ),
    losses=lambda coordinates, setting, limits: np.zeros(coordinates.shape[0]),
    make=lambda stack, setting, options, coordinates: stack,
    lower_bounds="curve",
)
