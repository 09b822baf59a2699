"""What every trainable form must keep: a case for one form, whose subclasses say how it is made."""

import copy
import io
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import nn

import lotr_tn as lt
import lotr_tn.nn as ln
from lotr_tn.errors import FormatError, OptionError, UnsupportedError
from tests.nn.blocks import TOKENS, model, shake

TARGETS = ["q", "v"]


class FormLaws:
    """The laws. A subclass names the form, its options, and starts of zero and of no zero."""

    form: ClassVar[type[ln.Form]]
    options: ClassVar[dict]
    zero: ClassVar[str]
    random: ClassVar[str]

    def adapted(self, targets=TARGETS, init=None, seed=0, dtype=torch.float64, **more):
        """A model of float64 with the form in it, its group of queries and values by shape."""
        made = ln.add(
            model(dtype=dtype), targets, self.form, self.options,
            **{"init": init or self.random, "group_by": "shape", "alpha": 3.0, "seed": seed} | more,
        )  # fmt: skip
        return shake(made, size=0.1) if init is None else made

    def layers(self, **more):
        """The adapted layers of such a model."""
        return list(ln.lotr_layers(self.adapted(**more)).values())

    def parameters(self, adapted):
        """Everything of the form that is trained, by name."""
        return {n: p for n, p in adapted.named_parameters() if p.requires_grad}

    def test_forward_is_the_product_with_delta(self):
        x = torch.randn(3, 5, 8, dtype=torch.float64)
        for layer in self.layers():
            form, own, site = (
                layer.form_of("default"),
                layer.own_of("default"),
                layer.sites["default"],
            )
            delta = form.delta(own, site)
            assert delta.shape == form.shape
            assert delta.norm() > 0.1
            torch.testing.assert_close(form(x, own, site), x @ delta.mT)
            torch.testing.assert_close(form.delta(own, site, 2.5), 2.5 * delta)
            result = torch.randn(3, 5, 12, dtype=torch.float64)
            for siblings in (1, 2):
                there = replace(site, siblings=siblings)
                added = form.added(result, x, own, there, 0.7)
                torch.testing.assert_close(added, result + 0.7 * x @ delta.mT)

    def test_rows_are_those_of_delta(self):
        index = torch.tensor([[0, 3], [16, 3]])
        if self.form.rows is ln.Form.rows:
            with pytest.raises(UnsupportedError, match="adapts no embeddings; leave them out"):
                self.adapted(["embed", "q"])
            layer = self.layers()[0]
            with pytest.raises(UnsupportedError, match="adapts no embeddings"):
                layer.form_of("default").rows(index, layer.own_of("default"), ln.Site())
            return
        (layer,) = self.layers(targets=["embed"])
        form, own, site = layer.form_of("default"), layer.own_of("default"), layer.sites["default"]
        delta = form.delta(own, site)
        torch.testing.assert_close(form.rows(index, own, site), delta.mT[index])
        result = torch.randn(2, 2, 8, dtype=torch.float64)
        added = form.added_rows(result, index, own, site, 0.7)
        torch.testing.assert_close(added, result + 0.7 * delta.mT[index])
        base = layer.base_layer(TOKENS)
        torch.testing.assert_close(layer(TOKENS), base + layer.update_of("default").mT[TOKENS])

    def test_stack_is_delta(self):
        adapted = self.adapted()
        (stack,) = ln.stacks_of(adapted).values()
        updates = [layer.update_of("default") for layer in ln.lotr_layers(adapted).values()]
        torch.testing.assert_close(lt.to_dense(stack), torch.stack(updates))
        x = torch.randn(4, 8, dtype=torch.float64)
        for index, update in enumerate(updates):
            torch.testing.assert_close(lt.apply(stack, x, layer=index), x @ update.mT)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_zero_start_leaves_the_model_bit_for_bit(self, dtype):
        made = self.adapted(init=self.zero, dtype=dtype)
        assert {p.dtype for p in made.parameters()} == {dtype}
        assert torch.equal(made(TOKENS), model(dtype=dtype)(TOKENS))
        made(TOKENS).square().sum().backward()
        gradients = [p.grad for p in self.parameters(made).values() if p.grad is not None]
        assert any(gradient.abs().sum() > 0 for gradient in gradients)

    def test_a_start_is_divided_by_its_scale(self):
        updates = [
            {n: v.update_of("default") for n, v in ln.lotr_layers(made).items()}
            for made in (self.adapted(init=self.random, alpha=a) for a in (None, 3.0))
        ]
        for path, update in updates[0].items():
            torch.testing.assert_close(updates[1][path], update)

    def test_starts_are_determined_by_the_seed(self):
        one, again, other = (
            list(self.parameters(self.adapted(init=self.random, seed=s)).values())
            for s in (1, 1, 2)
        )
        assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

    def test_load_takes_back_what_stack_gave(self):
        adapted, fresh = self.adapted(), self.adapted(seed=9, alpha=0.7)
        before = fresh(TOKENS)
        ln.set_stacks(fresh, ln.stacks_of(adapted))
        assert not torch.allclose(fresh(TOKENS), before)
        torch.testing.assert_close(fresh(TOKENS), adapted(TOKENS))
        layers = list(ln.lotr_layers(adapted).values())
        form, owns = layers[0].form_of("default"), [x.own_of("default") for x in layers]
        values = {n: x.clone() for n, x in form.shared().items()}
        loaded = form.load(form.stack(owns, [x.sites["default"] for x in layers]))
        for own, back in zip(owns, loaded, strict=True):
            assert own.keys() == back.keys()
            assert all(torch.equal(own[n], back[n]) for n in own)
        assert all(torch.equal(x, values[n]) for n, x in form.shared().items())

    def test_gradients_are_those_of_differences(self):
        layer = self.layers()[2]
        names = [n for n, p in layer.named_parameters() if p.requires_grad]
        values = [layer.get_parameter(n).detach().clone().requires_grad_() for n in names]
        x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)

        def run(x, *values):
            return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

        assert torch.autograd.gradcheck(run, (x, *values))

    def test_what_is_shared_is_one_parameter_and_saved_once(self):
        adapted = self.adapted()
        (form,) = ln.shared_factors(adapted).values()
        layers = list(ln.lotr_layers(adapted).values())
        assert all(layer.form_of("default") is form for layer in layers)
        owns = [p for layer in layers for p in layer.own_of("default").values()]
        count = sum(p.numel() for p in (*form.parameters(), *owns))
        assert ln.parameter_count(adapted) == count
        assert (
            sum(p.numel() for g in ln.parameter_groups(adapted, 1.0) for p in g["params"]) == count
        )
        assert ln.shared_parameters(adapted) == set(form.parameters())

    def test_copies_keep_sharing(self):
        adapted = self.adapted()
        adapted(TOKENS)
        buffer = io.BytesIO()
        torch.save(adapted, buffer)
        buffer.seek(0)
        restored = self.adapted(seed=4)
        restored.load_state_dict(adapted.state_dict())
        for made in (
            copy.deepcopy(adapted), torch.load(buffer, weights_only=False), restored,
            copy.deepcopy(adapted).float().double(),
        ):  # fmt: skip
            held = {id(x.form_of("default")) for x in ln.lotr_layers(made).values()}
            assert len(held) == 1
            assert id(adapted.blocks[0].q.form_of("default")) not in held
            assert len(self.parameters(made)) == len(self.parameters(adapted))
            torch.testing.assert_close(made(TOKENS), adapted(TOKENS), atol=1e-5, rtol=1e-5)

    def test_merging_switching_and_taking_away(self):
        adapted = self.adapted()
        wanted, base = adapted(TOKENS), model(dtype=torch.float64)(TOKENS)
        torch.testing.assert_close(ln.merged_copy(adapted)(TOKENS), wanted)
        ln.merge(adapted)
        torch.testing.assert_close(adapted(TOKENS), wanted)
        ln.unmerge(adapted)
        with ln.disabled(adapted):
            torch.testing.assert_close(adapted(TOKENS), base)
        torch.testing.assert_close(ln.remove_lotr(adapted)(TOKENS), base)

    def test_parts_are_trained_alone(self):
        shared, own = self.form.part_names
        adapted = self.adapted()
        ids = {id(p) for p in ln.shared_parameters(adapted)}
        for what in ("all", shared, own):
            ln.train_only(adapted, what)
            free = {id(p) for p in self.parameters(adapted).values()}
            assert free <= ids if what == shared else what == "all" or not free & ids
        with pytest.raises(OptionError, match=f"train must be all, {own} or {shared}; found 'x'"):
            ln.train_only(adapted, "x")

    def test_what_does_not_fit_is_refused(self):
        layer = self.layers()[0]
        form, own = layer.form_of("default"), layer.own_of("default")
        with pytest.raises(
            FormatError, match=r"layers of shape \(12, 8\); this layer has \(5, 4\)"
        ):
            ln.AdaptedLinear(nn.Linear(4, 5)).hold("a", form, own)
        with pytest.raises(FormatError, match=r"a layer has .* of its own; found"):
            ln.AdaptedLinear(nn.Linear(8, 12)).hold("a", form, {**own, "strange": torch.ones(1)})
        with pytest.raises(OptionError, match=r"init must be .*; found 'x'"):
            self.adapted(init="x")
