"""What Python and a notebook show of results: short, and the terminal's table."""

import html
import re
from pathlib import Path

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn._shown import lines_of
from lotr_tn.report.numbers import byte_size

DEMO = Path(lt.__file__).parent / "demo" / "adapter"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """One of each."""
    adapter = lt.load_adapter(DEMO)
    folder = tmp_path_factory.mktemp("results")
    bank = folder / "two.lotr.safetensors"
    made = lt.banks.make_bank({"one": adapter, "b\x1b[31m": adapter}, bank, lt.RelativeError(0.3))
    conversion = lt.convert_adapter(adapter, lt.RelativeError(0.3))
    return {
        "LoRAAdapter": adapter,
        "LoTRAdapter": conversion.adapter,
        "Conversion": conversion,
        "Analysis": lt.analyze_adapters([adapter], lt.RelativeError(0.3)),
        "Bank": lt.banks.load_bank(bank),
        "BankConversion": made,
    }


KINDS = ("LoRAAdapter", "LoTRAdapter", "Conversion", "Analysis", "Bank", "BankConversion")


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_is_printed_in_few_lines(results, kind):
    text = repr(results[kind])
    assert text.startswith(f"{kind}(")
    assert len(text.splitlines()) <= 15
    assert max(map(len, text.splitlines())) <= 240
    assert "\x1b" not in text


@pytest.mark.parametrize("kind", KINDS)
def test_a_notebook_shows_the_table_of_the_terminal(results, kind):
    shown = results[kind]._repr_html_()
    text = html.unescape(re.sub("<[^>]*>", "", shown))
    assert shown.startswith("<pre")
    assert "\x1b" not in text
    heading = "Adapter" if "Bank" in kind else "Group"
    assert re.search(rf"^ *{heading} .*\n *─+", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 80


def test_a_bank_has_the_size_of_its_file(results):
    bank = results["Bank"]
    assert byte_size(bank.source.stat().st_size) in bank._repr_html_()
    assert byte_size(bank.nbytes) != byte_size(bank.source.stat().st_size)


def test_markup_in_names_is_text(results):
    adapter = results["Bank"]["one"]
    named = type(adapter)(
        {"<b>": next(iter(adapter.groups.values()))}, {}, adapter.config_text, adapter.origin
    )
    assert "<b>" not in named._repr_html_()


def test_long_lists_are_cut():
    text = lines_of("head", map(str, range(1000)))
    assert len(text.splitlines()) == 13
    assert text.endswith("and 989 more")


def test_a_stack_says_its_size_dtype_and_error():
    rng = np.random.default_rng(0)
    stack = lt.LoRAStack(rng.standard_normal((6, 6)), rng.standard_normal((6, 5)), (1, 2, 3))
    cut = lt.hooi(stack, lt.RelativeError(0.3))
    assert (len(stack), stack.dtype, stack.nbytes, stack.relative_error) == (
        3,
        "float64",
        528,
        None,
    )
    assert cut.relative_error == cut.certificate.relative_error
    assert lt.astype(cut, "bfloat16").nbytes == cut.nbytes / 4
