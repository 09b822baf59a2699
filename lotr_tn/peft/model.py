"""The tuner: adapters put into a model by PEFT, and its file's tensors."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, final

import peft.mapping
import torch
from peft.tuners.lora import LoraModel
from peft.tuners.tuners_utils import BaseTuner, _maybe_include_all_linear_layers
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn

from lotr_tn.adapters.adapter import LoRAAdapter
from lotr_tn.adapters.as_lora import to_lora
from lotr_tn.adapters.config_fields import require_plain_meaning
from lotr_tn.doors.loading import load_adapter
from lotr_tn.errors import OptionError, UnsupportedError
from lotr_tn.nn.bases import base_of, is_embedding, lies_transposed, weight_of
from lotr_tn.nn.form import Form, Own, register
from lotr_tn.nn.holding import AdaptedLayer
from lotr_tn.nn.model import move_out, require_untied
from lotr_tn.nn.planning import Place, Updates
from lotr_tn.nn.training import lotr_layers
from lotr_tn.peft.config import AdapterConfig, kind
from lotr_tn.peft.layer import TunerLayer, tuner_layer

C = TypeVar("C", bound=type[AdapterConfig])


@final
class FormModel(BaseTuner):
    """The model inside a `PeftModel` whose config is a `LotrConfig`, or one of another form.

    PEFT makes it. Forms are held by the layers alone, each group's one module by all of its
    layers, so there is nothing here that could get out of step with them.
    """

    tuner_layer_cls = TunerLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    _add_modules_to_save_to_tie: Any = LoraModel._add_modules_to_save_to_tie

    def __init__(self, model: nn.Module, peft_config: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(peft_config, AdapterConfig):  # a PeftModel gives a dictionary
            _require_own_loader(peft_config)
        super().__init__(model, peft_config, *args, **kwargs)

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        """Put an adapter in; the whole of it is planned before any layer is changed."""
        config = self.peft_config[adapter_name]
        assert isinstance(config, AdapterConfig)
        self.prefix, self._places = f"{config.form.method.name}_", dict[str, Place]()
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        if config.init == "principal" and not self._from_file:
            layers = lotr_layers(self.model)
            for paths in (config.groups or {}).values():
                move_out([layers[path] for path in paths], adapter_name)
        del self._places

    def merge_and_unload(
        self,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        """The base model with adapters, the active ones where none is named, in its weights."""
        self._require_untied(adapter_names)
        for layer in lotr_layers(self.model).values():
            layer.give_all_back(but=adapter_names or self.active_adapters)
        return super().merge_and_unload(progressbar, safe_merge, adapter_names)

    def merge_adapter(
        self, adapter_names: list[str] | None = None, safe_merge: bool = False
    ) -> None:
        """Add adapters, the active ones where none is named, to the base weights."""
        self._require_untied(adapter_names)
        super().merge_adapter(adapter_names, safe_merge)

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refused: a sum of adapters with other bases is none with the same ranks."""
        raise OptionError(
            "add_weighted_adapter is for LoRA alone; save the adapters and add them, exactly and "
            "with any weights, with lotr merge (lotr_tn.merge_adapters): it gives a LoRA"
        )

    def _require_untied(self, names: list[str] | None) -> None:
        """Refuse to merge into weights that other modules use as their own."""
        merged = set(names or self.active_adapters)
        layers = lotr_layers(self.model)
        require_untied(self.model, {k: x for k, x in layers.items() if merged & x.scaling.keys()})

    def _add_targets_to_tie(self, peft_config: Any, tied_weight_keys: list[str]) -> None:
        """Refuse to tie what is adapted: one update would have to be two layers'."""
        raise OptionError(
            f"ensure_weight_tying cannot tie the update of an embedding to "
            f"{', '.join(sorted(tied_weight_keys))}; name the embedding in modules_to_save or "
            "trainable_token_indices instead, or leave ensure_weight_tying out"
        )

    def _replace_module(self, parent: Any, child_name: str, new_module: Any, child: Any) -> None:
        """Put a module in another's place; PEFT's own way takes it that each has one weight."""
        if isinstance(new_module, TunerLayer):
            super()._replace_module(parent, child_name, new_module, child)
        else:  # a base layer comes back as it is, and so does a head of several layers
            setattr(parent, child_name, new_module)

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        config = _maybe_include_all_linear_layers(peft_config, model)
        assert isinstance(config, AdapterConfig)
        plan = config.plan()
        continued = config.init not in plan.form.starts
        replace(plan, init={} if continued else plan.init).require_sense()
        modules = self._targets(config, model)
        if not modules:
            return  # PEFT says so, and why
        self._from_file = config.groups is not None and not config._put_in
        if self._from_file:  # all values come from the file
            _require_listed(config, modules)
            plan = replace(plan, group_by=config.groups, init=plan.form.starts[0])
        groups = plan.groups(modules)
        if config.init == "principal":
            require_untied(model, modules)
        if continued and not self._from_file:
            plan = replace(plan, init=_updates(config.init, plan.form))
        self._places = plan.places(groups, modules)
        config.groups = {name: list(group.modules) for name, group in groups.items()}
        config._put_in = True
        bases = [base_of(module) for module in modules.values()]
        config.fan_in_fan_out = {lies_transposed(b) for b in bases if not is_embedding(b)} == {True}
        if continued:  # the file will hold it; where it came from may not be there any more
            config.init = plan.form.starts[0]

    def _targets(self, config: AdapterConfig, model: nn.Module) -> dict[str, nn.Module]:
        named = dict(model.named_modules())
        inside = tuple(f"{k}." for k, m in named.items() if isinstance(m, TunerLayer))
        return {
            key: module
            for key, module in named.items()
            if key
            and not key.startswith(inside)
            and self._check_target_module_exists(config, key)  # false for those excluded
        }

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if current_key not in self._places:
            raise OptionError(f"{current_key} is no target of the config; name it there")
        layer = target if isinstance(target, TunerLayer) else tuner_layer(target)
        layer.hold(adapter_name, **self._places[current_key])
        if layer is target:
            layer.set_trainable(adapter_name, adapter_name in self.active_adapters)
        else:
            layer.set_adapter(self.active_adapters)
            layer.train(target.training)
            self._replace_module(parent, target_name, layer, target)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Refuse what PEFT would otherwise drop without a word."""
        if kwargs.get("adapter_names") is not None:
            raise OptionError(
                "adapter_names, an adapter for each row, is for LoRA alone; call the model once "
                "for each adapter, or export the adapters to LoRA"
            )
        yield

    def unload(self) -> Any:
        """The base model without updates; heads of `modules_to_save` stay as they were trained."""
        for layer in lotr_layers(self.model).values():
            layer.unmerge()
            layer.give_all_back()
        return super().unload()

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """What the file holds, with the adapter's name: what is shared once a group, and own."""
        found = cls._get_learnable_bias_state_dict(model, state_dict, config)
        for model_key, stored in _keys(model, adapter_name):
            if model_key in state_dict:
                found.setdefault(f"{stored}.{adapter_name}", state_dict[model_key])
        return found

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The file's tensors under all the names that the model has for them."""
        _take_out(model, adapter_name, state_dict)
        found = dict(state_dict)
        for model_key, stored in _keys(model, adapter_name):
            for key in _spellings(stored):
                if key in state_dict:
                    found[model_key] = state_dict[key]
                    found.pop(key, None)
        return found


