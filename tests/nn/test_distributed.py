"""Many devices: two processes over loopback give what one process gives."""

import os
import subprocess
import sys

import pytest
import torch

import lotr_tn.nn as ln
from lotr_tn.errors import OptionError
from tests.nn.blocks import model, pairs
from tests.nn.two_processes import BATCHES, KINDS, adapted, trained


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two processes have left what they trained, in every way that is tested."""
    folder = tmp_path_factory.mktemp("trained")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.nn.two_processes", str(folder)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return folder


@pytest.mark.skipif(not hasattr(os, "fork"), reason="two processes are forked from one")
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_give_what_one_gives(kind, folder):
    state = torch.load(folder / f"{kind}.pt", weights_only=True)
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
