"""Many devices: FSDP2, which would otherwise divide U and V among blocks that all need them."""

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from lotr_tn._arguments import door
from lotr_tn.errors import OptionError
from lotr_tn.nn.training import lotr_layers, shared_parameters

Model = TypeVar("Model", bound=nn.Module)


@door
def shard_lotr(model: Model, blocks: Iterable[nn.Module], **options: Any) -> Model:
    """Apply `torch.distributed.fsdp.fully_shard` to blocks and to the model, but for U and V.

    Each process keeps all of U and V, which are small and which every block needs, and their
    gradients are averaged over the processes. Cores and base weights are sharded as usual. For
    `DistributedDataParallel` nothing like this is needed.

    Args:
        model: a model with LoTR layers.
        blocks: the modules that are sharded one by one, such as transformer blocks.
        options: those of `fully_shard`, such as `mesh`.

    Returns:
        The same model, sharded.

    Raises:
        OptionError: the model has no LoTR layer, or no process group has been started.
    """
    if not lotr_layers(model):
        raise OptionError("the model has no LoTR layer; add one before the model is sharded")
    if not dist.is_initialized():
        raise OptionError("no process group; call torch.distributed.init_process_group first")
    from torch.distributed.fsdp import fully_shard

    shared = shared_parameters(model)
    for module in (*blocks, model):
        fully_shard(module, ignored_params=shared, **options)
    mesh = options.get("mesh")
    group = None if mesh is None or mesh.ndim > 1 else mesh.get_group()

    def average(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad, group=group)
        parameter.grad /= dist.get_world_size(group)

    for parameter in shared:
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(average)
    return model
