"""Generation with a KV cache: routed once, at the prompt, and carried.

Knows HF's `generate`; knows nothing of templates or tokenizers' texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from dylora_moe.errors import RoutingError
from dylora_moe.experts.gates import Gates
from dylora_moe.foundation.tap import Hiddens, pool_features
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.model.passes import check_one_choice, gates_of
from dylora_moe.records import BASE_NAME
from dylora_moe.routing.routing import Routing


@dataclass(frozen=True, eq=False)
class Generation:
    """What was written, and who wrote it.

    Attributes:
        sequences: prompts with their answers, padded on the right; several per prompt in a row
            where that many were asked for.
        prompt_length: tokens of the padded prompts, which the answers come after.
        routing: of each prompt; None where the caller decided.
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
    **options: Any,
) -> Generation:
    """Continues prompts, each with the experts its own prompt is routed to.

    The routing is decided in the pass that reads the prompts and holds until the end, for every
    beam and every returned sequence of a prompt. Runs in eval mode, whatever the model's.

    Args:
        model: base, experts and router.
        input_ids: prompts, padded on the left.
        attention_mask: 0 on padding; None where there is none.
        expert: one expert for all prompts at weight one, or `base` for none.
        gates: weights per prompt, or an earlier routing.
        options: of HF's `generate` (`max_new_tokens`, `do_sample`, `num_beams`, `streamer`, ...).

    Raises:
        RoutingError: prompts padded on the right, a prompt read in pieces, gates for another
            number of prompts, or both gates and an expert.
        ExpertError: an unknown expert.
    """
    ids = input_ids.to(model.device)
    mask = (torch.ones_like(ids) if attention_mask is None else attention_mask.to(ids)).bool()
    _check(model, mask, expert, gates, options)
    if options.get("pad_token_id") is None and options.get("generation_config") is None:
        options["pad_token_id"] = model.base.tokenizer.pad_token_id
    carried = _Carried(model, mask, expert, gates)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), model.passes.bound(None), model.tap.listening(carried.at_the_tap):
            sequences = model.model.generate(
                input_ids=ids,
                attention_mask=mask.long(),
                **(options | {"return_dict_in_generate": False}),
            )
    finally:
        model.train(was_training)
    return Generation(sequences, ids.shape[1], carried.routing)


class _Carried:
    """Decides at the first pass of a generation, and leaves the later ones as they are."""

    def __init__(
        self,
        model: DyLoRAMoE,
        prompt_mask: Tensor,
        expert: str | None,
        gates: Gates | Routing | None,
    ) -> None:
        self._model = model
        self._mask = prompt_mask
        self._expert = expert if expert is not None or gates is not None else model.experts.pinned
        self._gates = gates
        self._decided = False
        self.routing: Routing | None = None

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
        self.routing = self._model.router(pool_features(hiddens, self._mask))
        return gates_of(self.routing)


def _check(
    model: DyLoRAMoE,
    mask: Tensor,
    expert: str | None,
    gates: Gates | Routing | None,
    options: dict[str, Any],
) -> None:
    check_one_choice(expert, gates)
    config = options.get("generation_config") or model.model.generation_config
    if options.get("prefill_chunk_size") or config.prefill_chunk_size:
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
