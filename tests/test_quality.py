"""What an error costs a model: a little of the script behind the figure, and its stored results."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the extra torch is not installed")
transformers = pytest.importorskip("transformers", reason="the extra peft is not installed")
peft = pytest.importorskip("peft", reason="the extra peft is not installed")
pytest.importorskip("matplotlib", reason="the extra plot is not installed")
quality = pytest.importorskip("docs.figures.quality", reason="it needs the extra peft")

DOCS = Path(__file__).parents[1] / "docs"
PLAN = quality.Plan(rank=4, steps=6, rate=1e-2, seeds=(0,), errors=(0.1, 0.5))


def base():
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return transformers.LlamaForCausalLM(config)


def blocks(seed):
    tokens = torch.randint(40, (8, 12), generator=torch.Generator().manual_seed(seed))
    return tokens, tokens


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder, threads = tmp_path_factory.mktemp("quality"), torch.get_num_threads()
    try:
        return folder, quality.main(base, blocks, PLAN, folder, folder)
    finally:
        torch.set_num_threads(threads)


def test_quality_falls_with_the_error_in_every_form(found):
    _, record = found
    (run,) = record["runs"]
    assert run["trained"] < run["base"]
    for form in quality.FORMS:
        near, far = (p for p in record["points"] if p["form"] == form)
        assert near["error"] <= 0.1 < far["error"] <= 0.5
        assert 0 < near["kl"] < far["kl"]
        assert far["bytes"] < near["bytes"] == near["share"] * run["bytes"]
        assert abs(near["gain_kept"] - 1) < 0.2
        assert near["loss"] == pytest.approx(
            run["base"] - near["gain_kept"] * (run["base"] - run["trained"])
        )


def test_losses_are_those_of_the_model_that_peft_loads(found):
    folder, record = found
    tokens, _ = blocks(0)
    tuned = peft.PeftModel.from_pretrained(base(), folder / "adapter-0").eval()
    with torch.no_grad():
        trained = tuned(input_ids=tokens, labels=tokens).loss.item()
        alone = base().eval()(input_ids=tokens, labels=tokens).loss.item()
    assert record["runs"][0]["trained"] == pytest.approx(trained, rel=1e-5)
    assert record["runs"][0]["base"] == pytest.approx(alone, rel=1e-5)


def test_the_adapter_itself_costs_nothing(found):
    folder, _ = found
    updates = quality.products(quality.lt.load_adapter(folder / "adapter-0"))
    judge = quality.Judge(base(), blocks(0)[1], updates)
    loss, kept, kl, same = judge.judge(updates)
    assert (loss, kept, kl, same) == (judge.trained_loss, 1, 0, 1)
    assert judge.judge({})[:2] == (judge.base_loss, 0)


def test_what_was_found_is_stored_and_drawn(found):
    folder, record = found
    assert json.loads((folder / "quality.json").read_text()) == json.loads(json.dumps(record))
    drawn = (folder / "quality.svg").read_text()
    assert drawn.startswith("<?xml")
    assert len(quality.table(record).splitlines()) == 5 + len(quality.FORMS)


def test_the_page_has_the_stored_results():
    record = json.loads((DOCS / "figures" / "quality.json").read_text())
    assert quality.table(record) in (DOCS / "bits.md").read_text()
    assert len(record["runs"]) == 2
