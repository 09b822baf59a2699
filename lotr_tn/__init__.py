"""Low tensor rank (LoTR) adapters: convert, compare and compute with updates that stay factored.

What most people need is named here; the rest stands in its room, such as `lotr_tn.banks` or
`lotr_tn.nn`, which is loaded when it is asked for. Importing this package loads neither torch nor
plotting.
"""

import importlib
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lotr_tn import errors
from lotr_tn.adapters import LoRAAdapter, LoTRAdapter, group_modules, to_lora
from lotr_tn.analysis import compress
from lotr_tn.contraction import plan
from lotr_tn.conversion import convert_adapter, merge_adapters
from lotr_tn.decompose import (
    canonicalize,
    cp,
    hooi,
    hosvd,
    low_rank_tucker2,
    merge,
    mpo,
    st_hosvd,
    tensor_train,
    tucker1,
)
from lotr_tn.decompose import round_stack as round
from lotr_tn.doors import load_adapter, load_stack, save_adapter, save_stack
from lotr_tn.formats import (
    CP,
    Certificate,
    Dense,
    LoRAStack,
    LowRankTucker2,
    TensorTrain,
    Tucker1,
    Tucker2,
)
from lotr_tn.inspection import analyze_adapters, compare_adapters
from lotr_tn.linalg import (
    Budget,
    Energy,
    FixedRank,
    RankLimits,
    RelativeError,
    TotalError,
    svd_of_product,
)
from lotr_tn.ops import (
    add,
    apply,
    apply_transpose,
    as_linear_operator,
    astype,
    concat_layers,
    convert,
    cosine,
    distance,
    gram,
    inner,
    khatri_rao,
    layer_distances,
    layer_norms,
    layer_singular_values,
    merge_break_even,
    norm,
    parameter_count,
    scale,
    subtract,
    take_layers,
    to_dense,
    to_device,
    transpose,
)

__all__ = [
    "CP",
    "Budget",
    "Certificate",
    "Dense",
    "Energy",
    "FixedRank",
    "LoRAAdapter",
    "LoRAStack",
    "LoTRAdapter",
    "LowRankTucker2",
    "RankLimits",
    "RelativeError",
    "TensorTrain",
    "TotalError",
    "Tucker1",
    "Tucker2",
    "add",
    "analyze_adapters",
    "apply",
    "apply_transpose",
    "as_linear_operator",
    "astype",
    "canonicalize",
    "compare_adapters",
    "compress",
    "concat_layers",
    "convert",
    "convert_adapter",
    "cosine",
    "cp",
    "distance",
    "errors",
    "gram",
    "group_modules",
    "hooi",
    "hosvd",
    "inner",
    "khatri_rao",
    "layer_distances",
    "layer_norms",
    "layer_singular_values",
    "load_adapter",
    "load_stack",
    "low_rank_tucker2",
    "merge",
    "merge_adapters",
    "merge_break_even",
    "mpo",
    "norm",
    "parameter_count",
    "plan",
    "round",
    "save_adapter",
    "save_stack",
    "scale",
    "st_hosvd",
    "subtract",
    "svd_of_product",
    "take_layers",
    "tensor_train",
    "to_dense",
    "to_device",
    "to_lora",
    "transpose",
    "tucker1",
]

ROOMS = (
    "adapters",
    "analysis",
    "banks",
    "catalogue",
    "contraction",
    "decompose",
    "formats",
    "inspection",
    "linalg",
    "nn",
    "ops",
    "peft",
    "testing",
)
"""Groups of names, each a package that is loaded at its first use."""

MOVED = {
    "analysis": "Clustering ErrorSurface Overlaps RankPair Spectra break_even_layers "
    "cluster_layers error_surface mode_spectra principal_angles subspace_overlaps",
    "banks": "Bank add_adapters=append_adapters compact_bank make_bank=convert_adapters "
    "drop_adapters load_bank rename_adapter verify_bank",
    "catalogue": "Architecture CountTable ModuleShape architecture architecture_from_config "
    "architecture_from_shapes count_table operations_table sums_table",
    "contraction": "ContractionPlan",
    "decompose": "Initialisation WeightInitialisation first_step_gain hooi_in_metric "
    "initial_factors initial_factors_of_weights metric_distances random_factors regauge",
    "inspection": "Analysis Likeness compare_many",
}
"""Names that stood here before rooms had names of their own, and what they were called."""


def __getattr__(name: str) -> Any:
    """A room, or a name that has moved into one."""
    if name in ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    for room, moved in MOVED.items():
        for entry in moved.split():
            new, _, old = entry.partition("=")
            if name == (old or new):
                warnings.warn(
                    f"lotr_tn.{name} is now lotr_tn.{room}.{new}", DeprecationWarning, stacklevel=2
                )
                return getattr(importlib.import_module(f"{__name__}.{room}"), new)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *ROOMS})


try:
    __version__ = version("lotr-tn")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"
