from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from dylora_moe.errors import ExpertError
from dylora_moe.experts.gates import Gates
from tests.experts.builders import ids, logits, manager_of, with_experts
from tests.models import FAMILIES, tiny

# Stock PEFT asks stock transformers by a name that it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_here_and_loaded_by_stock_peft_gives_the_same_logits(
    family: str, tmp_path: Path
) -> None:
    manager = with_experts(family, ranks=(4, 6))
    manager.save("expert_1", tmp_path, "# A card")
    plain = PeftModel.from_pretrained(tiny(family), str(tmp_path))
    with torch.no_grad():
        expected = plain(ids(), use_cache=False).logits
    found = logits(manager, Gates.only("expert_1", 2))
    assert (found - logits(manager, None)).abs().max() > 0.1
    assert torch.allclose(found, expected, atol=1e-4)
    assert (tmp_path / "README.md").read_text() == "# A card"
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == f"tiny-{family}"


@pytest.mark.parametrize("family", FAMILIES)
def test_an_export_round_trips_bit_for_bit(family: str, tmp_path: Path) -> None:
    manager = with_experts(family)
    manager.grow_rank("expert_0", 6)
    seen: list[str] = []
    manager.save("expert_0", tmp_path / "a")
    other = manager_of(family)
    other.load("expert_other", tmp_path / "a", check=lambda file: seen.append(file.name))
    assert seen == ["adapter_model.safetensors"]
    assert torch.equal(
        logits(other, Gates.only("expert_other", 2)), logits(manager, Gates.only("expert_0", 2))
    )
    other.save("expert_other", tmp_path / "b")
    first, again = (load_file(tmp_path / f / "adapter_model.safetensors") for f in "ab")
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert other.trainable == frozenset()


def stock(folder: Path, fresh_b: bool = False, family: str = "llama", **options: Any) -> Any:
    """Saves an adapter with stock PEFT and returns its model."""
    values: dict[str, Any] = {
        "r": 4,
        "target_modules": ["q_proj", "down_proj"],
        "layers_to_transform": [2, 3],
        "layers_pattern": "layers",
        "init_lora_weights": fresh_b,
    }
    model = get_peft_model(tiny(family), LoraConfig(**(values | options)))
    model.save_pretrained(str(folder))
    return model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 3}},
        {"target_modules": r"model\.layers\.[23]\.(self_attn\.[qv]_proj|mlp\.up_proj)"}
        | {"layers_to_transform": None, "layers_pattern": None},
        {"target_modules": ["model.layers.2.self_attn.q_proj", "model.layers.3.mlp.up_proj"]}
        | {"layers_to_transform": None, "layers_pattern": None},
    ],
)
def test_any_plain_lora_of_stock_peft_comes_in_exactly_and_goes_out_again(
    options: dict[str, Any], tmp_path: Path
) -> None:
    plain = stock(tmp_path / "in", **options)
    with torch.no_grad():
        expected = plain.eval()(ids(), use_cache=False).logits
    manager = manager_of()
    manager.create_expert("expert_first", targets=["v_proj"])
    manager.load("expert_in", tmp_path / "in")
    found = logits(manager, Gates.only("expert_in", 2))
    assert not torch.allclose(found, logits(manager, None), atol=1e-3)
    assert torch.allclose(found, expected, atol=1e-4)
    manager.save("expert_in", tmp_path / "out")
    again = PeftModel.from_pretrained(tiny(), str(tmp_path / "out"))
    with torch.no_grad():
        assert torch.allclose(again(ids(), use_cache=False).logits, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"layers_to_transform": [1, 2]},
            r"blocks 1 below the tap at block 2.*dylora init POOL --tap",
        ),
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "frozen head"),
        ({"bias": "lora_only"}, "biases"),
        ({"lora_bias": True}, "lora_B"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        (
            {"target_modules": ["q_proj", "lm_head"]}
            | {"layers_to_transform": None, "layers_pattern": None},
            "frozen head",
        ),
        ({"family": "qwen3"}, "another base"),
    ],
)
@pytest.mark.filterwarnings("ignore::peft.utils.warning.PeftWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_does_not_fit_is_refused_and_the_model_stays(
    options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    stock(tmp_path, **options)
    manager = with_experts()
    before = logits(manager, Gates.only("expert_0", 2))
    with pytest.raises(ExpertError, match=words):
        manager.load("expert_in", tmp_path)
    assert manager.names == ("expert_0", "expert_1")
    assert torch.equal(logits(manager, Gates.only("expert_0", 2)), before)


def test_damaged_folders_are_refused_with_the_file_named(tmp_path: Path) -> None:
    manager = manager_of()
    with pytest.raises(ExpertError, match="holds no adapter_model"):
        manager.load("expert_in", tmp_path)
    stock(tmp_path)
    weights, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    # Cloned: the file's tensors are mapped memory, gone when it is cut short.
    whole, tensors = weights.read_bytes(), {k: v.clone() for k, v in load_file(weights).items()}
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ExpertError, match=r"adapter_model\.safetensors is damaged"):
        manager.load("expert_in", tmp_path)
    save_file(dict(list(tensors.items())[1:]), weights)
    with pytest.raises(ExpertError, match="lacks one"):
        manager.load("expert_in", tmp_path)
    save_file({key: value * float("nan") for key, value in tensors.items()}, weights)
    with pytest.raises(ExpertError, match="not finite"):
        manager.load("expert_in", tmp_path)
    weights.write_bytes(whole)
    text = config.read_text()
    config.write_text(text.replace('"r": 4', '"r": 8'))
    with pytest.raises(ExpertError, match="says rank 8 and holds 4"):
        manager.load("expert_in", tmp_path)
    config.write_text(text[:40])
    with pytest.raises(ExpertError, match=r"adapter_config\.json is damaged"):
        manager.load("expert_in", tmp_path)
    config.unlink()
    with pytest.raises(ExpertError, match=r"no adapter_config"):
        manager.load("expert_in", tmp_path)
    assert manager.names == ()
