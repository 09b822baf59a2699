"""The laws of forms: the library's own, and two that it does not know."""

import pytest
import torch

import lotr_tn as lt
import lotr_tn.nn as ln
from lotr_tn.errors import OptionError
from lotr_tn.nn.form import FORMS
from tests.nn.blocks import TOKENS, model
from tests.nn.form_laws import FormLaws
from tests.nn.own_forms import Alone, Sited


class TestTucker2(FormLaws):
    form, options = ln.Tucker2Form, {"ranks": (3, 2)}
    zero, random = "balanced", "updates"

    def adapted(self, *args, init=None, seed=0, **more):
        """Continued updates are a start whose parts are all other than zero."""
        if init in (None, "updates"):
            generator = torch.Generator().manual_seed(7 + seed)
            shapes = {f"blocks.{i}.{kind}": (12, 8) for i in range(3) for kind in "qv"}
            init = {
                path: tuple(torch.randn(s, generator=generator) for s in ((m, 4), (4, n)))
                for path, (m, n) in (shapes | {"embed": (8, 17)}).items()
            }
        return super().adapted(*args, init=init, seed=seed, **more)


class TestSited(FormLaws):
    form, options, zero, random = Sited, {"rank": 3}, "zero", "random"


class TestAlone(FormLaws):
    form, options, zero, random = Alone, {"rank": 2}, "zero", "random"


def test_a_form_is_known_by_its_name():
    assert FORMS["lotr"] is ln.Tucker2Form
    one = ln.add(model(), ["q"], "lotr", {"ranks": (3, 2)}, init="zero-u")
    other = ln.add_lotr(model(), ["q"], r=(3, 2), init="zero-u")
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    with pytest.raises(OptionError, match=r"form must be .*lotr.*, or a Form; found 'lora'"):
        ln.add(model(), ["q"], "lora", {})

    class Other(Alone):
        method = ln.Tucker2Form.method

    with pytest.raises(OptionError, match="a form is called 'lotr' already"):
        ln.register(Other)
    assert FORMS["lotr"] is ln.Tucker2Form


def test_forms_go_beside_each_other_in_one_model():
    adapted = ln.add_lotr(model(), ["q", "v"], r=2, group_by="shape", init="zero-u")
    ln.add(adapted, ["q", "out"], Sited, {"rank": 3}, group_options={"q": {"rank": 2}},
           init="random", name="sited")  # fmt: skip
    ln.add(adapted, ["v"], Alone, {"rank": 1}, init="random", name="alone")
    names = ["default", "sited", "alone"]
    alone = {}
    for name in names:
        ln.set_active(adapted, name)
        alone[name] = ln.merged_copy(adapted).blocks[1]
    ln.set_active(adapted, *names)
    together = ln.merged_copy(adapted).blocks[1]
    base = model().blocks[1]
    for part in ("q", "v", "out"):
        plain = getattr(base, part).weight
        parts = [getattr(alone[name], part).weight - plain for name in names]
        torch.testing.assert_close(getattr(together, part).weight, plain + sum(parts))
    assert {n: type(s) for n, s in ln.stacks_of(adapted, "alone").items()} == {"v": lt.LoRAStack}
    assert {s.ranks for s in ln.stacks_of(adapted, "sited").values()} == {(2, 2), (3, 3)}
    assert {g["name"] for g in ln.parameter_groups(adapted, 1.0)} == {
        "factors", "cores", "shared", "own",
    }  # fmt: skip
    with pytest.raises(OptionError, match="group 'v' is a LoRAStack; found a Tucker2"):
        ln.set_stacks(adapted, {"v": lt.decompose.random_factors((3, 12, 8), (1, 1))}, "alone")
    with pytest.raises(OptionError, match="rank are given for z; the groups are q"):
        ln.add(adapted, ["q"], Sited, {"rank": 3}, group_options={"z": {"rank": 1}}, name="x")


@pytest.mark.parametrize("form", [Sited, Alone])
def test_a_form_of_ones_own_learns(form):
    adapted = ln.add(model(), ["q", "v"], form, {"rank": 2}, group_by="shape", dropout=0.1)
    wanted = TOKENS % 5
    optimiser = torch.optim.Adam(ln.parameter_groups(adapted, lr=0.02, core_lr=0.03))
    losses = []
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(adapted(TOKENS).mT, wanted)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.8 * losses[0]


def test_a_layer_knows_its_site():
    adapted = ln.add(model(), ["q", "v"], Sited, {"rank": 1}, group_by="shape")
    sites = {path: layer.sites["default"] for path, layer in ln.lotr_layers(adapted).items()}
    assert [(s.index, s.coordinates, s.siblings) for s in sites.values()] == [
        (2 * i + k, (i, k), 2) for i in range(3) for k in range(2)
    ]
