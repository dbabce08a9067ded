"""Tokenizers of the kinds that matter to masks, made in memory."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from tests.models import tiny_tokenizer

# As SmolLM2's: a system prompt of its own wherever the conversation brings none.
INJECTING = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named Tiny<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """Pad is the stop token, the begin token opens every turn, and the template injects: all
    three as in SmolLM2."""
    found = tiny_tokenizer()
    found.pad_token = found.eos_token
    found.bos_token = "<|im_start|>"
    found.chat_template = INJECTING
    return found