def _require_own_loader(config: AdapterConfig) -> None:
    """Refuse to be put into a model by a loader that then finds no layer for what layers share.

    Its config lists groups and is not to be trained, or no model has had it yet: it is a file's.
    """
    if config.groups is not None and (config.inference_mode or not config._put_in):
        label = config.form.method.label
        raise UnsupportedError(
            f"{label} keeps tensors that layers share, which transformers' own load_adapter and "
            "from_pretrained do not load; take peft.PeftModel.from_pretrained(model, folder), or "
            "export it to a LoRA (lotr export), which loads everywhere"
        )


def _require_listed(config: AdapterConfig, modules: dict[str, nn.Module]) -> None:
    """Refuse a file whose groups are not those of the model's targets."""
    listed = {path for paths in (config.groups or {}).values() for path in paths}
    if odd := sorted(listed ^ modules.keys()):
        raise OptionError(
            f"the config lists groups that do not fit this model's targets: {odd[0]} is on one "
            "side only; set groups=None to group this model anew"
        )


def _take_out(model: nn.Module, name: str, tensors: dict[str, Tensor]) -> None:
    """Take out of the base weights what a file says was taken out when its training began."""
    begun: dict[str, Form] = {}
    for path, layer in lotr_layers(model).items():
        if name not in layer.scaling:
            continue
        found = {
            key: tensors[spelled]
            for key, _, stored in _names(layer, path, name, moved=True)
            for spelled in _spellings(stored)
            if spelled in tensors
        }
        if not found:
            continue
        form, own = layer.adapter(name)
        own = {key: found[key] for key in own}
        if form.group not in begun:
            device = weight_of(layer).device
            shared = {key: found[key].to(device) for key in form.shared()}
            begun[form.group] = form.frozen(shared)
        if not _is_out(layer, name, begun[form.group], own):
            layer.give_back(name)
            layer.take_out(name, begun[form.group], own)


