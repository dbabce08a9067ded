"""The verdict on an arrival: two axes, four corners, and *unsure* between them.

Knows measured intervals and thresholds; knows nothing of how they were measured. `NoveltyDetector`
is what every novelty test looks like from outside.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from dylora_moe.errors import ConfigError
from dylora_moe.records import Interval, Verdict, VerdictName
from dylora_moe.skills.library import SkillLibrary


@dataclass(frozen=True, slots=True)
class Measurement:
    """How an arrival stands to the skills, before anything is decided.

    Attributes:
        separability: how far it is from the nearest skill, with its interval; None where there is
            no skill. The scale is the detector's: AUC for the classifier, 1 - cosine, entropy.
        nearest: skill ids with the same number, nearest first.
        samples: examples in the arrival.
    """

    separability: Interval | None
    nearest: tuple[tuple[str, float], ...]
    samples: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What an arrival needs to be judged at all.

    Attributes:
        fit: an expert whose relative loss is above it does badly.
        samples: fewer examples are not enough for what is new or other than it was.
        tokens: nor are fewer trained tokens.
        settled: separability from which on a fit in doubt no longer matters.
    """

    fit: float = 0.5
    samples: int = 32
    tokens: int = 256
    settled: float = 0.95

    @property
    def for_more(self) -> Limits:
        """What more of a skill takes: half the examples and tokens, since it makes nothing new."""
        return replace(self, samples=max(2, self.samples // 2), tokens=self.tokens // 2)

    def lacking(self, samples: int, tokens: int | None) -> str:
        """What to say where examples or trained tokens are too few; else empty."""
        if samples < self.samples:
            return f"{samples} examples are too few to judge; it takes {self.samples}"
        if tokens is not None and tokens < self.tokens:
            return f"{tokens} answer tokens are too few to judge; it takes {self.tokens}"
        return ""

    def __post_init__(self) -> None:
        if self.samples < 2 or self.tokens < 0:
            raise ConfigError(
                f"limits of {self.samples} samples and {self.tokens} tokens cannot be; no test "
                "judges fewer than 2 samples"
            )


class NoveltyDetector(Protocol):
    """A novelty test: `measure` is its own, the verdict is the same table for all.

    Between the two the caller may measure the fit of the nearest skill's expert, which a detector
    cannot know.
    """

    @property
    def name(self) -> str:
        """What the verdict says it came from."""
        ...

    @property
    def threshold(self) -> float:
        """Separability above it counts as another skill."""
        ...

    @property
    def limits(self) -> Limits:
        """What an arrival needs to be judged."""
        ...

    def measure(self, features: Float[Tensor, "batch d"], library: SkillLibrary) -> Measurement:
        """Compares an arrival's features with the library's."""
        ...

    def verdict(
        self, measured: Measurement, *, fit: Interval | None = None, tokens: int | None = None
    ) -> Verdict:
        """Decides by the table of both axes; without `tokens` only the samples are counted."""
        return decide(
            measured.separability,
            fit,
            self.threshold,
            samples=measured.samples,
            tokens=tokens,
            limits=self.limits,
            nearest=measured.nearest,
            detector=self.name,
        )

    def is_novel(
        self,
        features: Float[Tensor, "batch d"],
        library: SkillLibrary,
        *,
        fit: Interval | None = None,
        tokens: int | None = None,
    ) -> bool:
        """Whether the verdict is *novel*."""
        return self.verdict(self.measure(features, library), fit=fit, tokens=tokens).name == "novel"


def decide(
    separability: Interval | None,
    fit: Interval | None,
    threshold: float = 0.80,
    *,
    samples: int,
    tokens: int | None = None,
    limits: Limits | None = None,
    nearest: tuple[tuple[str, float], ...] = (),
    detector: str = "classifier",
) -> Verdict:
    """The table of both axes.

    |               | expert does badly | expert does well |
    |---------------|-------------------|------------------|
    | separable     | novel             | covered          |
    | not separable | revised           | known            |

    An interval that straddles its threshold is *unsure*, with two exceptions, where separability
    settles it: rows that cannot be told apart are *known* while the fit is in doubt (to train the
    expert on is right either way, and the gate guards it), and rows told apart with near certainty
    (`limits.settled`) are *novel*. A fit that was not measured counts as separability says:
    separable is *novel*, not separable *known*. With no skill to compare with, all is *novel*.

    Too few rows or tokens are *unsure*, but *known* where they are half of what it takes
    (`limits.for_more`), cannot be told from the skill, and its expert does well.

    Args:
        separability: against the nearest skill; None for an empty pool.
        fit: relative loss of the nearest expert, as `records.Verdict` defines it.
        samples: examples in the arrival.
        tokens: trained tokens in it; None leaves them uncounted.
    """
    limits = limits or Limits()
    name, reason = _table(separability, fit, threshold, samples, tokens, limits)
    return Verdict(name, separability, fit, nearest, reason, detector, threshold)


def _table(
    separability: Interval | None,
    fit: Interval | None,
    threshold: float,
    samples: int,
    tokens: int | None,
    limits: Limits,
) -> tuple[VerdictName, str]:
    told, apart = "", None
    if separability is not None:
        told = f"separability {_show(separability)} against threshold {threshold:.2f}"
        apart = side_of(separability, threshold)
    few = limits.lacking(samples, tokens)
    if few:
        well = fit is None or side_of(fit, limits.fit) is False
        if apart is False and well and not limits.for_more.lacking(samples, tokens):
            return "known", f"{told}: same inputs, few of them, and nothing speaks of other answers"
        return "unsure", few
    if separability is None:
        return "novel", "there is no skill yet to compare with"
    if apart is None:
        return "unsure", f"{told}: the interval straddles it, more examples are needed"
    if fit is None:
        return ("novel" if apart else "known"), f"{told}; fit not measured"
    told = f"{told}, fit {_show(fit)} against {limits.fit:.2f}"
    badly = side_of(fit, limits.fit)
    if badly is None:
        if not apart:
            return "known", f"{told}: same inputs, the fit is in doubt"
        if separability.low >= limits.settled:
            return "novel", f"{told}: told apart with near certainty, the fit is in doubt"
        return "unsure", f"{told}: the fit is in doubt, more examples are needed"
    if apart:
        if badly:
            return "novel", f"{told}: other inputs, and the nearest expert does badly"
        return "covered", f"{told}: other inputs, which the nearest expert does well"
    if badly:
        return "revised", f"{told}: same inputs, other answers"
    return "known", f"{told}: same inputs, same answers"


def side_of(interval: Interval, threshold: float) -> bool | None:
    """True where the whole interval is above the threshold, False below, None if it straddles."""
    if interval.low > threshold:
        return True
    return None if interval.high >= threshold else False


def _show(interval: Interval) -> str:
    return f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
