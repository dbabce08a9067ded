"""What is told of where prompts go and where skills lie: plain values, found by `guide`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MapPoint:
    """A skill on the map; `expert` is the alias of the one its inputs go to, `count` its rows."""

    skill: str
    expert: str
    count: int
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class SkillMap:
    """Skills of a revision as points on a plane.

    Attributes:
        foreign: where the base's own prompts lie: what goes to no expert.
        shares: of the variance between skills, by axis.
    """

    revision: int
    points: tuple[MapPoint, ...]
    foreign: tuple[float, float]
    shares: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Weighted:
    """An expert's share in an answer: `weight` after the router's choice, `probability` before."""

    expert: str
    version: int
    weight: float
    probability: float


@dataclass(frozen=True, slots=True)
class Guidance:
    """Where a prompt would go.

    Attributes:
        revision: of the pool that says so.
        weights: every expert with a weight or a probability above a thousandth, largest first.
        none: probability that no expert is meant.
        to_none: whether it goes to no expert: the base answers.
        entropy: of the routing, nats.
        sparse: whether only the best experts were kept; all take part while one is young.
        strangeness: 0 in the direction of a skill, 1 across all of them, 2 opposite.
        threshold: above which a prompt is strange to every skill.
        strange: whether this one is.
        nearest: the skill it is nearest to; None in a pool without skills.
        place: on the map, x and y.
    """

    revision: int
    weights: tuple[Weighted, ...]
    none: float
    to_none: bool
    entropy: float
    sparse: bool
    strangeness: float
    threshold: float
    strange: bool
    nearest: str | None
    place: tuple[float, float]
