"""A new version of an expert on trial: it gets a share of that expert's traffic first.

It passes when enough answers came of it and nothing speaks against it, and fails by its loss on the
skill's validation rows or by its share of answers that went wrong. Knows counts and intervals;
knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dylora_moe.errors import ConfigError
from dylora_moe.records import Interval

State = Literal["on trial", "passed", "failed"]


@dataclass(frozen=True, slots=True)
class CanaryRule:
    """How a version is tried.

    Attributes:
        share: of the expert's requests that the new version gets, above 0 and below 1.
        answers: of the new version from which on it passes.
        tolerance: relative rise of the loss on the skill's validation rows that is let through;
            it fails where the whole 95% interval of the rise lies above.
        errors: answers of the new version that went wrong from which on it fails, if their share
            is also more than twice that of the old version's.
    """

    share: float
    answers: int = 50
    tolerance: float = 0.02
    errors: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.share < 1 or min(self.answers, self.errors) < 1 or self.tolerance < 0:
            raise ConfigError(
                f"canary share {self.share}, answers {self.answers}, errors {self.errors}, "
                f"tolerance {self.tolerance}: give a share between 0 and 1, positive counts and a "
                "tolerance of 0 or more"
            )


class Canary:
    """One expert's new version.

    Args:
        expert_id: the expert.
        old, new: its versions; the old one is in service, and passed if it was ever tried.
        rule: how it is tried.

    Attributes:
        weighed: whether its loss was compared.
        state: what became of it.
        reason: why, in one line.
    """

    def __init__(self, expert_id: str, old: int, new: int, rule: CanaryRule) -> None:
        self.expert_id, self.old, self.new = expert_id, old, new
        self._rule = rule
        self._answers = {old: 0, new: 0}
        self._errors = {old: 0, new: 0}
        self._asked = self._given = 0
        self.weighed = False
        self.state: State = "on trial"
        self.reason = ""

    def choose(self) -> int:
        """The version of the next request; the new one gets its share exactly, spread evenly."""
        self._asked += 1
        if self._given < self._rule.share * self._asked:
            self._given += 1
            return self.new
        return self.old

    def weigh(self, rise: Interval | None) -> None:
        """Takes the relative rise of the validation loss; None where there are no such rows."""
        self.weighed = True
        if rise is not None and rise.low > self._rule.tolerance:
            self.fail(
                f"its loss on the skill's validation rows is {rise.value:.1%} "
                f"[{rise.low:.1%}, {rise.high:.1%}] higher"
            )
        self._pass_if_due()

    def count(self, version: int, well: bool) -> None:
        """Takes how an answer of one of the versions ended, by its own doing."""
        if version not in self._answers:
            return
        self._answers[version] += 1
        self._errors[version] += not well
        wrong, of = self._errors[self.new], max(1, self._answers[self.new])
        usual = self._errors[self.old] / max(1, self._answers[self.old])
        if wrong >= self._rule.errors and wrong / of > 2 * usual:
            self.fail(f"{wrong} of {of} answers went wrong")
        self._pass_if_due()

    def fail(self, reason: str) -> None:
        """Something speaks against it; what is settled stays."""
        if self.state == "on trial":
            self.state, self.reason = "failed", reason

    def win(self, reason: str) -> None:
        """There is nothing to hold it against; what is settled stays."""
        if self.state == "on trial":
            self.state, self.reason = "passed", reason

    def _pass_if_due(self) -> None:
        enough = self._answers[self.new] - self._errors[self.new] >= self._rule.answers
        if self.state == "on trial" and self.weighed and enough:
            self.state, self.reason = "passed", f"{self._answers[self.new]} answers"
