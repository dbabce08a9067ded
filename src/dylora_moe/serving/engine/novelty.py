"""Is a prompt strange to every skill? Asked of each prompt while it is read.

Knows features of prompts and the skills of one revision; knows no text and keeps nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from jaxtyping import Float
from torch import Tensor

from dylora_moe.foundation.statistics import FeatureStatistics, SharedScatter
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.skills.library import SkillLibrary
from dylora_moe.skills.screening import Screen, screen_of

SHARE = 0.02
"""Of the skills' own rows that may be called strange. Less than where mixed rows are sorted: there
a row's likes overrule the screen, here each one fills the inbox."""

FEWEST = 2
"""Rows of a skill that the line can be drawn by: each is looked at by a screen without it."""


@dataclass(frozen=True, eq=False)
class PromptScreen:
    """The screen of one revision; `of` makes it, once for each."""

    screen: Screen

    @classmethod
    def of(cls, live: LivePool, share: float = SHARE) -> PromptScreen | None:
        """The screen of the pool's skills as they are live.

        Where there is no skill yet everything is strange: so the first one is found too.

        Args:
            live: the pool.
            share: of the skills' own rows that may be called strange, in [0, 1).

        Returns:
            None where the skills have too few rows to draw a line by.
        """
        return cls.making(live, share)()

    @classmethod
    def making(cls, live: LivePool, share: float = SHARE) -> Callable[[], PromptScreen | None]:
        """Makes it when it is called, in any thread, whatever the pool has become by then.

        Args:
            live, share: as in `of`.
        """
        # A pool that becomes another revision takes new ones; these are never changed.
        given = live.library, live.own_statistics, live.router.table.shared
        return partial(cls._made, *given, share)

    @classmethod
    def _made(
        cls, library: SkillLibrary, own: FeatureStatistics, shared: SharedScatter, share: float
    ) -> PromptScreen | None:
        skills = library.skills
        if skills and all(skill.statistics.count < FEWEST for skill in skills):
            return None
        return cls(screen_of(library, own, share=share, shared=shared))

    def strange(self, features: Float[Tensor, "n d_features"]) -> list[bool]:
        """Of each prompt whether it is strange, by itself and nothing else in the batch.

        Args:
            features: of the prompts, pooled as the router sees them; on any device.
        """
        found: list[bool] = self.screen(features.cpu().float()).strange.tolist()
        return found
