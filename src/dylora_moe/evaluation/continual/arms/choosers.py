"""Ways to choose a skill for an input by its tap features, each as its paper has it.

Features are the pool's own (`foundation.tap`), so that only the choice differs. Each is fitted on
the training rows of all skills and gives for every row the skill and, where the method has such a
thing, its probability. Hyperparameters are fixed here; no test row had a part in choosing them (the
ridge is in the middle of three orders of magnitude that do equally well on training rows held
back). Knows feature vectors and names; knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from dylora_moe.foundation.statistics import double

Features = Mapping[str, Tensor]
"""Rows `[n, d_features]` of each skill, the skills in the order in which they came."""


@dataclass(frozen=True, eq=False)
class Choice:
    """What was chosen for some rows.

    Attributes:
        skills: the names, in order.
        best: of each row, an index into them.
        probability: of that skill; None where the method knows none.
    """

    skills: tuple[str, ...]
    best: Int[Tensor, " n"]
    probability: Float[Tensor, " n"] | None = None

    @property
    def named(self) -> list[str]:
        """The skill of each row."""
        return [self.skills[index] for index in self.best.tolist()]

    @property
    def decided(self) -> list[tuple[str, float | None]]:
        """The skill of each row with its probability."""
        shares: Sequence[float | None] = [None] * len(self.best)
        if self.probability is not None:
            shares = self.probability.tolist()
        return list(zip(self.named, shares, strict=True))


@dataclass(frozen=True, eq=False)
class Standard:
    """Features with mean 0 and deviation 1 in every place.

    Attributes:
        mean, std: of the rows it was made of; a place that never varied has a deviation of 1.
    """

    mean: Float[Tensor, " d"]
    std: Float[Tensor, " d"]

    @classmethod
    def of(cls, rows: Float[Tensor, "n d"]) -> Standard:
        values = double(rows)
        std = values.std(0, correction=0)
        return cls(values.mean(0), torch.where(std > 0, std, 1.0))

    def __call__(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """In float64, on the CPU."""
        return (double(rows) - self.mean) / self.std


def centroid(train: Features, test: Float[Tensor, "n d"], seed: int = 0) -> Choice:
    """The nearest class mean (Mensink et al. 2013), in features standardised over all training
    rows, by Euclidean distance."""
    standard = Standard.of(torch.cat(list(train.values())))
    means = torch.stack([standard(rows).mean(0) for rows in train.values()])
    return Choice(tuple(train), torch.cdist(standard(test), means).argmin(-1))


KEY_STEPS, KEY_RATE = 200, 0.03


def learned_keys(train: Features, test: Float[Tensor, "n d"], seed: int = 0) -> Choice:
    """L2P's choice (Wang et al. 2022, "Learning to Prompt for Continual Learning", eq. 3 to 5): a
    learned key for each skill, pulled towards the features of its own rows by `1 - cosine`, and at
    inference the key of the largest cosine. Each key is learned when its skill comes, and not moved
    again. Features are as they are, as the paper's are: 200 full-batch steps of Adam at 0.03, from
    keys drawn evenly of 0 to 1 (the authors' code).

    Args:
        seed: of the keys' start.
    """
    generator = torch.Generator().manual_seed(seed)
    keys = []
    for rows in train.values():
        start = torch.rand(rows.shape[1], generator=generator)
        key = torch.nn.Parameter(start)
        optimizer = torch.optim.Adam([key], lr=KEY_RATE)
        unit = functional.normalize(rows.float().cpu(), dim=-1)
        for _ in range(KEY_STEPS):
            optimizer.zero_grad()
            loss = 1 - (unit @ functional.normalize(key, dim=0)).mean()
            loss.backward()
            optimizer.step()
        keys.append(functional.normalize(key.detach(), dim=0))
    cosines = functional.normalize(test.float().cpu(), dim=-1) @ torch.stack(keys).T
    return Choice(tuple(train), cosines.argmax(-1))


RIDGE = 10.0


class RecursiveLeastSquares:
    """Ridge regression from features to one-hot skills, taken in piece by piece.

    Source: Zhuang et al. (2022), "ACIL: Analytic Class-Incremental Learning with Absolute
    Memorization and Privacy Protection", eq. 9 to 13; the weights after any number of pieces are
    those of ridge regression on all of their rows. A skill's column is zero until it comes.

    Args:
        d_features: of a row; a constant is put behind it.
        ridge: the regularisation.

    Attributes:
        weights: `[d_features + 1, n_skills]`, float64.
    """

    def __init__(self, d_features: int, ridge: float = RIDGE) -> None:
        self._inverse = torch.eye(d_features + 1, dtype=torch.float64) / ridge
        self.weights = torch.zeros(d_features + 1, 0, dtype=torch.float64)

    def take(self, rows: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> None:
        """Takes in some rows; labels count the skills from 0, new ones behind the known."""
        x = _with_constant(rows)
        skills = max(self.weights.shape[1], int(labels.max()) + 1)
        self.weights = functional.pad(self.weights, (0, skills - self.weights.shape[1]))
        targets = functional.one_hot(labels, skills).to(x)
        # Woodbury: the inverse of the regularised autocorrelation with these rows in it.
        gain = self._inverse @ x.T
        inner = torch.eye(len(x), dtype=x.dtype) + x @ gain
        self._inverse -= gain @ torch.linalg.solve(inner, gain.T)
        self.weights += self._inverse @ x.T @ (targets - x @ self.weights)

    def scores(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n n_skills"]:
        """The regression's outputs: about 1 for the right skill."""
        return _with_constant(rows) @ self.weights


def recursive_least_squares(train: Features, test: Float[Tensor, "n d"], seed: int = 0) -> Choice:
    """`RecursiveLeastSquares` over the skills one after the other, with a ridge of 10, in features
    standardised by the first skill's rows, since later ones are not known when it begins."""
    first = next(iter(train.values()))
    standard = Standard.of(first)
    solver = RecursiveLeastSquares(first.shape[1])
    for label, rows in enumerate(train.values()):
        # As they came: 64 rows a piece.
        for piece in standard(rows).split(64):
            solver.take(piece, torch.full((len(piece),), label))
    return Choice(tuple(train), solver.scores(standard(test)).argmax(-1))


LINEAR_STEPS, LINEAR_RATE, LINEAR_DECAY = 300, 0.01, 0.01


def linear(train: Features, test: Float[Tensor, "n d"], seed: int = 0) -> Choice:
    """A linear gate with softmax, trained on the rows of all skills at once: 300 full-batch steps
    of AdamW at 0.01 with a weight decay of 0.01 from zero, in standardised features."""
    rows = torch.cat(list(train.values()))
    labels = torch.cat([torch.full((len(r),), n) for n, r in enumerate(train.values())])
    standard = Standard.of(rows)
    x, weight = standard(rows).float(), torch.nn.Parameter(torch.zeros(rows.shape[1], len(train)))
    bias = torch.nn.Parameter(torch.zeros(len(train)))
    optimizer = torch.optim.AdamW([weight, bias], lr=LINEAR_RATE, weight_decay=LINEAR_DECAY)
    for _ in range(LINEAR_STEPS):
        optimizer.zero_grad()
        functional.cross_entropy(x @ weight + bias, labels).backward()
        optimizer.step()
    with torch.no_grad():
        found = (standard(test).float() @ weight + bias).softmax(-1).max(-1)
    return Choice(tuple(train), found.indices, found.values)


def _with_constant(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d_and_one"]:
    values = double(rows)
    return torch.cat([values, values.new_ones(len(values), 1)], dim=-1)
