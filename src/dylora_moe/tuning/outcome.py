"""What a search found, judged on rows that it never saw, and as settings to learn with.

Knows trials and settings; trains nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dylora_moe.config import LearnSettings
from dylora_moe.records import Interval
from dylora_moe.scoring.bootstrap import Paired, mean_ratio
from dylora_moe.tuning.ranks import RankCurve, rank_curve
from dylora_moe.tuning.search import Trial
from dylora_moe.tuning.space import differences, with_values


@dataclass(frozen=True)
class Tuned:
    """What a search came to.

    Attributes:
        trials: all, in order.
        first: the trial of the values that one started from.
        best: the whole trial of the lowest loss over watched rows.
        against: best / first, mean over skills of the losses over judged rows; None where the
            first is the best.
        settings: what to learn with, as dotted keys, where they are not the defaults: the best's
            where it is better, else those one started from.
        ranks: rank against quality, of a search for the rank alone.
    """

    trials: tuple[Trial, ...]
    first: Trial
    best: Trial
    against: Interval | None
    settings: Mapping[str, Any]
    ranks: RankCurve | None = None

    @property
    def better(self) -> bool:
        """Whether rows that the search never saw say so too, by the whole interval."""
        return self.against is not None and self.against.high < 1.0

    @property
    def message(self) -> str:
        """One line for people."""
        if self.against is None:
            return "nothing tried does better than the settings it started from"
        found = self.against
        said = (
            f"held-out loss {found.value:.3f} of what it was "
            f"[{found.low:.3f}, {found.high:.3f}], on rows that the search never saw"
        )
        return said if self.better else f"{said}: that may be chance, stay where you are"


def outcome(trials: Sequence[Trial], start: LearnSettings) -> Tuned:
    """Judges a search; the first whole trial is what the others are compared with."""
    whole = [one for one in trials if one.whole]
    first = whole[0]
    best = min(whole, key=lambda one: one.ratio)
    against = None
    if best is not first:
        pairs = [
            Paired(best.skills[name].judged, first.skills[name].judged, first.skills[name].weights)
            for name in first.skills
        ]
        against = mean_ratio(pairs)
    better = against is not None and against.high < 1.0
    settings = differences(with_values(start, best.values) if better else start)
    return Tuned(tuple(trials), first, best, against, settings, rank_curve(trials, start))


def document(tuned: Tuned) -> str:
    """The settings as YAML for a stream file's `learn`."""
    values: dict[str, Any] = {}
    for key, value in tuned.settings.items():
        *groups, last = key.split(".")
        place = values
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = _plain(value)
    body = yaml.safe_dump({"learn": values}, sort_keys=False)
    head = (
        f"# {tuned.message}\n# Of {len(tuned.trials)} trials; put this into a stream file, or give "
    )
    return f"{head}it key by key with --set.\n{body}"


def words(settings: Mapping[str, Any]) -> list[str]:
    """Settings by their dotted keys as `--set` takes them."""
    return [f"{key}={_word(value)}" for key, value in settings.items()]


def _word(value: object) -> str:
    # JSON is YAML too, which `--set` reads.
    return value if isinstance(value, str) else json.dumps(_plain(value))


def _plain(value: object) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    # A file of settings may lie elsewhere than where the path was typed.
    return str(value.resolve()) if isinstance(value, Path) else value
