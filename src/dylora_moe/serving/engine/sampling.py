"""Draws the next token of each row, by that row's own settings and its own random numbers.

Knows logits; knows no text and no requests. A row's draws do not depend on what else is in its
batch: its generator is its own, and only its logits are looked at.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_FIRST = 256
"""Candidates that are looked at first where the likeliest are cut off: nearly always enough."""


class Draws:
    """The draws of one row.

    Args:
        temperature: 0 takes the largest logit.
        top_p: share of the probability, the likeliest first, that is drawn from (nucleus sampling,
            Holtzman et al. 2020).
        top_k: tokens that are drawn from; 0: all.
        seed: of the draws.
        device: of the logits.
    """

    def __init__(
        self, temperature: float, top_p: float, top_k: int, seed: int, device: torch.device
    ) -> None:
        self._temperature, self._top_p, self._top_k = temperature, top_p, top_k
        self._generator = torch.Generator(device).manual_seed(seed)

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self._temperature == 0

    def pick(self, logits: Float[Tensor, " vocabulary"]) -> int:
        """The next token."""
        if self.is_greedy:
            return int(logits.argmax())
        scaled = logits.float() / self._temperature
        if self._top_k or self._top_p < 1:
            candidates = self._kept(scaled)
            return int(candidates[self._race(scaled[candidates])])
        return self._race(scaled)

    def _race(self, scaled: Tensor) -> int:
        """Draws by the exponential race: the least of `e_i / p_i` is `i` with probability `p_i`."""
        waits = torch.empty_like(scaled).exponential_(generator=self._generator)
        return int((scaled - waits.log()).argmax())

    def _kept(self, scaled: Tensor) -> Tensor:
        """The tokens that are drawn from, the likeliest first."""
        size = len(scaled)
        most = min(self._top_k or size, size)
        if self._top_p >= 1:
            return scaled.topk(most).indices
        # Of `top_k` tokens alone the probability is counted, as everywhere.
        whole = scaled.topk(most).values.logsumexp(0) if most < size else scaled.logsumexp(0)
        count = min(_FIRST, most)
        while True:
            values, tokens = scaled.topk(count)
            share = (values - whole).exp().cumsum(0)
            if count == most or float(share[-1]) >= self._top_p:
                # The first that reaches it counts too, so there is always one.
                return tokens[: int((share < self._top_p).sum()) + 1]
            count = min(4 * count, most)
