"""Experts in and out, against stock PEFT on the stock base."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from dylora_moe.build.pool import Pool
from dylora_moe.errors import ArtifactError, DataError, ExpertError, PoolError
from dylora_moe.records import Example, Turn, pair
from dylora_moe.text.split import validates
from tests.pools import LETTERS, SIGNS, fingerprint, learn, rows, settings, shouted

# Stock PEFT still asks by the old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

PROMPTS = [example.prompt for example in rows(SIGNS, 24, 5)]


def stock_adapter(base: Path, folder: Path, *, layers: tuple[int, ...] = (2, 3)) -> Path:
    """A LoRA adapter made and saved by stock PEFT, with weights that do something."""
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(
            r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"],
            layers_to_transform=list(layers), layers_pattern="layers",
        ),
    )  # fmt: skip
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def stock_logits(base: Path, folder: Path, ids: Tensor) -> Tensor:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    return model.eval()(input_ids=ids).logits


@torch.no_grad()
def our_logits(pool: Pool, name: str, ids: Tensor) -> Tensor:
    live = pool.live
    return live.model(input_ids=ids, expert=live.version(name).expert_id).logits


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(5, 100, (2, 12), generator=torch.Generator().manual_seed(0))


def test_an_export_gives_stock_peft_the_same_logits_and_comes_back_as_it_went(
    taught: Pool, base_folder: Path, tmp_path: Path, ids: Tensor
) -> None:
    paths = taught.export(None, tmp_path / "out")
    assert [path.name for path in paths] == ["letters", "digits"]
    for path in paths:
        torch.testing.assert_close(
            stock_logits(base_folder, path, ids), our_logits(taught, path.name, ids),
            atol=1e-4, rtol=0,
        )  # fmt: skip
        card = (path / "README.md").read_text()
        assert str(base_folder) in card
        assert "PeftModel.from_pretrained" in card
    taught.remove("digits")
    back = taught.import_expert(paths[1], "digits", [e.prompt for e in rows("123456", 24, 4)])
    assert back.expert_id == "expert_3"
    torch.testing.assert_close(
        our_logits(taught, "digits", ids), stock_logits(base_folder, paths[1], ids),
        atol=1e-4, rtol=0,
    )  # fmt: skip
    assert taught.generate("123456", max_new_tokens=1).expert == "digits"


def test_an_adapter_of_stock_peft_is_taken_in_routed_to_and_answers_alike(
    taught: Pool, base_folder: Path, tmp_path: Path, ids: Tensor
) -> None:
    folder = stock_adapter(base_folder, tmp_path / "adapter")
    texts = [str(taught.generate(p, max_new_tokens=6)) for p in ("abcdef", "123456")]
    version = taught.import_expert(folder, "outside", PROMPTS)
    assert (version.expert_id, version.alias, version.maturity) == ("expert_3", "outside", 1.0)
    torch.testing.assert_close(
        our_logits(taught, "outside", ids), stock_logits(base_folder, folder, ids),
        atol=1e-4, rtol=0,
    )  # fmt: skip
    assert taught.generate("+-*+-*", max_new_tokens=1).expert == "outside"
    assert [str(taught.generate(p, max_new_tokens=6)) for p in ("abcdef", "123456")] == texts
    kinds = [event.kind for event in taught.events()[-3:]]
    assert kinds == ["promoted", "router", "gate"]
    before = fingerprint(taught)
    with Pool.open(taught.path, device="cpu", dtype="fp32") as again:
        assert fingerprint(again) == before


def test_rows_with_answers_come_in_as_the_skill_s_examples(
    taught: Pool, base_folder: Path, tmp_path: Path
) -> None:
    folder = stock_adapter(base_folder, tmp_path / "adapter")
    file = tmp_path / "signs.jsonl"
    lines = [json.dumps({"prompt": prompt, "completion": "ok"}) for prompt in PROMPTS]
    file.write_text("\n".join(lines), encoding="utf-8")
    taught.import_expert(folder, "outside", file)
    record = taught.revision.skills[-1]
    stored = taught.live.read(record.examples), taught.live.read(record.validation)
    assert sum(map(len, stored)) == len(PROMPTS)
    assert taught.live.skills[record.skill_id].rows is not None


def test_conversations_come_in_by_how_they_are_asked_and_are_known_when_they_return(
    taught: Pool, base_folder: Path, tmp_path: Path
) -> None:
    adapter = stock_adapter(base_folder, tmp_path / "adapter")
    talks = [
        Example(
            (Turn("system", "be brief"), *row.turns, Turn("user", row.prompt[::-1]), row.turns[1])
        )
        for row in rows(SIGNS, 40, 3)
    ]
    file = tmp_path / "talks.jsonl"
    lines = [{"messages": [{"role": t.role, "content": t.content} for t in e.turns]} for e in talks]
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    taught.import_expert(adapter, "outside", file)
    record = taught.revision.skills[-1]
    trained = taught.live.read(record.examples)
    skill = taught.live.library[record.skill_id]
    assert set(skill.keys) == {example.key for example in trained}
    features = dict(
        zip((e.key for e in trained), taught.live.encode(trained).features, strict=True)
    )
    for key, row in zip(skill.keys, skill.features, strict=True):
        torch.testing.assert_close(row, features[key])
    # And what they are counted by stays when they come again among others.
    few = settings(more_data={"learning_rate": 1e-9})
    new = tuple(replace(e, turns=(*e.turns[:-1], Turn("assistant", "+"))) for e in talks[:1])
    learn(taught, "again", (*talks, *new), into="outside", settings=few)
    record = taught.revision.skills[-1]
    assert record.count == len(taught.live.read(record.examples))


def test_rows_that_another_skill_holds_out_are_not_trained_on_by_an_import(
    taught: Pool, base_folder: Path, tmp_path: Path
) -> None:
    adapter = stock_adapter(base_folder, tmp_path / "adapter")
    named = tuple(e for e in rows(SIGNS, 40, 8) if not validates(e))[:12]
    learn(taught, "signs", rows(SIGNS, 64, 5), validation=named)
    file = tmp_path / "signs.jsonl"
    given = (*named, *rows("uvwxyz", 24, 9))
    lines = [json.dumps({"prompt": e.prompt, "completion": e.completion}) for e in given]
    file.write_text("\n".join(lines), encoding="utf-8")
    taught.import_expert(adapter, "outside", file)
    trained = {e.key for e in taught.live.read(taught.revision.skills[-1].examples)}
    assert trained
    assert not trained & {e.key for e in named}


def test_texts_without_answers_are_prompts(taught: Pool, base_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(json.dumps({"text": p}) for p in PROMPTS), encoding="utf-8")
    taught.import_expert(stock_adapter(base_folder, tmp_path / "adapter"), "outside", file)
    skill = taught.live.library[taught.revision.skills[-1].skill_id]
    assert set(skill.keys) == {pair(prompt, "-").key for prompt in PROMPTS}
    assert taught.revision.skills[-1].examples == ()


def test_what_does_not_fit_or_spoils_another_skill_is_not_let_in(
    taught: Pool, base_folder: Path, tmp_path: Path
) -> None:
    before = fingerprint(taught)
    adapter = stock_adapter(base_folder, tmp_path / "adapter")
    low = stock_adapter(base_folder, tmp_path / "low", layers=(0, 1))
    with pytest.raises(ExpertError, match="tap"):
        taught.import_expert(low, "outside", PROMPTS)
    with pytest.raises(ExpertError):
        taught.import_expert(tmp_path / "nothing", "outside", PROMPTS)
    with pytest.raises(DataError, match="give at least 8"):
        taught.import_expert(adapter, "outside", PROMPTS[:3])
    with pytest.raises(PoolError, match="taken"):
        taught.import_expert(adapter, "letters", PROMPTS)
    letters = [example.prompt for example in rows(LETTERS, 60, 29)]
    with pytest.raises(PoolError, match=r"not let in: letters would get worse"):
        taught.import_expert(adapter, "outside", letters)
    assert "letters would get worse" in taught.events("error")[-1].message
    assert fingerprint(taught) == before
    # The names of what was refused are free, its number is not used again.
    assert taught.import_expert(adapter, "outside", PROMPTS).alias == "outside"


def test_an_export_refuses_a_folder_that_is_there_and_an_expert_that_is_not(
    taught: Pool, tmp_path: Path
) -> None:
    (tmp_path / "out" / "digits").mkdir(parents=True)
    with pytest.raises(PoolError, match="exists already"):
        taught.export(None, tmp_path / "out")
    assert not (tmp_path / "out" / "letters").exists()
    with pytest.raises(PoolError, match="no expert 'sql'"):
        taught.export("sql", tmp_path / "out")
    (tmp_path / "file").write_text("x")
    with pytest.raises(PoolError, match="cannot be written"):
        taught.export("letters", tmp_path / "file")


def flip(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(body)


def test_a_damaged_adapter_is_refused_by_its_hash_and_can_be_taken_back_or_out(
    taught: Pool, tmp_path: Path
) -> None:
    learn(taught, "new rules", rows(LETTERS, 64, 13, shouted))
    version = taught.experts()[0]
    assert version.ref == "expert_1@2"
    number, events = taught.revision.number, len(taught.events())
    taught.close()
    flip(taught.path / version.files[0].path)
    with Pool.open(taught.path, device="cpu", dtype="fp32") as pool:
        for ask in (lambda: pool.generate("abcdef"), lambda: pool.export("letters", tmp_path)):
            with pytest.raises(ArtifactError, match=r"expert_1/v2/.*damaged.*rollback"):
                ask()
        assert (pool.revision.number, len(pool.events())) == (number, events)
        assert list(tmp_path.glob("letters*")) == []
        assert pool.generate("1", expert="digits", max_new_tokens=1).expert == "digits"
        with pytest.raises(ArtifactError):
            learn(pool, "signs", rows(SIGNS, 64, 5))
        assert pool.rollback("letters").experts[0].version == 1
        assert pool.generate("abcdef", max_new_tokens=1).expert == "letters"


def test_a_truncated_adapter_can_be_removed(taught: Pool) -> None:
    file = taught.path / taught.experts()[0].files[0].path
    taught.close()
    file.write_bytes(file.read_bytes()[:100])
    with Pool.open(taught.path, device="cpu", dtype="fp32") as pool:
        with pytest.raises(ArtifactError, match="100 bytes"):
            pool.generate("abcdef")
        pool.remove("letters")
        assert pool.generate("123456", max_new_tokens=1).expert == "digits"
