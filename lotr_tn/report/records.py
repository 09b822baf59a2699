"""Records as plain dictionaries, for `--json`. Keys are stable: added, never renamed."""

from pathlib import Path
from typing import Any

from lotr_tn.adapters.adapter import Adapter, LoRAAdapter, LoTRAdapter
from lotr_tn.adapters.as_lora import Export
from lotr_tn.adapters.grouping import lora_groups
from lotr_tn.adapters.storage import format_of, stored_ranks
from lotr_tn.conversion.outcome import Conversion, GroupConversion
from lotr_tn.inspection.compare import Comparison


def conversion_record(
    conversion: Conversion, destination: Path, sizes: tuple[int, int], seconds: float
) -> dict[str, Any]:
    """What `lotr convert --json` prints; `sizes` are bytes before and after."""
    return {
        "relative_error": conversion.relative_error,
        "params_before": conversion.total("parameters_before"),
        "params_after": conversion.total("parameters_after"),
        "params_truncated": conversion.total("parameters_truncated"),
        "bytes_before": sizes[0],
        "bytes_after": sizes[1],
        "bytes_updates_before": conversion.bytes_before,
        "bytes_updates_after": conversion.bytes_after,
        "dtype": conversion.adapter.dtype,
        "coded": list(conversion.adapter.coded),
        "met": conversion.met,
        "bound": conversion.bound,
        "bound_unit": conversion.bound_unit,
        "bound_forms": list(conversion.bound_forms),
        "seconds": seconds,
        "groups": [_group_record(group) for group in conversion.groups],
        "untouched": list(conversion.adapter.extras),
        "zero": is_zero(conversion.adapter),
        "destination": str(destination),
    }


def _group_record(group: GroupConversion) -> dict[str, Any]:
    certificate = group.certificate
    return {
        "name": group.name,
        "format": group.format,
        "modules": list(group.modules),
        "shape": list(group.shape),
        "ranks": list(group.ranks),
        "relative_error": certificate.relative_error,
        "module_errors": list(certificate.layer_errors),
        "worst_error": certificate.worst_error,
        "lower_bound": certificate.lower_bound,
        "upper_bound": certificate.upper_bound,
        "params_before": group.parameters_before,
        "params_after": group.parameters_after,
        "bytes_before": group.bytes_before,
        "bytes_after": group.bytes_after,
        "params_truncated": group.parameters_truncated,
        "method": certificate.method,
        "sweeps": certificate.sweeps,
    }


def as_written(record: dict[str, Any], adapter: Adapter) -> dict[str, Any]:
    """The record of a conversion to a folder, which holds every group in the form that it has."""
    assert isinstance(adapter, LoTRAdapter)
    groups = adapter.groups.values()
    told = {
        group.name: {
            "format": format_of(group),
            "ranks": stored_ranks(group),
            "params_after": group.stored,
            "bytes_after": group.nbytes,
        }
        for group in groups
    }
    return record | {
        "dtype": adapter.dtype,
        "params_after": adapter.parameters,
        "bytes_updates_after": sum(group.nbytes for group in groups),
        "groups": [group | told[group["name"]] for group in record["groups"]],
    }


def export_record(
    export: Export, destination: Path, sizes: tuple[int, int], seconds: float
) -> dict[str, Any]:
    """What `lotr export --json` prints."""
    return {
        "modules": dict(export.ranks),
        "rank": max(export.ranks.values()),
        "dtype": export.dtype,
        "params": export.adapter.parameters,
        "bytes_before": sizes[0],
        "bytes_after": sizes[1],
        "seconds": seconds,
        "destination": str(destination),
    }


def comparison_record(comparison: Comparison) -> dict[str, Any]:
    """What `lotr compare --json` prints."""
    return {
        "relative_error": comparison.relative_error,
        "cosine": comparison.cosine,
        "modules": [
            {"name": m.name, "relative_error": m.relative_error, "cosine": m.cosine}
            for m in comparison.modules
        ],
    }


def inspection_record(adapter: Adapter, group_by: str, size: int) -> dict[str, Any]:
    """What `lotr inspect --json` prints."""
    record: dict[str, Any] = {
        "source": str(adapter.source),
        "format": "peft-lora" if isinstance(adapter, LoRAAdapter) else "lotr",
        "dtype": adapter.dtype,
        "coded": list(adapter.coded) if isinstance(adapter, LoTRAdapter) else [],
        "params": adapter.parameters,
        "bytes": size,
        "groups": [],
        "untouched": {k: list(t.shape) for k, t in adapter.extras.items()},
        "digests": adapter.digests if isinstance(adapter, LoTRAdapter) else None,
        "zero": is_zero(adapter),
        "notes": _notes(adapter),
    }
    if isinstance(adapter, LoTRAdapter):
        record["groups"] = [_lotr_group(adapter, name) for name in adapter.groups]
        return record
    for name, group in lora_groups(adapter, group_by).items():
        modules = group.modules
        record["groups"].append(
            {
                "name": name,
                "modules": [target.name for target in group.targets],
                "shape": list(group.shape),
                "ranks": [target.rank for target in group.targets],
                "scales": [module.scale for module in modules],
                "params": sum(module.stored for module in modules),
            }
        )
    return record


def _notes(adapter: Adapter) -> list[str]:
    """What was read otherwise than it stands in the file."""
    if isinstance(adapter, LoRAAdapter):
        return list(adapter.notes)
    said = adapter.origin.get("notes", [])
    return [str(note) for note in said] if isinstance(said, list) else []


def is_zero(adapter: Adapter) -> bool:
    """Whether every update is zero: by scales and factors, or by the certified norms."""
    if isinstance(adapter, LoRAAdapter):
        return all(m.scale == 0 or not (m.up.any() and m.down.any()) for m in adapter.modules)
    known = [group.certificate for group in adapter.groups.values()]
    return all(found is not None and not any(found.layer_norms) for found in known)


def _lotr_group(adapter: LoTRAdapter, name: str) -> dict[str, Any]:
    group = adapter.groups[name]
    certificate = group.certificate
    return {
        "name": name,
        "format": format_of(group),
        "modules": [target.name for target in group.targets],
        "shape": list(group.shape),
        "ranks": stored_ranks(group),
        "params": group.stored,
        "relative_error": None if certificate is None else certificate.relative_error,
        "worst_error": None if certificate is None else certificate.worst_error,
        "method": None if certificate is None else certificate.method,
    }
