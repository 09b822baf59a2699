"""Files that version 0.1.0 wrote, before formats were open: read, exported and appended to as then.

`earlier/` holds a LoRA of random factors, what was exported of it, a native file with one group in
each form, a folder of LoTR in PEFT, and banks in several forms. `products.npz` has every update of
these times one fixed matrix X (n, 2), as that version computed them.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.adapters import Layout, LoRAModule, Target
from lotr_tn.adapters.storage import format_of
from lotr_tn.files.header import SCHEMA
from lotr_tn.files.tensors import read_metadata

EARLIER = Path(__file__).parent / "earlier"
BANKS = ["bank", "layers", "truncated", "shared-in"]
FORMS = {
    "q_proj": "lotr",
    "k_proj": "lotr-low-rank",
    "v_proj": "shared-in",
    "o_proj": "shared-out",
    "up_proj": "truncated",
    "down_proj": "lora",
}


def wanted(name):
    """The products of one adapter by module."""
    with np.load(EARLIER / "products.npz") as file:
        found = {k.removeprefix(f"{name}/"): v for k, v in file.items() if k.startswith(f"{name}/")}
    assert found
    return found


def products(adapter):
    """Every update times X, from a LoRA's own factors."""
    lora = adapter if isinstance(adapter, lt.LoRAAdapter) else lt.to_lora(adapter).adapter
    found = {}
    for module in lora.modules:
        up, down = (x.astype(np.float64) for x in module.factors())
        x = np.random.default_rng(0).standard_normal((down.shape[1], 2))
        found[module.target.name] = up @ (down @ x)
    return found


def require_same(found, known):
    assert set(found) == set(known)
    for name, product in known.items():
        gap = np.linalg.norm(found[name] - product)
        assert gap <= 1e-6 * np.linalg.norm(product) + 1e-6, name


def said(path):
    """The metadata of a file, and its text as JSON."""
    metadata = read_metadata(path)
    return metadata, json.loads(metadata.get("lotr") or metadata["lotr_bank"])


@pytest.mark.parametrize("name", ["mixed", *BANKS])
def test_these_files_are_of_the_first_schema(name):
    _, header = said(EARLIER / f"{name}.lotr.safetensors")
    assert header["schema"] == 1
    assert not any("each" in group for group in header["groups"].values())


def test_what_is_written_again_is_of_this_schema(tmp_path):
    one, two = tmp_path / "a.lotr.safetensors", tmp_path / "b.lotr.safetensors"
    lt.save_adapter(lt.load_adapter(EARLIER / "mixed.lotr.safetensors"), one)
    shutil.copy(EARLIER / "bank.lotr.safetensors", two)
    lt.banks.rename_adapter(two, "step-10", "first")
    for path in (one, two):
        metadata, header = said(path)
        assert header["schema"] == SCHEMA == 2
        assert "each" in header or all("each" in group for group in header["groups"].values())
        assert isinstance(json.loads(metadata["checksums"]), str)
    assert said(one)[1]["source"]["config"].startswith("zlib:")
    earlier = lt.load_adapter(EARLIER / "mixed.lotr.safetensors")
    assert lt.load_adapter(one).config_text == earlier.config_text
    assert lt.banks.verify_bank(two) == []
    require_same(products(lt.banks.load_bank(two)["first"]), wanted("bank/step-10"))


def test_a_native_file_with_every_form():
    adapter = lt.load_adapter(EARLIER / "mixed.lotr.safetensors")
    assert {name: format_of(group) for name, group in adapter.groups.items()} == FORMS
    require_same(products(adapter), wanted("mixed"))
    require_same(products(lt.load_adapter(EARLIER / "exported")), wanted("mixed"))


def test_a_native_file_is_written_again_tensor_for_tensor(tmp_path):
    adapter = lt.load_adapter(EARLIER / "mixed.lotr.safetensors")
    lt.save_adapter(adapter, tmp_path / "again.lotr.safetensors")
    again = lt.load_adapter(tmp_path / "again.lotr.safetensors")
    for name, group in adapter.groups.items():
        one, two = group.stack, again.groups[name].stack
        assert type(one) is type(two)
        assert np.array_equal(lt.to_dense(one), lt.to_dense(two)), name
        assert again.groups[name].certificate.relative_error == pytest.approx(
            group.certificate.relative_error, rel=1e-6
        )
    assert {k: bytes(t.data) for k, t in again.extras.items()} == {
        k: bytes(t.data) for k, t in adapter.extras.items()
    }


def test_a_folder_of_lotr_in_peft():
    require_same(products(lt.load_adapter(EARLIER / "lotr-peft")), wanted("lotr-peft"))


@pytest.mark.parametrize("name", BANKS)
def test_banks(name):
    bank = lt.banks.load_bank(EARLIER / f"{name}.lotr.safetensors")
    assert lt.banks.verify_bank(EARLIER / f"{name}.lotr.safetensors") == []
    assert bank.names[:3] == ("step-10", "step-20", "step-30")
    for adapter in bank:
        require_same(products(bank[adapter]), wanted(f"{name}/{adapter}"))


@pytest.mark.parametrize("name", BANKS)
def test_banks_are_appended_to(name, tmp_path):
    path = tmp_path / "bank.lotr.safetensors"
    shutil.copy(EARLIER / f"{name}.lotr.safetensors", path)
    before = lt.banks.load_bank(path)
    old = {one: adapter_bytes(before[one], tmp_path / f"old-{one}") for one in before}
    lt.banks.add_adapters(path, {"step-99": another()})
    bank = lt.banks.load_bank(path)
    assert bank.names[-1] == "step-99"
    for one, exported in old.items():
        assert adapter_bytes(bank[one], tmp_path / f"new-{one}") == exported, one
    error = lt.compare_adapters(another(), lt.to_lora(bank["step-99"]).adapter).relative_error
    assert error <= 0.05 * (1 + 1e-6)


def test_a_bank_is_made_smaller_again(tmp_path):
    path = tmp_path / "bank.lotr.safetensors"
    shutil.copy(EARLIER / "layers.lotr.safetensors", path)
    assert lt.banks.compact_bank(path, rule=lt.RelativeError(0.5)).met
    bank = lt.banks.load_bank(path)
    for one in bank:
        before, found = wanted(f"layers/{one}"), products(bank[one])
        lost = sum(np.linalg.norm(found[key] - before[key]) ** 2 for key in before)
        assert lost <= sum(np.linalg.norm(product) ** 2 for product in before.values())


def another():
    """A LoRA like those of the bank, of another run."""
    rng, modules = np.random.default_rng(99), []
    for module in lt.load_adapter(EARLIER / "lora").modules:
        (m, n), target = module.shape, module.target
        up, down = rng.standard_normal((m, 3)), rng.standard_normal((3, n))
        plain = Target(target.name, Layout(), 3)
        modules.append(LoRAModule(plain, up.astype(np.float32), down.astype(np.float32), 2.0))
    lora = lt.load_adapter(EARLIER / "lora")
    return lt.LoRAAdapter(tuple(modules), lora.extras, lora.config, lora.config_text)


def adapter_bytes(adapter, folder):
    lt.save_adapter(lt.to_lora(adapter).adapter, folder)
    return (folder / "adapter_model.safetensors").read_bytes()
