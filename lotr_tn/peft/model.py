"""The tuner: LoTR put into a model by PEFT, and its file's tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, final

import torch
from peft.tuners.tuners_utils import BaseTuner, _maybe_include_all_linear_layers
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn

from lotr_tn.adapters.adapter import LoRAAdapter
from lotr_tn.adapters.as_lora import to_lora
from lotr_tn.doors.loading import load_adapter
from lotr_tn.errors import OptionError
from lotr_tn.nn.bases import base_of, is_embedding, lies_transposed
from lotr_tn.nn.factors import SharedFactors
from lotr_tn.nn.grouping import Group, GroupBy, plan_groups
from lotr_tn.nn.layer import LoTRLayer, Trained
from lotr_tn.nn.model import begin, move_out, require_untied, scale_of, weight_of
from lotr_tn.nn.starting import STARTS, Updates, require_start
from lotr_tn.nn.training import lotr_layers
from lotr_tn.peft.config import LotrConfig
from lotr_tn.peft.layer import LotrTunerLayer, tuner_layer

__all__ = ["LotrModel"]


@dataclass
class _Place:
    """What a module is to be given: its group's factors, and its own core."""

    group: Group
    factors: SharedFactors
    core: Tensor
    scale: float


@final
class LotrModel(BaseTuner):
    """The model inside a `PeftModel` whose config is a `LotrConfig`.

    PEFT makes it. Factors are held by the layers alone, each group's one module by all of its
    layers, so there is nothing here that could get out of step with them.
    """

    prefix = "lotr_"
    tuner_layer_cls = LotrTunerLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        """Put an adapter in; the whole of it is planned before any layer is changed."""
        self._name, self._places = adapter_name, dict[str, _Place]()
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        config = self.peft_config[adapter_name]
        assert isinstance(config, LotrConfig)
        self._finish(config, adapter_name)
        del self._places

    def merge_and_unload(
        self,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        """The base model with adapters, the active ones where none is named, in its weights."""
        for layer in lotr_layers(self.model).values():
            layer.give_all_back(but=adapter_names or self.active_adapters)
        return super().merge_and_unload(progressbar, safe_merge, adapter_names)

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        config = _maybe_include_all_linear_layers(peft_config, model)
        assert isinstance(config, LotrConfig)
        continued = config.init not in STARTS
        require_start("principal" if continued else config.init, config.train)
        modules = self._targets(config, model)
        if not modules:
            return  # PEFT says so, and why
        groups = plan_groups(modules, self._group_by(config, modules), config.r, config.group_ranks)
        self._from_file = config.groups is not None and not config._put_in
        init: Any = _updates(config.init) if continued else config.init
        if init == "principal":
            require_untied(model, modules)
        if self._from_file:
            init = "balanced"  # all values come from the file
        for index, (_, group) in enumerate(sorted(groups.items())):
            scale = scale_of(config.lotr_alpha, group.ranks, root=config.use_rslora)
            factors, cores = begin(group, modules, init, seed=config.seed + index)
            for path, core in zip(group.modules, cores, strict=True):
                self._places[path] = _Place(group, factors, core / scale, scale)
        config.groups = {name: list(group.modules) for name, group in groups.items()}
        config._put_in = True
        transposed = {lies_transposed(base_of(m)) for m in modules.values() if not _looks_up(m)}
        config.fan_in_fan_out = transposed == {True}
        if continued:  # the file will hold it; where it came from may not be there any more
            config.init = "balanced"

    def _targets(self, config: LotrConfig, model: nn.Module) -> dict[str, nn.Module]:
        named = dict(model.named_modules())
        inside = tuple(f"{k}." for k, m in named.items() if isinstance(m, LotrTunerLayer))
        return {
            key: module
            for key, module in named.items()
            if key
            and not key.startswith(inside)
            and self._check_target_module_exists(config, key)  # false for those excluded
        }

    @staticmethod
    def _group_by(config: LotrConfig, modules: dict[str, nn.Module]) -> GroupBy:
        """The groups of a file, or else the rule."""
        if config.groups is None or config._put_in:
            return config.group_by
        listed = {path for paths in config.groups.values() for path in paths}
        if listed != set(modules):
            odd = sorted(listed ^ set(modules))
            raise OptionError(
                f"the config lists groups that do not fit this model's targets: {odd[0]} is on one "
                "side only; set groups=None to group this model anew"
            )
        return config.groups

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
        config = peft_config
        if current_key not in self._places:
            raise OptionError(f"{current_key} is no target of the config; name it there")
        if isinstance(target, LoTRLayer):
            self._hold(target, config, adapter_name, current_key)
            target.set_trainable(adapter_name, adapter_name in self.active_adapters)
            return
        layer = tuner_layer(target)
        self._hold(layer, config, adapter_name, current_key)
        layer.set_adapter(self.active_adapters)
        layer.train(target.training)
        self._replace_module(parent, target_name, layer, target)

    def _hold(self, layer: LoTRLayer, config: LotrConfig, name: str, path: str) -> None:
        place = self._places[path]
        layer.hold(
            name,
            place.factors,
            place.core.to(weight_of(layer).device),
            scale=place.scale,
            dropout=config.lotr_dropout,
            trained=cast("Trained", config.train),
            siblings=place.group.siblings(path),
        )

    def _finish(self, config: LotrConfig, name: str) -> None:
        """Take what the adapter begins with out of the base weights, where that was asked for."""
        if config.init != "principal" or self._from_file:
            return
        layers = lotr_layers(self.model)
        for paths in (config.groups or {}).values():
            move_out([layers[path] for path in paths], name)

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
        """The base model, as it was before any adapter was put in."""
        for layer in lotr_layers(self.model).values():
            layer.unmerge()
            layer.give_all_back()
        return self._unload_and_optionally_merge(merge=False)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """What the file holds, with the adapter's name: factors once a group, and the cores."""
        found = cls._get_learnable_bias_state_dict(model, state_dict, config)
        for model_key, key in _keys(model, adapter_name):
            if model_key in state_dict:
                found.setdefault(key, state_dict[model_key])
        return found

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls,
        model: nn.Module,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """The file's tensors under all the names that the model has for them."""
        _take_out(model, adapter_name, state_dict)
        found = dict(state_dict)
        used = set()
        for model_key, key in _keys(model, adapter_name):
            own = cls._remove_adapter_name_from_key(key, adapter_name)
            if own not in state_dict:
                own = f"base_model.model.{own}"  # the model is not inside a PeftModel
            if own in state_dict:
                found[model_key] = state_dict[own]
                used.add(own)
        return {key: value for key, value in found.items() if key not in used}


def _take_out(model: nn.Module, name: str, tensors: dict[str, Tensor]) -> None:
    """Take out of the base weights what a file says was taken out when its training began."""
    begun: dict[str, SharedFactors] = {}
    for path, layer in lotr_layers(model).items():
        path = path.removeprefix("base_model.model.")
        stored = "lotr_moved_embedding_core" if _looks_up(layer) else "lotr_moved_core"
        core = tensors.get(f"base_model.model.{path}.{stored}", tensors.get(f"{path}.{stored}"))
        if name not in layer.scaling or core is None:
            continue
        group = str(layer.lotr_factors[name].group)
        if group not in begun:
            u, v = (tensors[f"base_model.lotr_moved_factors.{group}.{side}"] for side in "uv")
            device = weight_of(layer).device
            begun[group] = SharedFactors(u.to(device), v.to(device), group).requires_grad_(False)
        if not _is_out(layer, name, begun[group], core):
            layer.give_back(name)
            layer.take_out(name, begun[group], core)


def _is_out(layer: LoTRLayer, name: str, factors: SharedFactors, core: Tensor) -> bool:
    """Whether just this has been taken out already, as when a training is resumed."""
    if name not in layer.lotr_moved_core:
        return False
    own = layer.lotr_moved_factors[name]
    assert isinstance(own, SharedFactors)
    both = ((layer.lotr_moved_core[name], core), (own.u, factors.u), (own.v, factors.v))
    return all(torch.equal(have.cpu(), want.to(have.dtype).cpu()) for have, want in both)


def _looks_up(module: nn.Module) -> bool:
    return is_embedding(base_of(module))


def _keys(model: nn.Module, name: str) -> Iterator[tuple[str, str]]:
    """(key in the model's state, key in the file but for the adapter's name) of an adapter."""
    for path, layer in lotr_layers(model).items():
        path = path.removeprefix("_fsdp_wrapped_module.")
        if name not in layer.scaling:
            continue
        kinds = [("lotr_core", "lotr_factors")]
        if name in layer.lotr_moved_core:
            kinds.append(("lotr_moved_core", "lotr_moved_factors"))
        for core, factors in kinds:
            group = layer.lotr_factors[name].group
            stored = core.replace("core", "embedding_core") if _looks_up(layer) else core
            yield f"{path}.{core}.{name}", f"{path}.{stored}.{name}"
            for side in "uv":
                yield (
                    f"{path}.{factors}.{name}.{side}",
                    f"base_model.{factors}.{group}.{name}.{side}",
                )


def _updates(init: str) -> Updates:
    """Low-rank updates of an adapter on disk, by module path."""
    path = Path(init)
    if not path.exists():
        raise OptionError(
            f"init must be {', '.join(STARTS)}, or the path of an adapter; found {init!r}"
        )
    adapter = load_adapter(path)
    if not isinstance(adapter, LoRAAdapter):
        adapter = to_lora(adapter, ranks="minimal", dtype="float32").adapter
    return {module.target.name: module.factors() for module in adapter.modules}
