"""The forms in which stacks are stored, in the order in which equals are chosen."""

from lotr_tn.analysis.forms import cp, lora, lotr, low_rank, one_side, tensor_train, truncated
from lotr_tn.analysis.forms.form import (
    FORMS,
    Form,
    FormatName,
    Look,
    Options,
    Search,
    all_forms,
    auto_forms,
    form_named,
    form_of,
    known_form,
    register_form,
)

__all__ = [
    "FORMS",
    "LORA",
    "LOTR",
    "Form",
    "FormatName",
    "Look",
    "Options",
    "Search",
    "all_forms",
    "auto_forms",
    "form_named",
    "form_of",
    "known_form",
    "register_form",
]

LORA, LOTR = lora.FORM, lotr.FORM

for _form in (
    LORA,
    truncated.FORM,
    LOTR,
    one_side.IN,
    one_side.OUT,
    low_rank.FORM,
    cp.FORM,
    tensor_train.FORM,
):
    register_form(_form)
