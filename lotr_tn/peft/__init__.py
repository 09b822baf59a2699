"""Trainable forms as methods of PEFT: importing this module makes PEFT know LoTR.

`get_peft_model(model, LotrConfig(...))` then works as for PEFT's own methods, and so do its
loaders, as long as this module was imported before. Nothing of PEFT is changed: the method is
entered into the mappings by which PEFT finds configs and models. `entered` does it for a form of
one's own.
"""

import peft
from peft.tuners.tuners_utils import BaseTuner

from lotr_tn.errors import UnsupportedError
from lotr_tn.peft.config import AdapterConfig, FormConfig, LotrConfig
from lotr_tn.peft.layer import TunerEmbedding, TunerLinear
from lotr_tn.peft.model import FormModel, entered

# names from when there was one form
LotrModel, LotrLinear, LotrEmbedding = FormModel, TunerLinear, TunerEmbedding

__all__ = [
    "AdapterConfig",
    "FormConfig",
    "FormModel",
    "LotrConfig",
    "LotrEmbedding",
    "LotrLinear",
    "LotrModel",
    "TunerEmbedding",
    "TunerLinear",
    "entered",
]

if not hasattr(BaseTuner, "_get_adapter_state_dict"):
    raise UnsupportedError(
        f"peft {peft.__version__} lets no method choose what it saves; needed 0.21.2 or later"
    )

entered(LotrConfig)
