"""The routing weights as the mixture layers read them, bound to one forward pass.

Knows which expert counts how much for which row; knows nothing of how the weights were found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dylora_moe.errors import ConfigError, RoutingError


@dataclass(frozen=True, eq=False)
class Gates:
    """Weights of the experts that a batch uses.

    Attributes:
        experts: adapter names, one per column.
        weights: per row, or per token where several rows are packed into one; what a router
            gives sums to at most 1 in a row, and the rest is the base alone.
        most: experts that any row (or token) uses at most; None where nobody counted.
        uniform: every weight is exactly one, so that nothing has to be multiplied.
        kept: what layers made of these gates in inference, for the next step of a generation.
    """

    experts: tuple[str, ...]
    weights: Float[Tensor, "batch n"] | Float[Tensor, "batch seq n"]
    most: int | None = None
    uniform: bool = False
    kept: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        _check_columns(self.experts, self.weights)

    @classmethod
    def chosen(
        cls,
        experts: Sequence[str],
        weights: Float[Tensor, "batch n"] | Float[Tensor, "batch seq n"],
    ) -> Gates | None:
        """Gates of only those experts that count somewhere in the batch; None if none does.

        The one place where weights are looked at by Python, so that no layer has to wait for them.
        """
        # Before experts that do not count are left out, with which a mistake might go.
        _check_columns(experts, weights)
        if not len(experts) or not weights.numel():
            return None
        used = (weights.detach() != 0).flatten(0, -2)
        *counts, most = torch.cat([used.sum(0), used.sum(1).amax()[None]]).tolist()
        columns = [i for i, count in enumerate(counts) if count]
        if not columns:
            return None
        if len(columns) == len(counts):
            return cls(tuple(experts), weights, most)
        index = torch.tensor(columns, device=weights.device)
        return cls(tuple(experts[i] for i in columns), weights.index_select(-1, index), most)

    @classmethod
    def only(cls, expert: str, rows: int, device: torch.device | None = None) -> Gates:
        """One expert at weight exactly one for every row."""
        return cls((expert,), torch.ones(rows, 1, device=device), 1, uniform=True)

    @classmethod
    def all_of(cls, experts: Sequence[str], rows: int, device: torch.device | None = None) -> Gates:
        """Every expert at weight exactly one in every row: the sum of their deltas, as LoRAs that
        were trained on top of one another are used. With no experts: the base."""
        ones = torch.ones(rows, len(experts), device=device)
        return cls(tuple(experts), ones, len(experts), uniform=True)

    def per_token(self, segment_ids: Int[Tensor, "1 seq"]) -> Gates:
        """Weights of each packed row spread over its tokens.

        Args:
            segment_ids: 0..n-1, the packed row of each token.

        Raises:
            RoutingError: the weights are per token already.
        """
        if self.weights.dim() != 2:
            raise RoutingError("these gates are per token; packed rows take one weight per row")
        return Gates(self.experts, self.weights[segment_ids], self.most, self.uniform)

    def detached(self) -> Gates:
        """The same weights, without a gradient to whoever gave them."""
        return Gates(self.experts, self.weights.detach(), self.most, self.uniform)

    def repeated(self, times: int) -> Gates:
        """Every row `times` times behind itself, as generation repeats prompts for beams."""
        if times == 1:
            return self
        weights = self.weights.repeat_interleave(times, dim=0)
        return Gates(self.experts, weights, self.most, self.uniform)

    def picked(
        self, experts: tuple[str, ...], scalings: tuple[float, ...]
    ) -> tuple[Int[Tensor, "*rows k"], Float[Tensor, "*rows k"]]:
        """Each row's (or token's) own experts, and weight times scaling of each.

        Args:
            experts: those the layer has; the indices are into these.
            scalings: LoRA's alpha / rank of each.

        Returns:
            `k` is the most that any row uses; who uses fewer gets others at weight zero.
        """
        weights = self._columns(experts)
        # A negative weight counts too, as in `chosen`.
        most = min(len(experts), self.most or len(experts))
        chosen = weights.detach().abs().topk(most).indices
        factors = torch.tensor(scalings, device=weights.device, dtype=weights.dtype)
        return chosen, weights.gather(-1, chosen) * factors[chosen]

    def along_rank(
        self,
        experts: tuple[str, ...],
        ranks: tuple[int, ...],
        scalings: tuple[float, ...],
        like: Tensor,
    ) -> Tensor:
        """Weight times scaling for every row of the stacked `lora_A`, in the dtype of `like`.

        Args:
            experts: those the layer has, in the order of its stack.
            ranks: rows of each expert in the stack.
            scalings: LoRA's alpha / rank of each.
            like: the layer's input, `[batch, seq, d]`, or `[batch * seq, d]` in blocks that
                flatten their rows.

        Returns:
            Shape that multiplies the stack's output of shape `[*like.shape[:-1], sum(ranks)]`.
        """
        # With gradients nothing is kept: a tensor made in one checkpointed block and reused in the
        # next would not be made again in the recompute.
        keep = not (torch.is_grad_enabled() or torch.compiler.is_compiling())
        key = (experts, ranks, scalings, like.dtype, like.device, like.dim(), like.shape[0])
        if keep and key in self.kept:
            kept: Tensor = self.kept[key]
            return kept
        rows = _expand(self._rows(experts, like), ranks, scalings).to(like.dtype)
        if keep:
            self.kept[key] = rows
        return rows

    def _columns(self, experts: tuple[str, ...]) -> Tensor:
        if experts == self.experts:
            return self.weights
        return torch.stack([self.weights[..., self.experts.index(e)] for e in experts], dim=-1)

    def _rows(self, experts: tuple[str, ...], like: Tensor) -> Tensor:
        weights = self._columns(experts)
        if like.dim() == 2:
            flat = weights.flatten(0, -2)
            return flat.repeat_interleave(like.shape[0] // flat.shape[0], dim=0)
        return weights if weights.dim() == like.dim() else weights.unsqueeze(1)


def _check_columns(experts: Sequence[str], weights: Tensor) -> None:
    if len(set(experts)) != len(experts):
        raise RoutingError(f"an expert stands twice in {', '.join(experts)}; name it once")
    if weights.shape[-1] != len(experts):
        raise RoutingError(
            f"{weights.shape[-1]} columns of weights for {len(experts)} experts; "
            "give one column per expert"
        )


def _expand(weights: Tensor, ranks: tuple[int, ...], scalings: tuple[float, ...]) -> Tensor:
    n = len(ranks)
    if len(set(ranks)) == 1 and len(set(scalings)) == 1:
        scaled = (weights * scalings[0]).unsqueeze(-1)
        return scaled.expand(*weights.shape, ranks[0]).flatten(-2)
    columns = [
        (weights[..., i : i + 1] * scalings[i]).expand(*weights.shape[:-1], ranks[i])
        for i in range(n)
    ]
    return torch.cat(columns, dim=-1)


class GateSlot:
    """Where the mixture layers of one model find the gates of the running forward pass.

    Attributes:
        current: the gates, or None for the base alone.
        revision: counts the changes that the manager makes to any expert, so that layers drop what
            they keep of it.
    """

    def __init__(self) -> None:
        self.current: Gates | None = None
        self.revision = 0

    @contextmanager
    def bound(self, gates: Gates | None) -> Iterator[None]:
        """Binds the gates within the block and puts the previous ones back, also on an error."""
        before = self.current
        self.current = gates
        try:
            yield
        finally:
            self.current = before


def checkpoint_with_gates(
    slot: GateSlot, *, use_reentrant: bool = False, **kwargs: Any
) -> Callable[..., Any]:
    """A `_gradient_checkpointing_func` for transformers' blocks that keeps the forward's gates.

    The recompute runs during backward, when the slot is empty or holds those of another forward;
    so the gates are captured with the block's inputs and bound again.

    Args:
        slot: the model's slot.
        use_reentrant: must be False.
        kwargs: handed to `torch.utils.checkpoint.checkpoint`.

    Raises:
        ConfigError: reentrant checkpointing, which loses the gradient of captured gates.
    """
    if use_reentrant:
        raise ConfigError(
            "reentrant gradient checkpointing loses the gate's gradient; set use_reentrant to False"
        )

    def run(block: Callable[..., Any], *inputs: Any) -> Any:
        gates = slot.current

        def with_gates(*again: Any) -> Any:
            with slot.bound(gates):
                return block(*again)

        return checkpoint(with_gates, *inputs, use_reentrant=False, **kwargs)

    return run
