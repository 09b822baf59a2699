"""A configuration made known to PEFT."""

from typing import Any, TypeVar

import peft.mapping

from lotr_tn.nn.form import register
from lotr_tn.peft.config import AdapterConfig, kind
from lotr_tn.peft.model import FormModel

__all__ = ["entered"]

C = TypeVar("C", bound=type[AdapterConfig])


def entered(config: C) -> C:
    """Make PEFT know a form by its configuration; the form is registered, too.

    Args:
        config: a dataclass with the `form`; most are a `FormConfig` that says no more than that.

    Returns:
        The same class, so that this can decorate it.

    Raises:
        OptionError: another form has the same name.
    """
    method = register(config.form).method
    known: Any = peft.mapping
    name = kind(method.kind)
    known.PEFT_TYPE_TO_CONFIG_MAPPING[name] = config
    known.PEFT_TYPE_TO_TUNER_MAPPING[name] = FormModel
    known.PEFT_TYPE_TO_PREFIX_MAPPING[name] = f"{method.name}_"
    return config
