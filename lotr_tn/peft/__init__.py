"""LoTR as a method of PEFT: importing this module makes PEFT know it.

`get_peft_model(model, LotrConfig(...))` then works as for PEFT's own methods, and so do its
loaders, as long as this module was imported before. Nothing of PEFT is changed: the method is
entered into the mappings by which PEFT finds configs and models.
"""

import peft
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner

from lotr_tn.errors import UnsupportedError
from lotr_tn.peft.config import LotrConfig, LotrType
from lotr_tn.peft.layer import LotrEmbedding, LotrLinear
from lotr_tn.peft.model import LotrModel

__all__ = ["LotrConfig", "LotrEmbedding", "LotrLinear", "LotrModel"]

if not hasattr(BaseTuner, "_get_adapter_state_dict"):
    raise UnsupportedError(
        f"peft {peft.__version__} lets no method choose what it saves; needed 0.21.2 or later"
    )

for _mapping, _entry in (
    (PEFT_TYPE_TO_CONFIG_MAPPING, LotrConfig),
    (PEFT_TYPE_TO_TUNER_MAPPING, LotrModel),
    (PEFT_TYPE_TO_PREFIX_MAPPING, LotrModel.prefix),
):
    _mapping[LotrType.LOTR] = _entry  # pyright: ignore[reportArgumentType]
