"""Arithmetic on pairs of LoRA matrices: merging several into one, changing the rank, how far one
moved.

Knows matrices; knows nothing of modules, names or files.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Pair = tuple[Float[Tensor, "rank d_in"], Float[Tensor, "d_out rank"]]
"""`A` and `B` of one layer, whose product `B A` is the change of its weight."""


def merge(
    pairs: Sequence[tuple[Tensor, Tensor]],
    factors: Sequence[float],
    fresh: tuple[Tensor, Tensor],
    scaling: float,
) -> tuple[Float[Tensor, "rank d_in"], Float[Tensor, "d_out rank"]]:
    """The best approximation of a weighted sum of LoRA deltas by one LoRA of the fresh one's rank.

    `sum_i factors[i] B_i A_i` is never formed: with `[B_1 f_1, ..] = Q_b R_b` and
    `[A_1; ..]^T = Q_a R_a` its singular values are those of the small `R_b R_a^T`, whose leading
    ones are kept (Eckart-Young: the nearest matrix of that rank in Frobenius norm) and divided
    evenly between `A` and `B`. Exact if the ranks add up to no more than the new one.

    Args:
        pairs: `A` `[r_i, in]` and `B` `[out, r_i]` of each source.
        factors: weight times the source's own scaling.
        fresh: a new adapter's matrices; its rows of `A` stay (and those of `B` are zero) where the
            sum has no more directions, since a direction of zeros in both would never learn.
        scaling: the new adapter's own scaling, which the result is divided by.

    Returns:
        The new `A` `[rank, in]` and `B` `[out, rank]`, in the fresh one's dtype.
    """
    fresh_a, fresh_b = fresh
    downs = torch.cat([a.double() for a, _ in pairs])
    ups = torch.cat([b.double() * f for (_, b), f in zip(pairs, factors, strict=True)], dim=1)
    q_up, r_up = torch.linalg.qr(ups / scaling)
    q_down, r_down = torch.linalg.qr(downs.T)
    u, sizes, v = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    rank = fresh_a.shape[0]
    alive = sizes[:rank] > 1e-10 * sizes[:1].clamp(min=1e-30)
    kept = int(alive.sum())
    root = sizes[:kept].sqrt()
    new_a, new_b = fresh_a.clone(), torch.zeros_like(fresh_b)
    new_a[:kept] = (root.unsqueeze(1) * (v[:kept] @ q_down.T)).to(new_a.dtype)
    new_b[:, :kept] = ((q_up @ u[:, :kept]) * root).to(new_b.dtype)
    return new_a, new_b


def resized(
    pair: tuple[Tensor, Tensor], fresh: tuple[Tensor, Tensor], factor: float
) -> tuple[Float[Tensor, "rank d_in"], Float[Tensor, "d_out rank"]]:
    """A pair of another rank: of a higher one it computes the same, with room to learn; of a lower
    one it has the first directions alone.

    Args:
        pair: the old `A` and `B`.
        fresh: a new adapter's matrices of the other rank; its further rows of `A` are taken, with
            zeros in `B`.
        factor: old scaling / new scaling, which moves into `B`.

    Returns:
        The new `A` and `B`.
    """
    (old_a, old_b), (fresh_a, fresh_b) = pair, fresh
    kept = min(old_a.shape[0], fresh_a.shape[0])
    new_a, new_b = fresh_a.clone(), torch.zeros_like(fresh_b)
    new_a[:kept] = old_a[:kept]
    new_b[:, :kept] = old_b[:, :kept] * factor
    return new_a, new_b


def moved(before: tuple[Tensor, Tensor], now: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Squared Frobenius norms of what a delta `B A` changed by, and of what it is now.

    From the small Gram matrices, `|B A|^2 = sum((B^T B) * (A A^T))`, in fp64: the difference of two
    that are nearly the same is small beside them.

    Args:
        before: `A` and `B`.
        now: `A` and `B` of the same or another rank.
    """
    (old_a, old_b), (new_a, new_b) = (tuple(one.double() for one in two) for two in (before, now))
    size = _inner((new_a, new_b), (new_a, new_b))
    change = (
        size - 2 * _inner((new_a, new_b), (old_a, old_b)) + _inner((old_a, old_b), (old_a, old_b))
    )
    return max(0.0, change), size


def _inner(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> float:
    return float(((left[1].T @ right[1]) * (left[0] @ right[0].T)).sum())
