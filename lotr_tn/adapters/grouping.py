"""Which modules are stacked together."""

from collections.abc import Mapping
from types import MappingProxyType

from lotr_tn._arguments import door
from lotr_tn.adapters.adapter import LoRAAdapter, LoRAGroup, LoTRAdapter, LoTRGroup
from lotr_tn.catalogue.grouping import group_paths


@door
def group_modules(
    adapter: LoRAAdapter | LoTRAdapter, by: str = "kind"
) -> Mapping[str, LoRAGroup] | Mapping[str, LoTRGroup | LoRAGroup]:
    """The stacks of an adapter, by name, in the order of the file.

    Args:
        adapter: any adapter. A LoTR adapter has its groups already, and `by` has no effect.
        by: `kind`: same path apart from block indices, and same shape. `shape`: same (m, n), as in
            the LoTR paper, where queries and values share one pair of factors. Anything else is a
            regular expression, searched in each path: modules with equal captured groups (or equal
            matches, where it captures nothing) and equal shape go together, and modules without a
            match are grouped by kind.

    Returns:
        Groups by name. A name is the shortest end of the path that tells the groups apart, such as
        `q_proj` or `attn.c_proj`; or a shape, such as `768x768`.

    Raises:
        OptionError: the regular expression is not valid.

    Cost: none; a group's stack is built when it is asked for.

    Source: Bershatsky et al. (2024) for `shape`.
    """
    return adapter.groups if isinstance(adapter, LoTRAdapter) else lora_groups(adapter, by)


def lora_groups(adapter: LoRAAdapter, by: str) -> Mapping[str, LoRAGroup]:
    """The stacks of a LoRA adapter, as `group_modules` tells."""
    members = group_paths([(module.target.name, module.shape) for module in adapter.modules], by)
    return MappingProxyType(
        {
            name: LoRAGroup(name, tuple(adapter.modules[position] for position in found))
            for name, found in members.items()
        }
    )
