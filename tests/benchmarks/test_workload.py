"""Peers and references stand on transformers' own model: nothing of ours is in it."""

from __future__ import annotations

import torch
import workload
from harness import Options

from dylora_moe.foundation.attention import NAME
from dylora_moe.foundation.base import Base

TOY = Options(toy=True, dtype="fp32")


def foreign(base: Base) -> set[str]:
    """What of this project is in a base: its attention, its modules, its hook at the head."""
    model = base.model
    found = {type(m).__name__ for m in model.modules() if "dylora" in type(m).__module__}
    found |= {type(m).__name__ for m in model.modules() if "dylora" in type(m).forward.__module__}
    if model.config._attn_implementation == NAME:
        found.add("attention")
    if any(m._forward_pre_hooks or m._forward_hooks for m in model.modules()):
        found.add("hook")
    return found


def test_a_stock_base_has_nothing_of_ours() -> None:
    # That these are what ours has is the other half: or the search would find nothing anywhere.
    assert foreign(workload.load(TOY)) >= {"attention", "hook", "LlamaRMSNorm", "LlamaMLP"}
    stock = workload.load_stock(TOY)
    assert foreign(stock) == set()
    assert stock.model.config._attn_implementation == "sdpa"


@torch.no_grad()
def test_a_stock_base_has_the_weights_of_ours_and_is_frozen() -> None:
    ours, stock = workload.load(TOY), workload.load_stock(TOY)
    assert stock.model is not ours.model
    for name, weight in ours.model.state_dict().items():
        assert torch.equal(weight, stock.model.state_dict()[name]), name
    assert not any(p.requires_grad for p in stock.model.parameters())
    assert not stock.model.training
    ids = workload.tokens(TOY, ours, 2, 9)
    difference = workload.largest(ours.model(ids).logits, stock.model(ids).logits)
    assert difference < 1e-5


def test_a_stock_base_keeps_its_rotary_frequencies_in_fp32() -> None:
    stock = workload.load_stock(Options(toy=True, dtype="bf16"))
    kinds = {b.dtype for n, b in stock.model.named_buffers() if n.endswith("inv_freq")}
    assert kinds == {torch.float32}
    assert {p.dtype for p in stock.model.parameters()} == {torch.bfloat16}
