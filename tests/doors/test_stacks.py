"""One stack alone in a file: save_stack and load_stack."""

from pathlib import Path

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.errors import CheckpointError, LotrError, OptionError
from tests.formats.test_layers import FORMS, STACK

STORED = {name: stack for name, stack in FORMS.items() if name != "Dense"}


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_a_stack_comes_back_as_it_was(name, dtype, tmp_path):
    stack = lt.astype(STORED[name], dtype)
    lt.save_stack(stack, tmp_path / "one.safetensors")
    back = lt.load_stack(tmp_path / "one.safetensors")
    assert type(back) is type(stack)
    assert (back.shape, back.dtype, back.nbytes) == (stack.shape, dtype, stack.nbytes)
    for field, array in lt.ops.arrays.arrays_of(stack).items():
        assert np.array_equal(getattr(back, field), array)
    if isinstance(stack, lt.LoRAStack | lt.LowRankTucker2):
        assert back.ranks == stack.ranks


@pytest.mark.parametrize("name", [name for name in STORED if name != "LoRAStack"])
def test_the_certificate_comes_too(name, tmp_path):
    stack = STORED[name]
    lt.save_stack(stack, tmp_path / "one.safetensors")
    back = lt.load_stack(tmp_path / "one.safetensors")
    assert back.relative_error == stack.relative_error
    assert back.certificate.method == stack.certificate.method
    assert np.array_equal(back.certificate.distances, stack.certificate.distances)


def test_a_stack_on_torch_is_saved_too(tmp_path):
    torch = pytest.importorskip("torch")
    up, down = (torch.asarray(x) for x in (STACK.up, STACK.down))
    found = lt.hooi(lt.LoRAStack(up, down, STACK.ranks), 2)
    lt.save_stack(found, tmp_path / "one.safetensors")
    back = lt.load_stack(tmp_path / "one.safetensors")
    assert isinstance(back.core, np.ndarray)
    assert np.array_equal(back.core, found.core.numpy())
    assert back.relative_error == float(found.certificate.relative_error)


def test_every_flipped_byte_of_the_numbers_is_found(tmp_path):
    path = tmp_path / "one.safetensors"
    lt.save_stack(STACK, path)
    good = path.read_bytes()
    start = 8 + int.from_bytes(good[:8], "little")
    for place in range(start, len(good), 7):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(CheckpointError, match=r"one\.safetensors"):
            lt.load_stack(path)


def _cut(path):
    lt.save_stack(STACK, path)
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_text("hello"), "is not a complete safetensors file"),
        (lambda path: path.mkdir(), "one.safetensors"),
        (_cut, "one.safetensors"),
    ],
)
def test_what_is_no_stack_s_file_is_refused(make, said, tmp_path):
    make(tmp_path / "one.safetensors")
    with pytest.raises(CheckpointError, match=said) as raised:
        lt.load_stack(tmp_path / "one.safetensors")
    assert "\n" not in str(raised.value)


def test_of_several_stacks_it_says_how_to_take_one(tmp_path):
    demo = Path(lt.__file__).parent / "demo" / "adapter"
    with pytest.raises(CheckpointError, match=r"holds 5 stacks, gate_proj, .*; take one with lt\."):
        lt.load_stack(demo)


def test_nothing_is_written_of_what_cannot_be_stored(tmp_path):
    path = tmp_path / "one.safetensors"
    with pytest.raises(OptionError, match="Dense is stored in no form"):
        lt.save_stack(FORMS["Dense"], path)
    with pytest.raises(LotrError, match="holds NaN or infinite entries"):
        lt.save_stack(lt.LoRAStack(np.full((2, 1), np.nan), np.ones((1, 2)), (1,)), path)
    with pytest.raises(CheckpointError, match=r"must end in \.safetensors"):
        lt.save_stack(STACK, tmp_path / "one")
    assert not list(tmp_path.iterdir())


def test_an_existing_file_is_kept_unless_force(tmp_path):
    path = tmp_path / "one.safetensors"
    lt.save_stack(STACK, path)
    with pytest.raises(CheckpointError, match=r"exists; .*force=True"):
        lt.save_stack(STORED["Tucker2"], path)
    assert isinstance(lt.load_stack(path), lt.LoRAStack)
    lt.save_stack(STORED["Tucker2"], path, force=True)
    assert isinstance(lt.load_stack(path), lt.Tucker2)
