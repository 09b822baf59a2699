"""Records of adapters: what they say, and that they grow with what there is to say."""

from pathlib import Path

import numpy as np

from lotr_tn.adapters.adapter import Layout, LoRAAdapter, LoRAModule, Target
from lotr_tn.report.records import inspection_record


def test_inspecting_many_modules_compares_each_with_few_others(monkeypatch):
    count, compared = 600, []
    up, down = np.ones((3, 1), np.float32), np.ones((1, 2), np.float32)
    modules = tuple(
        LoRAModule(Target(f"layers.{at}.q_proj", Layout(), 1), up, down, at + 1.0)
        for at in range(count)
    )
    real = Target.__eq__
    monkeypatch.setattr(Target, "__eq__", lambda a, b: compared.append(1) or real(a, b))
    record = inspection_record(LoRAAdapter(modules, {}, {}, "{}", Path("x")), "kind", 1)
    (group,) = record["groups"]
    assert group["scales"] == [at + 1.0 for at in range(count)]
    assert group["params"] == 5 * count
    assert len(compared) <= 4 * count
