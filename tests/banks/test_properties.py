"""Any sequence of changes of a bank, against a plain model of it: dense updates by name."""

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import lotr_tn as lt
from lotr_tn._arrays import UNIT_ROUNDOFF
from tests.banks import fleets

KINDS = {
    "q": ((9, 7), fleets.Layout()),
    "v": ((5, 7), fleets.Layout()),
    "g": ((6, 8), fleets.Layout("conv", (2,), 2)),
}
MODULES = fleets.paths(KINDS, layers=1)
EPSILONS = (1e-5, 0.02, 0.1, 0.4)
MOST = 7


def drawn(draw, seed):
    """A small adapter of any kind that may be in a bank; all have the first module in common."""
    first, *others = MODULES
    only = draw(st.sampled_from([*([list(MODULES)] * 4), [first], *([first, x] for x in others)]))
    one = fleets.adapter(
        seed,
        planted=fleets.spaces(0, MODULES, 3) if draw(st.booleans()) else None,
        modules={path: MODULES[path] for path in only},
        rank=draw(st.integers(1, 3)),
        noise=draw(st.sampled_from([0.0, 1e-3, 0.1])),
        dtype=draw(st.sampled_from(["float32", "float32", "float16", "bfloat16", "float64"])),
        scale=draw(st.sampled_from([1.0, 0.7, -2.0])),
        size=draw(st.sampled_from([1.0, 1.0, 1e-3, 30.0])),
        extras=heads(draw(st.sampled_from(["none", "common", "own"])), seed),
    )
    if draw(st.integers(0, 7)) == 0:
        return fleets.without_update(one)
    return fleets.partly_zero(one) if draw(st.integers(0, 5)) == 0 else one


def heads(which, seed):
    """Other tensors: none, the one that others have too, or its own."""
    if which == "none":
        return {}
    return {fleets.HEAD: fleets.head(0 if which == "common" else seed + 1)}


