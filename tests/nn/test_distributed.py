"""Many devices: two processes over loopback give what one process gives."""

import os
import subprocess
import sys

import pytest
import torch

import lotr_tn.nn as ln
from lotr_tn.errors import OptionError
from tests.nn.blocks import model, pairs
from tests.nn.two_processes import BATCHES, adapted, trained


def both(kind, folder):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.nn.two_processes", kind]
    running = [
        subprocess.Popen(
            [*command, str(rank), str(folder)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(said)
    return torch.load(folder / "state.pt", weights_only=True)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_give_what_one_gives(kind, tmp_path):
    state = both(kind, tmp_path)
    alone = trained(adapted(), BATCHES)
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(state[name], value, atol=1e-6, rtol=1e-6)
    fresh = adapted()
    fresh.load_state_dict(state)  # what one wrote is read by the other
    assert len(pairs(fresh)) == 2
    tokens = BATCHES[0]
    torch.testing.assert_close(fresh(tokens), alone(tokens), atol=1e-6, rtol=1e-6)


def test_what_sharding_needs():
    with pytest.raises(OptionError, match="has no LoTR layer"):
        ln.shard_lotr(model(), [])
    with pytest.raises(OptionError, match="no process group"):
        ln.shard_lotr(adapted(), [])
