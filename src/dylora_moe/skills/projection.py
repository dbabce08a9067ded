"""Novelty by cosine in a learned projection, in which skills point different ways.

Knows the library's stored rows, and rows of no skill if it is given some; knows no model. The
projection is linear, trained in about a second, and kept until the library's rows are others.

Source: Khosla et al. (2020), "Supervised contrastive learning", eq. 2. Rows of no skill are in the
denominators alone: without them nothing keeps directions in which the known skills do not differ,
and one skill alone would have nothing to be told from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from dylora_moe.skills.cosine import Cosine
from dylora_moe.skills.library import Skill, SkillLibrary
from dylora_moe.skills.novelty import Limits, Measurement, NoveltyDetector

_NO_SKILL = -1
_SKILLS, _ROWS, _BACKGROUND = 24, 8, 64
"""Of a training step: skills and rows of each (more of each where skills are fewer), and rows of no
skill."""


@dataclass(frozen=True, slots=True)
class ProjectedCosine(NoveltyDetector):
    """The cosine rule between an arrival and the skills, all of them projected.

    Attributes:
        rule: with the bound, the mode and the limits.
        projection: gives the projection of a library.
    """

    rule: Cosine
    projection: ContrastiveProjection

    @property
    def name(self) -> str:
        return "projection"

    @property
    def threshold(self) -> float:
        return self.rule.threshold

    @property
    def limits(self) -> Limits:
        return self.rule.limits

    def measure(self, features: Float[Tensor, "batch d"], library: SkillLibrary) -> Measurement:
        """1 - cosine to each skill in the projection."""
        if features.shape[0] == 0 or len(library) == 0:
            return Measurement(None, (), features.shape[0])
        projected = self.projection.of(library)
        return self.rule.measure(projected.head(features), projected.library)


@dataclass(frozen=True, eq=False)
class Head:
    """Features centred, standardised and mapped; `weight` has a row for each new dimension."""

    centre: Float[Tensor, " d"]
    std: Float[Tensor, " d"]
    weight: Float[Tensor, "width d"]

    def __call__(self, features: Float[Tensor, "batch d"]) -> Float[Tensor, "batch width"]:
        """The features in the projection, on the CPU."""
        return self.scaled(features) @ self.weight.T

    def scaled(self, features: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """The features as the map takes them."""
        return (features.detach().to("cpu").float() - self.centre) / self.std


@dataclass(frozen=True, eq=False)
class Projected:
    """A library's projection, and the library in it."""

    head: Head
    library: SkillLibrary


class ContrastiveProjection:
    """Trains the projection of a library when it is asked for, and keeps it.

    Deterministic in the skills' rows and the seed.

    Args:
        background: features of no skill, to tell skills from; the base's own prompts.
        seed: of the map's start and of the steps' rows.
        width: dimensions of the projection.
        steps: of Adam.
        learning_rate: its rate.
        temperature: of the loss.
    """

    def __init__(
        self,
        background: Float[Tensor, "n d"] | None = None,
        seed: int = 0,
        *,
        width: int = 64,
        steps: int = 100,
        learning_rate: float = 3e-4,
        temperature: float = 0.1,
    ) -> None:
        self._background, self._seed, self._width = background, seed, width
        self._steps, self._rate, self._temperature = steps, learning_rate, temperature
        self._kept: tuple[tuple[Skill, ...], Projected] | None = None

    def of(self, library: SkillLibrary) -> Projected:
        """The projection of a library with a skill in it."""
        # A skill is never changed, only replaced.
        if self._kept is None or self._kept[0] != library.skills:
            head = self._trained(library.skills)
            projected = SkillLibrary(library.capacity)
            for skill in library.skills:
                mapped = head(skill.features)
                projected.add_skill(skill.skill_id, mapped, skill.expert_id, skill.keys)
            self._kept = (library.skills, Projected(head, projected))
        return self._kept[1]

    def _trained(self, skills: Sequence[Skill]) -> Head:
        generator = torch.Generator().manual_seed(self._seed)
        width = skills[0].statistics.d_features
        start = torch.randn(self._width, width, generator=generator) / width**0.5
        head = Head(*_scale(skills, self._background), start)
        contrasts = len(skills) > 1 or self._background is not None
        if not contrasts or max(len(skill.features) for skill in skills) < 2:
            return head
        weight = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([weight], lr=self._rate)
        with torch.enable_grad():
            for _ in range(self._steps):
                rows, labels = _drawn(skills, self._background, generator)
                points = normalize(head.scaled(rows) @ weight.T, dim=-1)
                optimizer.zero_grad()
                contrastive_loss(points, labels, self._temperature).backward()
                optimizer.step()
        return Head(head.centre, head.std, weight.detach())


def contrastive_loss(
    points: Float[Tensor, "n width"], labels: Int[Tensor, " n"], temperature: float
) -> Float[Tensor, ""]:
    """The supervised contrastive loss, its mean over the rows that have another of their label.

    Args:
        points: of unit norm.
        labels: skill of each row; negative for rows of no skill, which are nobody's positive.
        temperature: of the similarities.

    Source: Khosla et al. (2020), eq. 2.
    """
    itself = torch.eye(len(points), dtype=torch.bool)
    logits = (points @ points.T / temperature).masked_fill(itself, -torch.inf)
    shares = logits - logits.logsumexp(1, keepdim=True)
    positive = (labels[:, None] == labels) & (labels >= 0)[:, None] & ~itself
    anchors = positive.any(1)
    sums = torch.where(positive, shares, 0.0).sum(1)
    return -(sums[anchors] / positive.sum(1)[anchors]).mean()


def _scale(skills: Sequence[Skill], background: Tensor | None) -> tuple[Tensor, Tensor]:
    """The middle of all kinds of rows, and the standard deviation within skills.

    Of one skill alone the middle is the origin: about its own mean its rows point nowhere.
    """
    middles = [skill.statistics.mean for skill in skills]
    if background is not None:
        middles.append(background.detach().cpu().double().mean(0))
    centre = torch.stack(middles).mean(0) if len(middles) > 1 else torch.zeros_like(middles[0])
    freedom = sum(skill.statistics.count - 1 for skill in skills)
    variance = torch.stack([s.statistics.deviations for s in skills]).sum(0) / max(1, freedom)
    std = torch.where(variance > 0, variance, torch.ones_like(variance)).sqrt()
    return centre.float(), std.float()


def _drawn(
    skills: Sequence[Skill], background: Tensor | None, generator: torch.Generator
) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
    """The rows of a training step: as many of each skill, and some of no skill."""

    def some(rows: Tensor, count: int) -> Tensor:
        return rows[torch.randperm(len(rows), generator=generator)[:count]].float()

    chosen = torch.randperm(len(skills), generator=generator)[:_SKILLS].tolist()
    count = max(_ROWS, _SKILLS * _ROWS // len(skills))
    parts = [some(skills[index].features, count) for index in chosen]
    labels = [torch.full((len(part),), place) for place, part in enumerate(parts)]
    if background is not None:
        parts.append(some(background.detach().cpu(), _BACKGROUND))
        labels.append(torch.full((len(parts[-1]),), _NO_SKILL))
    return torch.cat(parts), torch.cat(labels)
