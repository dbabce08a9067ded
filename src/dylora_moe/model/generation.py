"""Generation with a KV cache: routed once, at the prompt, and carried; or token by token.

Knows HF's `generate`; knows nothing of templates or tokenizers' texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.utils import ModelOutput

from dylora_moe.errors import RoutingError
from dylora_moe.experts.gates import Gates
from dylora_moe.foundation.cache_name import CACHE, cache_of
from dylora_moe.foundation.tap import Hiddens, pool_features
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.model.passes import check_one_choice, gates_of
from dylora_moe.model.prefix_cache import PrefixCache
from dylora_moe.model.row_tokens import OnTokens, listener
from dylora_moe.records import BASE_NAME
from dylora_moe.routing.routing import Routing, by_step

_NO_PROCESSING = frozenset(
    {"bos_token_id", "eos_token_id", "pad_token_id", "do_sample", "temperature", "top_p", "top_k"}
    | {"max_length", "use_cache", "output_attentions", "output_hidden_states"}
    | {"_from_model_config", "transformers_version"}
)
"""Settings of a base's generation that leave the logits of greedy search as they are."""


@dataclass(frozen=True, eq=False)
class Generation:
    """What was written, and who wrote it.

    Attributes:
        sequences: prompts with their answers, padded on the right; several per prompt in a row
            where that many were asked for.
        prompt_length: tokens of the padded prompts, which the answers come after.
        routing: of each prompt, carried through its answers; or, where the router decides for each
            token, of each answer token of each sequence, `[rows, answer, ...]`: what it was written
            by. None where the caller decided.
    """

    sequences: Int[Tensor, "rows seq"]
    prompt_length: int
    routing: Routing | None

    @property
    def answers(self) -> Int[Tensor, "rows answer"]:
        """The tokens after the prompts."""
        return self.sequences[:, self.prompt_length :]


def generate(
    model: DyLoRAMoE,
    input_ids: Int[Tensor, "batch seq"],
    attention_mask: Int[Tensor, "batch seq"] | None = None,
    *,
    expert: str | None = None,
    gates: Gates | Routing | None = None,
    on_tokens: OnTokens | None = None,
    **options: Any,
) -> Generation:
    """Continues prompts, each with the experts its own prompt is routed to.

    The routing is decided in the pass that reads the prompts and holds until the end, for every
    beam and every returned sequence of a prompt. Where the router decides for each token, the
    running mean of every sequence is carried in the KV cache (`model.prefix_cache`), and moves with
    the beams. Runs in eval mode, whatever the model's.

    Args:
        model: base, experts and router.
        input_ids: prompts, padded on the left.
        attention_mask: 0 on padding; None where there is none.
        expert: one expert for all prompts at weight one, or `base` for none.
        gates: weights per prompt, or an earlier routing.
        on_tokens: called with every row's tokens as they fall; what it raises ends the generation.
        options: of HF's `generate` (`max_new_tokens`, `do_sample`, `num_beams`, `streamer`, ...).

    Raises:
        RoutingError: prompts padded on the right, a prompt read in pieces, gates for another
            number of prompts, both gates and an expert, or beams with `on_tokens`; where the
            router decides for each token, a cache of another kind, or assisted decoding.
        ExpertError: an unknown expert.
    """
    ids = input_ids.to(model.device)
    mask = (torch.ones_like(ids) if attention_mask is None else attention_mask.to(ids)).bool()
    _check(model, mask, expert, gates, options)
    if options.get("pad_token_id") is None and options.get("generation_config") is None:
        options["pad_token_id"] = model.base.tokenizer.pad_token_id
    heard = None
    if on_tokens is not None:
        wished = partial(_wished, model, options)
        heard = listener(on_tokens, options, wished, model.base.tokenizer)
    pinned = expert if expert is not None or gates is not None else model.experts.pinned
    carried: _Carried | _ByToken
    if model.passes.per_token and pinned is None and gates is None:
        carried = _ByToken(model, mask, options)
    else:
        carried = _Carried(model, mask, pinned, gates)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), model.passes.bound(None), model.tap.listening(carried.at_the_tap):
            output = model.model.generate(
                input_ids=ids,
                attention_mask=mask.long(),
                **(options | {"return_dict_in_generate": True}),
            )
    finally:
        model.train(was_training)
    if heard is not None:
        heard.finish()
    return Generation(output.sequences, ids.shape[1], carried.routing(output))


def writes_the_largest(model: DyLoRAMoE) -> bool:
    """Whether greedy search writes the token of the largest logit: some bases ask for more than
    that, such as a penalty on repetition."""
    return set(model.model.generation_config.to_diff_dict()) <= _NO_PROCESSING


