"""Hypothesis knows the formats without anyone importing the strategies."""

import subprocess
import sys
from importlib.metadata import entry_points

import pytest
from hypothesis import find
from hypothesis import strategies as st

import lotr_tn as lt
from lotr_tn.formats import Stack
from lotr_tn.ops.primitives import CORE, registered_formats
from lotr_tn.testing.formats import known_formats
from lotr_tn.testing.registration import register


def test_the_entry_point_leads_to_register():
    (found,) = [e for e in entry_points(group="hypothesis") if e.name == "lotr_tn"]
    assert found.load() is register


@pytest.mark.parametrize("kind", [*CORE, *registered_formats()], ids=lambda kind: kind.__name__)
def test_stacks_are_drawn_by_their_type(kind):
    assert type(find(st.from_type(kind), lambda stack: stack.shape[0] == 2)) is kind


def test_all_formats_are_registered():
    assert set(known_formats()) == {*CORE, *registered_formats()}
    assert find(st.from_type(Stack), lambda stack: isinstance(stack, lt.Tucker1))


def test_arguments_are_drawn_by_their_annotation():
    def layers(stack: lt.Tucker2) -> int:
        return stack.shape[0]

    assert find(st.builds(layers), lambda count: count == 3) == 3


def test_importing_hypothesis_imports_nothing_heavy():
    script = (
        "import sys\n"
        "from hypothesis import strategies as st\n"
        "import lotr_tn\n"
        "heavy = {'torch', 'peft', 'scipy', 'lotr_tn.testing.strategies', 'lotr_tn.testing.case'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "strategy = st.from_type(lotr_tn.LoRAStack)\n"
        "strategy.validate()\n"
        "assert 'lotr_tn.testing.strategies' in sys.modules\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
