"""Low tensor rank (LoTR) adapters: convert, compare and compute with updates that stay factored.

Everything public is named here. Importing this package loads neither torch nor plotting.
"""

from importlib.metadata import PackageNotFoundError, version

from lotr_tn import errors
from lotr_tn.checkpoints import (
    LoRAAdapter,
    LoTRAdapter,
    compare_adapters,
    convert_adapter,
    group_modules,
    load_adapter,
    save_adapter,
    to_lora,
)
from lotr_tn.decompose import hooi, hosvd, st_hosvd
from lotr_tn.formats import Certificate, Dense, LoRAStack, Tucker2
from lotr_tn.linalg import Energy, FixedRank, RelativeError, svd_of_product
from lotr_tn.ops import (
    apply,
    cosine,
    distance,
    inner,
    layer_distances,
    layer_norms,
    norm,
    parameter_count,
    subtract,
    take_layers,
    to_dense,
)

__all__ = [
    "Certificate",
    "Dense",
    "Energy",
    "FixedRank",
    "LoRAAdapter",
    "LoRAStack",
    "LoTRAdapter",
    "RelativeError",
    "Tucker2",
    "apply",
    "compare_adapters",
    "convert_adapter",
    "cosine",
    "distance",
    "errors",
    "group_modules",
    "hooi",
    "hosvd",
    "inner",
    "layer_distances",
    "layer_norms",
    "load_adapter",
    "norm",
    "parameter_count",
    "save_adapter",
    "st_hosvd",
    "subtract",
    "svd_of_product",
    "take_layers",
    "to_dense",
    "to_lora",
]

try:
    __version__ = version("lotr-tn")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"