class _Carried:
    """Decides at the first pass of a generation, and leaves the later ones as they are."""

    def __init__(
        self,
        model: DyLoRAMoE,
        prompt_mask: Tensor,
        expert: str | None,
        gates: Gates | Routing | None,
    ) -> None:
        self._model, self._mask = model, prompt_mask
        self._expert, self._gates = expert, gates
        self._decided = False
        self._routing: Routing | None = None

    def routing(self, output: ModelOutput) -> Routing | None:
        """Of each prompt, where the router decided."""
        return self._routing

    def at_the_tap(self, hiddens: Hiddens) -> None:
        if self._decided:
            return
        self._decided = True
        # Beams and returned sequences: each prompt stands that many times behind itself.
        times = hiddens[0].shape[0] // self._mask.shape[0]
        gates = self._decide(tuple(hidden[::times] for hidden in hiddens))
        self._model.passes.give(None if gates is None else gates.repeated(times))

    def _decide(self, hiddens: Hiddens) -> Gates | None:
        if self._expert == BASE_NAME:
            return None
        if self._expert is not None:
            return Gates.only(self._expert, self._mask.shape[0], self._model.device)
        if self._gates is not None:
            return gates_of(self._gates)
        self._routing = self._model.router(pool_features(hiddens, self._mask))
        return gates_of(self._routing)


class _ByToken:
    """Decides in every pass, for each of its tokens, by what stands before it.

    Args:
        model: base, experts and router.
        prompt_mask: False on padding.
        options: of `generate`; get the cache that carries the running mean.
    """

    def __init__(self, model: DyLoRAMoE, prompt_mask: Tensor, options: dict[str, Any]) -> None:
        self._model, self._mask = model, prompt_mask
        self._steps: list[Routing] = []
        self._cache: PrefixCache | None = None
        if _wished(model, options, "use_cache") is not False:
            options[CACHE] = self._cache = PrefixCache(model.config)

    def at_the_tap(self, hiddens: Hiddens) -> None:
        passes, (rows, seq) = self._model.passes, hiddens[0].shape[:2]
        mask = torch.ones(rows, seq, dtype=torch.bool, device=hiddens[0].device)
        if self._cache is None or not self._steps:
            # Beams and returned sequences: each prompt stands that many times behind itself.
            prompts = self._mask.repeat_interleave(rows // self._mask.shape[0], dim=0)
            mask[:, : prompts.shape[1]] = prompts
        routing = passes.token_routing(hiddens, mask, self._cache)
        passes.give(gates_of(routing))
        self._steps.append(routing.at_the_end())

    def routing(self, output: ModelOutput) -> Routing | None:
        """Of each token of each answer, along the beams that it came by."""
        rows = getattr(output, "beam_indices", None)
        if rows is None:
            sequences, device = len(output.sequences), output.sequences.device
            rows = torch.arange(sequences, device=device)[:, None].expand(-1, len(self._steps))
        return by_step(self._steps, rows)


def _wished(model: DyLoRAMoE, options: Mapping[str, Any], name: str) -> Any:
    """A setting of `generate` as it will hold: from the options, their configuration or the
    base's, in this order."""
    if name in options:
        return options[name]
    given = getattr(options.get("generation_config"), name, None)
    return given if given is not None else getattr(model.model.generation_config, name, None)


def _check(
    model: DyLoRAMoE,
    mask: Tensor,
    expert: str | None,
    gates: Gates | Routing | None,
    options: dict[str, Any],
) -> None:
    check_one_choice(expert, gates)
    pinned = expert is not None or gates is not None or model.experts.pinned is not None
    if model.passes.per_token and not pinned:
        _check_cache(model, options)
    if gates is not None and gates.weights.dim() != 2:
        raise RoutingError(
            "gates per token cannot tell of tokens that are not written yet; give one row of "
            "weights for each prompt"
        )
    if _wished(model, options, "prefill_chunk_size"):
        raise RoutingError(
            "routing reads the whole prompt in one pass; leave prefill_chunk_size out"
        )
    if not bool(mask[:, -1].all()):
        raise RoutingError(
            "prompts padded on the right would be continued after their padding; pad on the left"
        )
    if gates is not None and gates.weights.shape[0] != mask.shape[0]:
        raise RoutingError(
            f"gates for {gates.weights.shape[0]} prompts and {mask.shape[0]} prompts; give one each"
        )


def _check_cache(model: DyLoRAMoE, options: Mapping[str, Any]) -> None:
    # transformers takes "hybrid" for no wish at all.
    kind = _wished(model, options, "cache_implementation")
    if kind not in (None, "hybrid") or cache_of(options) is not None:
        raise RoutingError(
            "routing token by token carries its running mean in a cache of its own; leave "
            "cache_implementation and the cache out"
        )
    looks_up = _wished(model, options, "prompt_lookup_num_tokens")
    if options.get("assistant_model") is not None or looks_up:
        raise RoutingError(
            "routing token by token cannot take tokens back out of its running mean; generate "
            "without an assistant and without prompt lookup"
        )
