"""The rank that doubles when validation stalls.

Knows when an epoch has stalled and how AdamW's state goes with matrices that become larger; knows
no loop. A phase is measured once an epoch, and has few of them, so:

- An epoch has *stalled* that lowered the best loss by less than a share of it. Waiting for
  `patience` of them, as stopping does, would grow when the phase is over.
- The phase's last epoch is not asked: what grew then would learn nothing.
- What grows computes the same at first (Chen et al. 2016, Net2Net): new rows of `A` are random, new
  columns of `B` zero, and alpha grows with the rank. It goes on from the last weights, at the rate
  that the schedule has come to, and the patience begins anew. The best weights stay the best until
  they are beaten; if they never are, the expert ends with the rank that it had then.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def has_stalled(before: float, loss: float, share: float) -> bool:
    """Whether an epoch took less than a share off the best loss that there was before it."""
    return loss > (1.0 - share) * before


def grown(rank: int, most: int) -> int:
    """The next rank: twice as much, the cap at most; the same where there is no room."""
    return max(rank, min(2 * rank, most))


def carry_state(
    optimizer: torch.optim.Optimizer,
    old: Mapping[str, nn.Parameter],
    new: Mapping[str, nn.Parameter],
) -> None:
    """Hands what AdamW knows of matrices over to those that took their places.

    What was there keeps its moments. New directions have no first moment yet, and of the second
    the mean of the old ones': a tensor has one count of steps, by which Adam takes its moments for
    full (Kingma and Ba 2015, section 3), so from zero their first steps would be too long.

    Args:
        optimizer: AdamW over the old ones.
        old: parameters by name.
        new: the same names; at least as many rows of `A` and columns of `B`.
    """
    place = {id(one): new[name] for name, one in old.items()}
    for group in optimizer.param_groups:
        group["params"] = [place.get(id(one), one) for one in group["params"]]
    for name, before in old.items():
        state = optimizer.state.pop(before, None)
        if state is None:
            continue
        along = 1 if "lora_B" in name else 0
        more = new[name].shape[along] - before.shape[along]
        optimizer.state[new[name]] = {
            "step": state["step"],
            "exp_avg": _longer(state["exp_avg"], along, more, 0.0),
            "exp_avg_sq": _longer(state["exp_avg_sq"], along, more, 1.0),
        }


def _longer(moment: Tensor, along: int, more: int, share: float) -> Tensor:
    mean = share * moment.mean(along, keepdim=True)
    return torch.cat([moment, mean.repeat_interleave(more, along)], along)
