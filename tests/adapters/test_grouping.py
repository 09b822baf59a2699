import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.adapters import Layout, LoRAModule, Target
from lotr_tn.catalogue.grouping import kind_of
from lotr_tn.errors import OptionError


def adapter(**shapes):
    """An adapter with modules by path and (m, n)."""
    modules = tuple(
        LoRAModule(
            Target(name, Layout(), 2), np.ones((m, 2), np.float32), np.ones((2, n), np.float32)
        )
        for name, (m, n) in shapes.items()
    )
    return lt.LoRAAdapter(modules, {}, {}, "{}")


GPT = adapter(
    **{
        f"h.{i}.{kind}": shape
        for i in range(3)
        for kind, shape in {
            "attn.c_attn": (9, 3),
            "attn.c_proj": (3, 3),
            "mlp.c_proj": (3, 12),
        }.items()
    }
)


def names(groups):
    return {name: [t.name for t in group.targets] for name, group in groups.items()}


def test_by_kind_with_the_shortest_names_that_differ():
    groups = names(lt.group_modules(GPT))
    assert list(groups) == ["c_attn", "attn.c_proj", "mlp.c_proj"]
    assert groups["attn.c_proj"] == [f"h.{i}.attn.c_proj" for i in range(3)]


def test_by_shape_as_in_the_paper():
    qv = adapter(
        **{f"l.{i}.{k}": (8, 8) for i in range(2) for k in ("query", "value")}, head=(4, 8)
    )
    assert names(lt.group_modules(qv, "shape")) == {
        "8x8": ["l.0.query", "l.0.value", "l.1.query", "l.1.value"],
        "4x8": ["head"],
    }


def test_by_regular_expression():
    groups = names(lt.group_modules(GPT, r"\.(attn|mlp)\."))
    assert set(groups) == {"attn[9x3]", "attn[3x3]", "mlp"}
    halves = names(lt.group_modules(GPT, r"h\.(0|1)\..*(c_attn)"))
    assert halves["0.c_attn"] == ["h.0.attn.c_attn"]
    assert halves["attn.c_attn"] == ["h.2.attn.c_attn"], "no match: by kind"


def test_one_kind_of_two_shapes_is_two_groups():
    groups = names(lt.group_modules(adapter(**{"b.0.q": (3, 4), "b.1.q": (5, 4), "b.2.q": (3, 4)})))
    assert groups == {"q[3x4]": ["b.0.q", "b.2.q"], "q[5x4]": ["b.1.q"]}


def test_bad_expressions_are_refused():
    with pytest.raises(OptionError, match="kind, shape or a regular expression"):
        lt.group_modules(GPT, "(")


def test_kind_of_drops_every_index():
    assert kind_of("down_blocks.0.attentions.1.to_q") == "down_blocks.attentions.to_q"


def test_grouping_decides_what_is_shared():
    qv = adapter(**{f"l.{i}.{k}": (8, 8) for i in range(2) for k in ("query", "value")})
    one = lt.convert_adapter(qv, (1, 1), group_by="shape")
    two = lt.convert_adapter(qv, (1, 1), group_by="kind")
    assert one.total("parameters_after") == 8 + 8 + 4
    assert two.total("parameters_after") == 2 * (8 + 8 + 2)
