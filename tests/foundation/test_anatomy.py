from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import LlamaForCausalLM

from dylora_moe.errors import BaseModelError
from dylora_moe.foundation.anatomy import (
    LINEAR_CLASSES,
    blocks,
    default_tap,
    feature_blocks,
    find_anatomy,
)
from tests.models import D_MODEL, FAMILIES, tiny

GROUPED = ("k_proj", "o_proj", "q_proj", "v_proj")
EXPECTED = {
    "llama": ("model.layers", GROUPED),
    "mistral": ("model.layers", GROUPED),
    "qwen2": ("model.layers", GROUPED),
    "qwen3": ("model.layers", GROUPED),
    "gemma": ("model.layers", GROUPED),
    "gemma3": ("model.layers", GROUPED),
    "gpt2": ("transformer.h", ("attn.c_proj", "c_attn")),
    "gpt_neox": ("gpt_neox.layers", ("dense", "query_key_value")),
    "mpt": ("transformer.blocks", ("Wqkv", "out_proj")),
}


def test_every_family_is_expected() -> None:
    assert set(EXPECTED) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_and_attention_are_found_by_structure(family: str) -> None:
    model = tiny(family, layers=5)
    anatomy = find_anatomy(model, tap=2)
    path, attention = EXPECTED[family]
    assert (anatomy.blocks_path, anatomy.attention_targets) == (path, attention)
    assert (anatomy.n_blocks, anatomy.d_model, anatomy.tap_layer) == (5, D_MODEL, 2)
    assert model.get_submodule(anatomy.head_name) is model.get_output_embeddings()
    assert blocks(model, anatomy) is model.get_submodule(path)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("which", ["attention", "all-linear"])
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_adapts_exactly_the_targets_above_the_tap(family: str, which: str) -> None:
    model = tiny(family)
    anatomy = find_anatomy(model, tap=2)
    wanted = {
        f"{anatomy.blocks_path}.{i}.{name}"
        for i in (2, 3)
        for name, module in blocks(model, anatomy)[i].named_modules()
        if isinstance(module, LINEAR_CLASSES) and (which == "all-linear" or "att" in name)
    }
    targets = anatomy.attention_targets if which == "attention" else anatomy.all_linear_targets
    adapted = get_peft_model(
        model,
        LoraConfig(
            target_modules=list(targets),
            layers_to_transform=list(anatomy.adapted_blocks),
            layers_pattern=anatomy.layers_pattern,
            fan_in_fan_out=family == "gpt2",
        ),
    )
    found = {
        name.removeprefix("base_model.model.")
        for name, module in adapted.named_modules()
        if isinstance(module, LoraLayer)
    }
    assert found == wanted
    assert found


def test_the_default_tap_is_a_quarter_of_the_depth() -> None:
    taps = {n: default_tap(n) for n in (2, 4, 6, 12, 24, 30, 32)}
    assert taps == {2: 1, 4: 1, 6: 2, 12: 3, 24: 6, 30: 8, 32: 8}


@pytest.mark.parametrize("tap", range(1, 40))
def test_feature_blocks_end_at_the_tap_and_rise(tap: int) -> None:
    found = feature_blocks(tap)
    assert found[-1] == tap
    assert found[0] >= 1
    assert list(found) == sorted(set(found))
    assert len(found) == min(4, tap)
    assert feature_blocks(8) == (2, 4, 6, 8)


@pytest.mark.parametrize("tap", [-1, 0, 4, 30])
def test_a_tap_out_of_range_is_refused(tap: int) -> None:
    with pytest.raises(BaseModelError, match=f"tap layer {tap} is out of range"):
        find_anatomy(tiny(), tap=tap)


def test_targets_of_the_person_are_used_and_checked() -> None:
    anatomy = find_anatomy(tiny("gpt2"), targets=["mlp.c_proj", "c_attn"])
    assert anatomy.attention_targets == anatomy.all_linear_targets == ("c_attn", "mlp.c_proj")
    with pytest.raises(BaseModelError, match=r"no linear layer called q_proj .* c_attn, c_fc"):
        find_anatomy(tiny("gpt2"), targets=["q_proj"])
    with pytest.raises(BaseModelError, match="none given"):
        find_anatomy(tiny(), targets=[])


def test_an_attention_that_does_not_show_asks_for_targets() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.projection = nn.Linear(D_MODEL, D_MODEL)

    model = tiny()
    for block in model.model.layers:
        block.self_attn = None
        block.mixer = Mixer()
    with pytest.raises(BaseModelError, match="name the layers to adapt: targets="):
        find_anatomy(model)
    assert find_anatomy(model, ["projection"]).attention_targets == ("projection",)


def test_a_model_without_blocks_or_with_one_is_no_base() -> None:
    with pytest.raises(BaseModelError, match="at least 2"):
        find_anatomy(tiny(layers=1))
    model = tiny()
    model.model.layers = None
    with pytest.raises(BaseModelError, match="no list of decoder blocks"):
        find_anatomy(model)


def test_a_longer_list_inside_a_block_is_not_taken_for_the_blocks() -> None:
    model = tiny()
    assert isinstance(model, LlamaForCausalLM)
    model.model.layers[0].mlp.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(9))
    assert find_anatomy(model).blocks_path == "model.layers"


def test_eight_bit_like_subclasses_of_linear_are_targets() -> None:
    class Packed(nn.Linear):
        pass

    model = tiny()
    for block in model.model.layers:
        block.self_attn.q_proj = Packed(D_MODEL, D_MODEL, dtype=torch.float32)
    assert "q_proj" in find_anatomy(model).attention_targets
