"""What a search found, judged on rows that it never saw, and as settings to learn with.

Knows trials and settings; trains nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from dylora_moe.config import LearnSettings
from dylora_moe.records import Interval
from dylora_moe.scoring.bootstrap import Paired, mean_ratio
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
        settings: of the best, as dotted keys, where they are not the defaults.
    """

    trials: tuple[Trial, ...]
    first: Trial
    best: Trial
    against: Interval | None
    settings: Mapping[str, Any]

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
    settings = differences(with_values(start, best.values))
    return Tuned(tuple(trials), first, best, against, settings)


def document(tuned: Tuned) -> str:
    """The settings as YAML for a stream file's `learn`."""
    values: dict[str, Any] = {}
    for key, value in tuned.settings.items():
        *groups, last = key.split(".")
        place = values
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = list(value) if isinstance(value, tuple) else value
    head = (
        f"# {tuned.message}\n# Trial {tuned.best.number} of {len(tuned.trials)}; put this into a "
    )
    body = yaml.safe_dump({"learn": values}, sort_keys=False)
    return f"{head}stream file, or give it key by key with --set.\n{body}"


def words(tuned: Tuned) -> list[str]:
    """The settings as `--set` takes them."""
    return [f"{key}={_word(value)}" for key, value in tuned.settings.items()]


def _word(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else str(value)
