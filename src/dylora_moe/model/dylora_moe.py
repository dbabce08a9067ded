"""The model: a frozen base, experts above its tap, and a router that reads at the tap.

Knows how one pass finds its gates and its loss; how HF's Trainer looks at a model stands in
`trained_model`. Knows nothing of phases, pools or texts.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from dylora_moe.errors import RoutingError
from dylora_moe.experts.gates import Gates
from dylora_moe.experts.manager import ExpertManager
from dylora_moe.foundation.anatomy import blocks
from dylora_moe.foundation.base import Base
from dylora_moe.foundation.cache_name import cache_of, with_cache
from dylora_moe.foundation.lean import gated_mlp
from dylora_moe.foundation.tap import TapReader
from dylora_moe.foundation.trunk import TrunkBatch, replay
from dylora_moe.model.head import answer_losses_of, ends_at_head, passed_over
from dylora_moe.model.last_mlp import trained_only
from dylora_moe.model.loss import TrainedPositions, cross_entropy, summed_up, trained_positions
from dylora_moe.model.output import RoutedOutput
from dylora_moe.model.passes import Passes, check_packed
from dylora_moe.model.prefix_cache import with_prefix_cache
from dylora_moe.model.trained_model import TrainedModel
from dylora_moe.routing.router import DynamicHybridRouter
from dylora_moe.routing.routing import Routing


class DyLoRAMoE(TrainedModel):
    """Base, experts and router in one forward pass.

    Only experts (those the manager made trainable) and router learn: the base, its head too, is
    frozen, and stays in eval mode when this module trains, so that its hidden states are constants
    of the data. Nothing of a pass is kept on the module.

    Args:
        base: the frozen base.
        router: of width `base.anatomy.d_features`.
        experts: the manager of adapters on `base.model`.

    Raises:
        RoutingError: the router is of another width.
        ConfigError: the manager's adapters are on another model.
    """

    _last_mlp: nn.Module | None

    def __init__(self, base: Base, router: DynamicHybridRouter, experts: ExpertManager) -> None:
        super().__init__(base, router, experts)
        self.tap = TapReader(base.model, base.anatomy)
        # A module that is not to be found under two names.
        vars(self)["_last_mlp"] = gated_mlp(blocks(base.model, base.anatomy)[-1])

    @cached_property
    def _ends_at_head(self) -> bool:
        # Asked by the first pass that makes no logits, and not before: it runs the base.
        return ends_at_head(self.base)

    def forward(
        self,
        input_ids: Int[Tensor, "batch seq"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "_ seq"] | None = None,
        labels: Int[Tensor, "batch seq"] | None = None,
        *,
        prompt_mask: Bool[Tensor, "batch seq"] | None = None,
        segment_ids: Int[Tensor, "1 seq"] | None = None,
        trunk: TrunkBatch | None = None,
        gates: Gates | Routing | None = None,
        expert: str | None = None,
        trained_logits_only: bool = False,
        loss_only: bool = False,
        greedy: bool = False,
        num_items_in_batch: Tensor | int | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> RoutedOutput:
        """One pass, routed by `gates`, by `expert`, by the pinned expert, or by itself.

        Args:
            input_ids: tokens; may be left out where `trunk` stands in for them.
            attention_mask: of padded rows; none for packed ones.
            position_ids: of packed rows.
            labels: the token itself where it is trained, -100 elsewhere; shifted here.
            prompt_mask: what routing of rows pools over; the attention mask where there are no
                labels.
            segment_ids: row (0..n-1) of each token of a packed batch.
            trunk: cached states of this very batch; the pass then starts at the tap.
            gates: weights of experts per row (or segment) or token, or an earlier pass's routing.
            expert: one expert for all rows at weight one, or `base` for none.
            trained_logits_only: compute logits only where labels are trained.
            loss_only: compute the loss there and return no logits at all (`head`).
            greedy: return the token of the largest logit at each trained position.
            num_items_in_batch: what HF's Trainer divides the summed loss by.
            use_cache: the base's own default where there are no labels.
            kwargs: handed to the base.

        Raises:
            RoutingError: the arguments contradict each other, or do not say what to route by.
            ExpertError: an unknown expert.
        """
        if labels is None and (trained_logits_only or loss_only or greedy):
            raise RoutingError(
                "the loss needs labels; pass them, or leave trained_logits_only, loss_only and "
                "greedy out"
            )
        if segment_ids is not None:
            check_packed(self.base, attention_mask, position_ids)
        if input_ids is None:
            input_ids = self._stand_ins(trunk)
        if labels is not None or segment_ids is not None or trunk is not None or self._recomputes:
            use_cache = False
        inputs = with_cache(kwargs, cache_of(kwargs))
        inputs |= {"input_ids": input_ids, "attention_mask": attention_mask}
        inputs |= {"position_ids": position_ids, "use_cache": use_cache}
        chosen = gates is not None or expert is not None or self.experts.pinned is not None
        if self.passes.per_token and not chosen:
            inputs = with_prefix_cache(inputs, self.config)
        positions = None if labels is None else trained_positions(labels, segment_ids)
        without_logits = loss_only and self._ends_at_head
        with ExitStack() as stack:
            if chosen:
                told = self.passes.told(gates, expert, input_ids.shape, segment_ids)
                routings = stack.enter_context(told)
            else:
                asked = self.passes.asked(inputs, prompt_mask, labels, segment_ids, trunk)
                routings = stack.enter_context(asked)
            if trunk is not None:
                stack.enter_context(replay(self.base, trunk.hidden))
            if positions is not None and (trained_logits_only or loss_only):
                mlp = None if self._recomputes else self._last_mlp
                slot = self.experts.slot
                stack.enter_context(trained_only(self._head, mlp, positions.mask, slot))
            if without_logits:
                stack.enter_context(passed_over(self._head))
            output = self.model(**{k: v for k, v in inputs.items() if v is not None})
        routed = RoutedOutput(**output, routing=routings[0] if routings else None)
        if positions is not None:
            if trained_logits_only or loss_only:
                routed.logits = output.logits.squeeze(0)
            self._give_loss(routed, positions, num_items_in_batch, without_logits, greedy)
            if loss_only:
                routed.logits = None
        return routed

    @property
    def passes(self) -> Passes:
        """How a pass of this model gets its gates."""
        return Passes(self.router, self.experts, self.tap, self.device)

    def _stand_ins(self, trunk: TrunkBatch | None) -> Int[Tensor, "batch seq"]:
        """Tokens for a pass that starts at the tap; the blocks above never see them."""
        if trunk is None:
            raise RoutingError("nothing to read; pass input_ids, or the trunk of a batch")
        return torch.zeros(trunk.hidden.shape[:2], dtype=torch.long, device=self.device)

    @property
    def _head(self) -> nn.Module:
        head: nn.Module = self.model.get_submodule(self.base.anatomy.head_name)
        return head

    def _give_loss(
        self,
        routed: RoutedOutput,
        positions: TrainedPositions,
        num_items: Tensor | int | None,
        without_logits: bool,
        greedy: bool,
    ) -> None:
        """Sets the losses; without logits, those stand for the last hidden states."""
        logits, head = routed.logits, self._head
        assert logits is not None
        chosen = logits if logits.dim() == 2 else logits[positions.mask]
        if without_logits:
            assert isinstance(head, nn.Linear)
            found = answer_losses_of(chosen, head, positions.targets, greedy=greedy)
            loss, routed.greedy = summed_up(found.losses, positions, num_items), found.greedy
        else:
            loss = cross_entropy(chosen, positions, num_items)
            routed.greedy = chosen.argmax(-1) if greedy else None
        routed.loss, routed.n_tokens = loss.mean, loss.n_tokens
        routed.row_losses, routed.row_tokens = loss.row_means, loss.row_tokens
