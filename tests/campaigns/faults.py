"""Commands that are killed at a drawn point of their writing: the old or the new, never neither."""

import random
import shutil
from pathlib import Path

import numpy as np

from tests.banks.kills import LOTR, run_killed_at
from tests.campaigns import inputs
from tests.campaigns.campaign import DefectError

COMMANDS: dict[str, tuple[str, ...]] = {
    "convert": ("convert", "IN/plain", "--rel-error", "0.3", "-o", "TARGET", "--force", "-q"),
    "export": ("export", "IN/native.lotr.safetensors", "-o", "TARGET", "--force", "-q"),
    "merge": ("merge", "IN/plain", "IN/half", "-o", "TARGET", "--force", "-q"),
    "bank make": (
        "bank",
        "make",
        "IN/plain",
        "IN/half",
        "--rel-error",
        "0.3",
        "-o",
        "TARGET",
        "--force",
        "-q",
    ),
    "bank drop": ("bank", "drop", "TARGET", "half", "-q"),
    "bank rename": ("bank", "rename", "TARGET", "half", "other", "-q"),
}
OLD = {
    "convert": "native.lotr.safetensors",
    "export": "half",
    "merge": "half",
    "bank make": "bank.lotr.safetensors",
    "bank drop": "bank.lotr.safetensors",
    "bank rename": "bank.lotr.safetensors",
}
"""What stands at the target before."""

MOST_POINTS = 30


def faults(rng: random.Random, folder: Path) -> str:
    """A killed command leaves the old target or the new one; run again it ends, and clears up."""
    name = rng.choice(list(COMMANDS))
    for source in ("plain", "half"):
        inputs.copied(source, folder)
    inputs.copied("native", folder)
    old, target = inputs.sound() / OLD[name], folder / "kept" / OLD[name]
    target.parent.mkdir()
    arguments = [
        part.replace("TARGET", str(target)).replace("IN/", f"{folder}/") for part in COMMANDS[name]
    ]
    before = inputs.updates(old)
    _place(old, target)
    ended = run_killed_at(LOTR, arguments, rng.randint(1, MOST_POINTS))
    if not target.exists():
        raise DefectError(f"{name} was killed, and the target is gone")
    between = inputs.updates(target)
    if ended:
        return "ended"
    if _same(between, before):
        if not run_killed_at(LOTR, arguments, 0):
            raise DefectError(f"{name} does not end after a run that was killed")
        left = [path.name for path in target.parent.iterdir() if path != target]
        if left:
            raise DefectError(f"{name} leaves {len(left)} pieces of a run that was killed")
        return "old"
    _place(old, target)
    run_killed_at(LOTR, arguments, 0)
    if not _same(between, inputs.updates(target)):
        raise DefectError(f"{name} was killed, and the target is neither the old nor the new")
    return "new"


def _place(old: Path, target: Path) -> None:
    """The old thing at the target, whatever stands there."""
    if target.is_dir():
        shutil.rmtree(target)
    if old.is_dir():
        shutil.copytree(old, target)
    else:
        shutil.copy(old, target)


def _same(a: dict[str, dict[str, np.ndarray]], b: dict[str, dict[str, np.ndarray]]) -> bool:
    return {n: set(x) for n, x in a.items()} == {n: set(x) for n, x in b.items()} and all(
        np.array_equal(x[key], b[n][key]) for n, x in a.items() for key in x
    )
