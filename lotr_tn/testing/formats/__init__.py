"""What the laws know of each format: how it is drawn, its dense truth, its changes of gauge."""

from lotr_tn.testing.formats.cp import CP_LAWS
from lotr_tn.testing.formats.dense import DENSE
from lotr_tn.testing.formats.lora import LORA
from lotr_tn.testing.formats.low_rank_tucker2 import LOW_RANK_TUCKER2
from lotr_tn.testing.formats.registry import (
    Arrays,
    Cut,
    FormatLaws,
    Sizes,
    known_formats,
    laws_of,
    register_format_laws,
    unregister_format_laws,
)
from lotr_tn.testing.formats.tensor_train import TENSOR_TRAIN
from lotr_tn.testing.formats.tucker1 import TUCKER1
from lotr_tn.testing.formats.tucker2 import TUCKER2

__all__ = [
    "Arrays",
    "Cut",
    "FormatLaws",
    "Sizes",
    "known_formats",
    "laws_of",
    "register_format_laws",
    "unregister_format_laws",
]

for _laws in (DENSE, LORA, TUCKER1, TUCKER2, LOW_RANK_TUCKER2, CP_LAWS, TENSOR_TRAIN):
    register_format_laws(_laws)
