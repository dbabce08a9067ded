"""Laws of a quantised base: what is replaced, its fingerprint, its trunk."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from dylora_moe.errors import BaseModelError, ConfigError, MissingExtraError
from dylora_moe.foundation import bitsandbytes_linear
from dylora_moe.foundation.anatomy import blocks, find_anatomy
from dylora_moe.foundation.base import Base, load_base, wrap
from dylora_moe.foundation.integer_linear import Int8Linear, IntegerLinear
from dylora_moe.foundation.quantized import choose_quantization, quantize_blocks
from dylora_moe.foundation.trunk import replay, trunk_states
from tests.foundation.batches import model_inputs, padded, rows
from tests.models import FAMILIES, tiny, tiny_base, tiny_tokenizer

FORMS = (
    "int8",
    "int4",
    pytest.param(
        "nf4",
        marks=pytest.mark.skipif(
            find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
        ),
    ),
)
CPU = torch.device("cpu")


def quantized_base(form: str | None, family: str = "llama", **options: torch.dtype) -> Base:
    model = tiny(family, **options)
    return wrap(model, tiny_tokenizer(), name=f"tiny-{family}", tap=2, quantize=form)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_layer_of_the_blocks_is_replaced_and_nothing_else(family: str) -> None:
    base, stock = quantized_base("int8", family), tiny_base(family)
    paths = {path for path, _ in stock.model.named_modules()}
    assert {path for path, _ in base.model.named_modules()} == paths
    for path, module in base.model.named_modules():
        plain = type(stock.model.get_submodule(path))
        inside = path.startswith(base.anatomy.blocks_path + ".")
        replaced = inside and plain.__name__ in ("Linear", "Conv1D")
        assert type(module) is (Int8Linear if replaced else plain), path
    head = base.model.get_submodule(base.anatomy.head_name)
    assert head.weight.dtype == torch.float32
    assert base.anatomy == stock.anatomy
    assert (base.dtype, base.quantize) == (torch.float32, "int8")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_it_computes_nearly_what_the_stock_base_computes(family: str, form: str) -> None:
    batch = model_inputs(padded(rows()))
    with torch.no_grad():
        got = quantized_base(form, family).model(**batch, use_cache=False).logits
        stock = tiny_base(family).model(**batch, use_cache=False).logits
    error = (got - stock).norm() / stock.norm()
    # bitsandbytes rounds matrices as small as these twice as coarsely as large ones.
    assert 0 < error < {"int8": 0.03, "int4": 0.35, "nf4": 0.7}[form]


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_an_nf4_layer_computes_the_same_before_and_after_a_pass_without_a_graph() -> None:
    weight = torch.randn(128, 128, generator=torch.Generator().manual_seed(0))
    layer = bitsandbytes_linear.nf4_linear(weight, None, torch.bfloat16).eval()
    units = torch.eye(128, dtype=torch.bfloat16)
    first = layer(units.requires_grad_()).detach()
    assert (first.T - weight).norm() / weight.norm() < 0.1
    with torch.no_grad():
        assert torch.equal(layer(units), first)
    units.grad = None
    layer(units).sum().backward()
    assert units.grad is not None


@pytest.mark.parametrize("form", FORMS)
def test_the_replayed_trunk_is_the_full_model_bit_for_bit(form: str) -> None:
    base = quantized_base(form)
    batch = padded(rows(), "left")
    inputs = model_inputs(batch)
    trunk = trunk_states(base, batch)
    with torch.no_grad():
        full = base.model(**inputs, use_cache=False).logits
        with replay(base, trunk.hidden):
            assert torch.equal(base.model(**inputs, use_cache=False).logits, full)
    # It stays the same function of its input whatever ran in between.
    assert torch.equal(trunk_states(base, batch).hidden, trunk.hidden)


def test_each_form_has_a_fingerprint_of_its_own_the_same_every_time_and_in_any_dtype() -> None:
    forms = (None, "int8", "int4")
    prints = {form: quantized_base(form).fingerprint for form in forms}
    assert len(set(prints.values())) == len(forms)
    assert prints[None] == tiny_base().fingerprint
    for form in forms:
        assert quantized_base(form, dtype=torch.bfloat16).fingerprint == prints[form]
    other = wrap(tiny(seed=1), tiny_tokenizer(), name="x", quantize="int8")
    assert other.fingerprint != prints["int8"]


def test_a_base_on_disk_loads_quantised(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    base = load_base(str(tmp_path), device="cpu", dtype="fp32", tap=2, quantize="int4")
    assert base.fingerprint == quantized_base("int4").fingerprint
    layers = [m for m in base.model.modules() if isinstance(m, IntegerLinear)]
    assert len(layers) == 4 * 7


def test_four_bits_on_cuda_are_those_of_bitsandbytes_and_on_a_cpu_torchs() -> None:
    cuda = torch.device("cuda")
    assert [choose_quantization(f, CPU) for f in (None, "int8", "int4", "nf4")] == [
        None, "int8", "int4", "nf4",
    ]  # fmt: skip
    assert choose_quantization("int4", cuda) == "nf4"
    assert choose_quantization("int8", cuda) == "int8"
    with pytest.raises(ConfigError, match="no quantization 'int3'; use int8, int4, nf4"):
        choose_quantization("int3", CPU)
    with pytest.raises(ConfigError, match="int3"):
        quantized_base("int3")


def test_what_cannot_be_quantised_is_said() -> None:
    model = tiny()
    anatomy = find_anatomy(model)
    quantize_blocks(model, anatomy, "int8", CPU)
    with pytest.raises(BaseModelError, match="nothing to quantise"):
        quantize_blocks(model, anatomy, "int8", CPU)
    packed = tiny()
    linear = next(m for m in blocks(packed, anatomy).modules() if isinstance(m, nn.Linear))
    linear.weight = nn.Parameter(torch.zeros(32, 32, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(BaseModelError, match="quantised already"):
        quantize_blocks(packed, anatomy, "int8", CPU)


def test_without_bitsandbytes_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bitsandbytes", "bitsandbytes.nn"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dylora-moe\[quantize\]'"):
        bitsandbytes_linear.nf4_linear(torch.zeros(64, 64), None, torch.float32)
