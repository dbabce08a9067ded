"""Answers in OpenAI's form. Pure: what the engine told in, JSON values out."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from dylora_moe.serving.engine.requests import Finished, Logprobs, Provenance, TokenLogprob

HEADER = "x-dylora-provenance"
HEADER_WEIGHTS = 8
"""Experts that the header names."""
HEADER_BYTES = 2048
"""Of the header: proxies take some thousands of all headers together; the body names all."""


def provenance_of(found: Provenance | None, number: str, weights: int | None = None) -> Any:
    """Where an answer came from.

    Args:
        number: its id.
        weights: how many of the largest are named, to six digits; where None all of them, as they
            are, so that the same mixture can be asked for.
    """
    if found is None:
        return None
    ordered = sorted(found.weights.items(), key=lambda item: -item[1])[:weights]
    named = {name: w if weights is None else round(w, 6) for name, w in ordered}
    return {
        "id": number,
        "revision": found.revision,
        "expert": found.expert,
        "expert_id": found.expert_id,
        "version": found.version,
        "weights": named,
        "none": round(found.none, 6),
        "routed": found.routed,
        "entropy": None if found.entropy is None else round(found.entropy, 6),
        "canary": found.canary,
        "novel": found.novel,
        "seed": found.seed,
    }


def header_of(ends: Sequence[Finished | None], numbers: Sequence[str]) -> str:
    """Provenance of the choices, as one line of ASCII: where there is no room for all, without
    weights, and where there is none for that, of the first ones."""
    found = [
        provenance_of(end.provenance if end else None, number, HEADER_WEIGHTS)
        for end, number in zip(ends, numbers, strict=True)
    ]
    if len(_line(found)) > HEADER_BYTES:
        for each in found:
            if each is not None:
                del each["weights"]
    while len(found) > 1 and len(_line(found)) > HEADER_BYTES:
        found.pop()
    return _line(found)


def _line(values: Any) -> str:
    return json.dumps(values, separators=(",", ":"), allow_nan=False)


def usage_of(ends: Sequence[Finished], numbers: Sequence[str], copies: int) -> dict[str, Any]:
    """Tokens of all choices; a prompt counts once, however many choices it has."""
    prompt = sum(end.prompt_tokens for end in ends[::copies])
    written = sum(end.tokens for end in ends)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "dylora": [
            provenance_of(end.provenance, number) for end, number in zip(ends, numbers, strict=True)
        ],
    }


def finite(value: float) -> float:
    """A log-probability as JSON has it: what cannot be is -9999, as in OpenAI's API."""
    return round(value, 6) if math.isfinite(value) else -9999.0


def chat_logprobs(found: Sequence[Logprobs]) -> dict[str, Any]:
    """Log-probabilities as `/v1/chat/completions` has them."""
    return {
        "content": [
            {**_token(each.chosen), "top_logprobs": [_token(other) for other in each.top]}
            for each in found
        ],
        "refusal": None,
    }


def _token(found: TokenLogprob) -> dict[str, Any]:
    # Half a character is shown as the replacement character: its bytes are not those.
    half = "\ufffd" in found.text
    return {
        "token": found.text,
        "logprob": finite(found.logprob),
        "bytes": None if half else list(found.text.encode()),
    }


def completion_logprobs(found: Sequence[Logprobs], offset: int = 0) -> dict[str, Any]:
    """Log-probabilities as `/v1/completions` has them.

    Args:
        offset: characters of the answer that stand before the first of these tokens.
    """
    offsets = []
    for each in found:
        offsets.append(offset)
        offset += len(each.chosen.text)
    return {
        "tokens": [each.chosen.text for each in found],
        "token_logprobs": [finite(each.chosen.logprob) for each in found],
        "top_logprobs": [
            {other.text: finite(other.logprob) for other in each.top} or None for each in found
        ],
        "text_offset": offsets,
    }
