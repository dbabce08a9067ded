"""Random tiny models of every family, and a tokenizer made in memory: no network, no files.

Weights are drawn wide (0.15) so that a wrong position, mask or block moves the logits by far more
than the tolerance of a test.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

if TYPE_CHECKING:
    from dylora_moe.foundation.base import Base

D_MODEL = 32
VOCAB = 104
MAX_POSITIONS = 256
SPREAD = 0.15

SPECIALS = ("<pad>", "<unk>", "<s>", "<|im_start|>", "<|im_end|>")
PAD, UNK, BOS, TURN, EOS = range(len(SPECIALS))

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _grouped(layers: int) -> dict[str, object]:
    return {
        "vocab_size": VOCAB,
        "hidden_size": D_MODEL,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_POSITIONS,
        "initializer_range": SPREAD,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }


def _gemma3(layers: int) -> PreTrainedConfig:
    # Every third block sees everything, the others a window: block types by position.
    kinds = ["full_attention" if i % 3 == 2 else "sliding_attention" for i in range(layers)]
    return Gemma3TextConfig(**_grouped(layers), head_dim=16, sliding_window=8, layer_types=kinds)


def _gpt2(layers: int) -> PreTrainedConfig:
    return GPT2Config(
        vocab_size=VOCAB,
        n_embd=D_MODEL,
        n_layer=layers,
        n_head=4,
        n_positions=MAX_POSITIONS,
        initializer_range=SPREAD,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )


def _gpt_neox(layers: int) -> PreTrainedConfig:
    values = _grouped(layers)
    del values["num_key_value_heads"]
    return GPTNeoXConfig(**values, attention_dropout=0.0, hidden_dropout=0.0)


def _mpt(layers: int) -> PreTrainedConfig:
    return MptConfig(
        vocab_size=VOCAB,
        d_model=D_MODEL,
        n_layers=layers,
        n_heads=4,
        max_seq_len=MAX_POSITIONS,
        initializer_range=SPREAD,
        use_cache=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )


_CONFIGS: dict[str, Callable[[int], PreTrainedConfig]] = {
    "llama": lambda layers: LlamaConfig(**_grouped(layers)),
    "mistral": lambda layers: MistralConfig(**_grouped(layers), sliding_window=None),
    "qwen2": lambda layers: Qwen2Config(**_grouped(layers)),
    "qwen3": lambda layers: Qwen3Config(**_grouped(layers), head_dim=16),
    "gemma": lambda layers: GemmaConfig(**_grouped(layers), head_dim=16),
    "gemma3": _gemma3,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "mpt": _mpt,
}

FAMILIES = tuple(_CONFIGS)

PACKING_FAMILIES = tuple(family for family in FAMILIES if family != "mpt")
"""MPT takes no position ids, so rows cannot be packed behind one another."""


def tiny(
    family: str = "llama",
    *,
    layers: int = 4,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> PreTrainedModel:
    """A random causal LM in eval mode, not frozen, without dropout: d_model 32, vocabulary 104."""
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        model = AutoModelForCausalLM.from_config(_CONFIGS[family](layers))
        # Norms and biases start as ones and zeros; moved, so that skipping one shows.
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.ndim == 1:
                    noise = torch.randn_like(weight) * 0.1
                    weight.add_(noise if "norm" not in name else noise.abs())
    finally:
        torch.set_rng_state(state)
    return model.to(dtype).eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable ASCII character (and newline), ChatML template, pad != eos."""
    symbols = [*SPECIALS, "\n", *(c for c in string.printable if c == " " or not c.isspace())]
    core = Tokenizer(
        models.BPE(
            vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[], unk_token="<unk>"
        )
    )
    core.decoder = decoders.Fuse()
    core.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_base(
    family: str = "llama",
    layers: int = 4,
    tap: int = 2,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Base:
    """A frozen tiny model on the CPU with its anatomy and the tiny tokenizer."""
    from dylora_moe.foundation.base import wrap

    return wrap(
        tiny(family, layers=layers, dtype=dtype, seed=seed),
        tiny_tokenizer(),
        name=f"tiny-{family}",
        tap=tap,
    )
