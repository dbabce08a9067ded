"""How verdicts, results and numbers are put into words; pure text, used by every front-end part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from dylora_moe.records import SkillScore, Verdict

if TYPE_CHECKING:
    from dylora_moe.lifecycle.results import LearnResult

VERDICT_STYLES = {
    "novel": "bold green",
    "covered": "bold cyan",
    "revised": "bold magenta",
    "known": "bold blue",
    "unsure": "bold yellow",
}

_EXPLAINED = ("statistics", "waiting", "rejected")
"""Actions whose message says more than their name."""

_TOLD_FIRST = ("loss", "balance_loss", "tokens_per_second")


def verdict_line(names: Sequence[str], arrival: str, verdict: Verdict) -> Text:
    """`3/7 bash  known   told apart from wikisql at 0.52 [0.41, 0.60]`."""
    place = f"{names.index(arrival) + 1}/{len(names)} " if arrival in names else ""
    width = max((len(name) for name in names), default=0)
    return Text.assemble(
        (place, "dim"),
        f"{arrival:<{width}}  ",
        (f"{verdict.name:<8}", VERDICT_STYLES[verdict.name]),
        f" {verdict.reason}",
    )


def result_line(result: LearnResult) -> Text:
    """`    -> new expert orders v1: loss 0.12, accuracy 94% (31 s)`, and the reason where one is
    given."""
    line = Text("    -> ")
    line.append(deed(result), "bold")
    score = result.scores.get(result.skill) if result.skill is not None else None
    if score is not None:
        line.append(f": {score_words(score)}")
    line.append(f" ({duration(result.seconds)})", "dim")
    if result.action in _EXPLAINED:
        line.append(f"  {result.message}", "dim")
    return line


def deed(result: LearnResult) -> str:
    """What was done with an arrival."""
    expert = f"{result.expert} v{result.version}" if result.version is not None else result.expert
    return {
        "created": f"new expert {expert}",
        "new version": f"new version {expert}",
        "covered": f"goes to expert {expert}",
        "statistics": f"expert {expert} kept, its skill's statistics grown",
        "waiting": "waits in the pool for more rows",
        "rejected": "rejected, the pool is as it was",
        "unchanged": "nothing to do",
    }[result.action]


def score_words(score: SkillScore) -> str:
    """`loss 0.123, accuracy 94%`; without the accuracy where nothing was generated."""
    words = f"loss {score.loss:.3f}"
    return words if score.accuracy is None else f"{words}, accuracy {score.accuracy:.0%}"


def numbers(values: Mapping[str, Any], at_most: int = 3) -> str:
    """The few of a log's numbers that say most, in one short line."""
    scalars = {
        key: float(value)
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    evaluations = [key for key in scalars if key.startswith("eval_") and key.endswith("_loss")]
    told = [key for key in (*_TOLD_FIRST[:1], *evaluations, *_TOLD_FIRST[1:]) if key in scalars]
    chosen = told or list(scalars)
    return "  ".join(f"{_short(key)} {scalars[key]:.4g}" for key in chosen[:at_most])


def duration(seconds: float) -> str:
    """`0.4 s`, `31 s`, `4:05 min`, `1:02 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def size(count: float) -> str:
    """Bytes in the unit that fits: `98.1 MB`."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def share(value: float | None) -> str:
    """A share as a percentage; a dash where there is none."""
    return "-" if value is None else f"{value:.0%}"


def _short(key: str) -> str:
    return {"tokens_per_second": "tokens/s"}.get(key, key.removeprefix("eval_").replace("_", " "))