class BankMachine(RuleBasedStateMachine):
    """A bank on disk, and beside it what its adapters were."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "bank.lotr.safetensors"
        self.originals: dict[str, dict[str, np.ndarray]] = {}
        self.extras: dict[str, dict] = {}
        self.seed = 0

    def teardown(self):
        shutil.rmtree(self.folder, ignore_errors=True)

    def named(self, one):
        """A new name for an adapter, which the model takes in."""
        self.seed += 1
        name = f"n{self.seed}"
        self.originals[name] = fleets.dense(one)
        self.extras[name] = fleets.extras_of(one)
        return name

    def exports(self):
        return fleets.exports(lt.banks.load_bank(self.path), self.folder / "out")

    def require_as_before(self, before, gone: Iterable[str] = ()):
        after = self.exports()
        for name in before.keys() - set(gone):
            assert after[name] == before[name], f"{name} has changed"

    @initialize(
        data=st.data(),
        count=st.integers(1, 4),
        epsilon=st.sampled_from(EPSILONS),
        stack=st.sampled_from(["auto", "adapters", "layers", "all"]),
        format=st.sampled_from(["auto", "auto", "lotr", "lotr-low-rank", "shared-in", "lora"]),
    )
    def convert(self, data, count, epsilon, stack, format):
        fleet = {}
        for _ in range(count):
            one = drawn(data.draw, self.seed)
            fleet[self.named(one)] = one
        rule = lt.RelativeError(epsilon)
        made = lt.banks.make_bank(fleet, self.path, rule, stack=stack, format=format)
        assert not made.met or max(made.errors.values()) <= epsilon

    @precondition(lambda self: len(self.originals) < MOST)
    @rule(data=st.data(), error=st.sampled_from([None, 1e-3, 0.2]), count=st.integers(1, 2))
    def append(self, data, error, count):
        before, fleet = self.exports(), {}
        for _ in range(count):
            one = drawn(data.draw, self.seed)
            fleet[self.named(one)] = one
        done = lt.banks.add_adapters(self.path, fleet, rule=error and lt.RelativeError(error))
        asked = error or done.bank.asked["relative_error"]
        figures = [done.bank.figures(name) for name in fleet]
        assert done.met == all(one.relative_error <= asked for one in figures)
        self.require_as_before(before)

    @precondition(lambda self: len(self.originals) > 1)
    @rule(data=st.data())
    def drop(self, data):
        before = self.exports()
        most = len(self.originals) - 1
        names = st.sampled_from(sorted(self.originals))
        gone = data.draw(st.lists(names, min_size=1, max_size=most, unique=True))
        lt.banks.drop_adapters(self.path, gone)
        for name in gone:
            del self.originals[name], self.extras[name]
        self.require_as_before(before, gone)

    @rule(data=st.data())
    def rename(self, data):
        before = self.exports()
        old = data.draw(st.sampled_from(sorted(self.originals)))
        self.seed += 1
        new = f"renamed {self.seed}/ä"
        lt.banks.rename_adapter(self.path, old, new)
        self.originals[new], self.extras[new] = self.originals.pop(old), self.extras.pop(old)
        assert self.exports()[new] == before.pop(old)
        self.require_as_before(before)

    @precondition(lambda self: 1 < len(self.originals) < MOST)
    @rule(data=st.data(), weights=st.tuples(*[st.sampled_from([-1.0, 0.3, 1.0])] * 2))
    def merge(self, data, weights):
        before, bank = self.exports(), lt.banks.load_bank(self.path)
        names = st.sampled_from(sorted(self.originals))
        pair = data.draw(st.lists(names, min_size=2, max_size=2, unique=True))
        weighed = dict(zip(pair, weights, strict=True))
        adapters = {name: bank[name] for name in pair}
        one = lt.merge_adapters(adapters, weighed, extras_from=pair[0], dtype="float64").adapter
        wanted: dict[str, np.ndarray] = {}
        for name in pair:
            for path, w in fleets.dense(adapters[name]).items():
                wanted[path] = wanted.get(path, 0.0) + weighed[name] * w
        found, size = fleets.dense(one), fleets.squared(wanted) ** 0.5
        parts = sum(fleets.squared(fleets.dense(x)) ** 0.5 for x in adapters.values())
        gaps = {path: found[path] - wanted[path] for path in wanted}
        assert set(found) == set(wanted)
        assert fleets.squared(gaps) ** 0.5 <= 1e-6 * max(size, parts)
        lt.banks.add_adapters(self.path, {self.named(one): one}, rule=lt.RelativeError(0.05))
        self.require_as_before(before)

    @rule(error=st.sampled_from([None, 0.05, 0.3]))
    def compact(self, error):
        before = self.path.stat().st_size
        old = {n: lt.banks.load_bank(self.path).figures(n).bound for n in self.originals}
        done = lt.banks.compact_bank(self.path, rule=error and lt.RelativeError(error))
        assert done.bytes_before == before
        assert done.bytes_after == self.path.stat().st_size
        asked = done.bank.asked["relative_error"] if error is None else error
        dtype = done.bank.dtype
        for name, bound in old.items():
            most = max(asked, bound) + 4 * UNIT_ROUNDOFF[dtype]
            now = done.bank.figures(name).bound
            assert now <= most * (1 + 1e-9), (name, now, most, bound, dtype)

    @invariant()
    def everything_is_as_it_says(self):
        if not self.path.exists():
            return
        bank = lt.banks.load_bank(self.path)
        assert lt.banks.verify_bank(self.path) == []
        assert set(bank) == set(self.originals)
        for name, wanted in self.originals.items():
            one, figures = bank[name], bank.figures(name)
            found = fleets.error(fleets.dense(one), wanted)
            assert found <= figures.bound * (1 + 1e-9) + 1e-12
            if figures.bound == figures.relative_error:
                assert abs(found - figures.relative_error) <= 1e-4 * found + 1e-12
            assert fleets.extras_of(one) == self.extras[name]
        assert [file.name for file in self.folder.iterdir() if file.is_file()] == [self.path.name]


def test_any_sequence_of_changes_keeps_every_promise():
    few = settings(stateful_step_count=6)
    run_state_machine_as_test(BankMachine, settings=few)
