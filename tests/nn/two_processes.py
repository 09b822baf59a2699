"""Two processes on one machine train the model of `blocks`; run by `test_distributed`."""

import os
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint import state_dict

import lotr_tn.nn as ln
from tests.nn.blocks import model, pairs, shake

KINDS = "ddp", "fsdp2"
BATCHES = torch.arange(3 * 8 * 5).reshape(3, 8, 5) * 7 % 17


def adapted():
    made = ln.add_lotr(
        model(dtype=torch.float64), ["q", "v", "embed"], r=(3, 2), group_by="shape", seed=2
    )
    return shake(made)


def trained(network, batches):
    """Three steps; the mean over the rows makes a share of them a share of the gradient."""
    optimiser = torch.optim.AdamW(ln.parameter_groups(network, lr=0.02, core_lr=0.05))
    for batch in batches:
        network(batch).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    return network


def wrapped(kind, network):
    if kind == "ddp":
        return nn.parallel.DistributedDataParallel(network)
    return ln.shard_lotr(network, network.blocks)


def both(folder: Path) -> int:
    """Run the second in a process forked from the first, as both load the same libraries."""
    torch.set_num_threads(1)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            main(1, folder)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    main(0, folder)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(rank: int, folder: Path) -> None:
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    for kind in KINDS:
        run(kind, rank, folder)
    dist.barrier()
    dist.destroy_process_group()


def run(kind: str, rank: int, folder: Path) -> None:
    plain = adapted()
    network = trained(wrapped(kind, plain), BATCHES[:, rank::2])
    assert len(pairs(plain)) == 2
    whole = state_dict.StateDictOptions(full_state_dict=True)
    state = state_dict.get_model_state_dict(network, options=whole)
    if rank == 0:
        torch.save(state, folder / f"{kind}.pt")


if __name__ == "__main__":
    sys.exit(both(Path(sys.argv[1])))