def _is_out(layer: AdaptedLayer, name: str, form: Form, own: Own) -> bool:
    """Whether just this has been taken out already, as when a training is resumed."""
    if name not in layer.moved_adapters:
        return False
    moved, kept = layer.adapter(name, moved=True)
    wanted = {**own, **form.shared()}
    return all(
        torch.equal(x.cpu(), wanted[key].to(x.dtype).cpu())
        for key, x in (kept | moved.shared()).items()
    )


def _names(
    layer: AdaptedLayer, path: str, name: str, *, moved: bool
) -> Iterator[tuple[str, str, str]]:
    """Of each tensor its name, its key in the layer, and its key in the file."""
    (form, own), looks_up = layer.adapter(name), is_embedding(base_of(layer))
    method = form.method
    for key in own:
        stored = method.kept(key, moved=moved, looks_up=looks_up)
        yield key, f"{method.kept(key, moved=moved)}.{name}", f"{path}.{stored}"
    here, held = (method.held(moved=moved, looks_up=x) for x in (False, looks_up and not own))
    for key in method.shared:
        yield key, f"{here}.{name}.{key}", f"base_model.{held}.{form.group}.{key}"


def _spellings(key: str) -> tuple[str, str]:
    """A key in the file: as the model has it, or where the model is not inside a PeftModel."""
    return key, f"base_model.model.{key}"


def _keys(model: nn.Module, name: str) -> Iterator[tuple[str, str]]:
    """(key in the model's state, key in the file) of all tensors of an adapter."""
    for path, layer in lotr_layers(model).items():
        path = path.removeprefix("_fsdp_wrapped_module.")
        for moved, names in ((False, layer.rooms), (True, layer.moved_adapters)):
            if name in names:
                for _, key, stored in _names(layer, path, name, moved=moved):
                    yield f"{path}.{key}", stored


def _updates(init: str, form: type[Form]) -> Updates:
    """Low-rank updates of an adapter on disk, by module path."""
    path = Path(init)
    if not path.exists():
        raise OptionError(
            f"init must be {', '.join(form.starts)}, or the path of an adapter; found {init!r}"
        )
    adapter = load_adapter(path)
    require_plain_meaning(json.loads(adapter.config_text), "LoTR in PEFT")
    if not isinstance(adapter, LoRAAdapter):
        adapter = to_lora(adapter, ranks="minimal", dtype="float32").adapter
    return {module.target.name: module.factors() for module in adapter.modules}


def entered(config: C) -> C:
    """Make PEFT know a form by its configuration; the form is registered, too.

    Args:
        config: a dataclass with the `form`; most are a `FormConfig` that says no more than that.

    Returns:
        The same class, so that this can decorate it.

    Raises:
        OptionError: another form has the same name.
    """
    method = register(config.form).method
    known: Any = peft.mapping
    name = kind(method.kind)
    known.PEFT_TYPE_TO_CONFIG_MAPPING[name] = config
    known.PEFT_TYPE_TO_TUNER_MAPPING[name] = FormModel
    known.PEFT_TYPE_TO_PREFIX_MAPPING[name] = f"{method.name}_"
    return config
