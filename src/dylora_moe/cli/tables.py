"""Tables on the terminal: plans, results, the accuracy matrix, the pool's experts, evaluations.

Draws what it is given; computes nothing beyond sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from rich import box
from rich.table import Table
from rich.text import Text

from dylora_moe.cli.wording import VERDICT_STYLES, deed, duration, share, size
from dylora_moe.records import Interval, PoolRevision, Verdict

if TYPE_CHECKING:
    from dylora_moe.evaluation.matrix import Matrices
    from dylora_moe.lifecycle.results import LearnResult, Plan


@runtime_checkable
class Scored(Protocol):
    """How the pool did on one skill's rows; `to` is the mean weight of each expert and of base."""

    @property
    def loss(self) -> float: ...

    @property
    def accuracy(self) -> float | None: ...

    @property
    def rows(self) -> int: ...

    @property
    def to(self) -> Mapping[str, float]: ...


def table(title: str, *columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table in the project's look; the columns named in `right` hold numbers."""
    drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    for column in columns:
        drawn.add_column(
            column, justify="right" if column in right else "left", overflow="fold", no_wrap=False
        )
    return drawn


def plan_table(plans: Sequence[Plan]) -> Table:
    """One line an arrival: verdict, separability, losses, and what learning it would cost."""
    drawn = table(
        "Plan (nothing was trained)",
        "arrival", "rows", "verdict", "separability", "losses", "cost", "why",
        right=("rows",),
    )  # fmt: skip
    for plan in plans:
        losses = [f"base {plan.base_loss:.2f}"] if plan.base_loss is not None else []
        losses += [f"{name} {loss:.2f}" for name, loss in plan.nearest_losses.items()]
        cost = (
            f"{plan.cost.tokens} tokens, about {duration(plan.cost.seconds)}, "
            f"{size(plan.cost.bytes)}"
            if plan.cost.tokens
            else "none"
        )
        rows = f"{plan.rows} (+{plan.waiting})" if plan.waiting else str(plan.rows)
        drawn.add_row(
            plan.arrival,
            rows,
            verdict_text(plan.verdict),
            interval(plan.verdict.separability),
            ", ".join(losses),
            cost,
            plan.verdict.reason,
        )
    return drawn


def results_table(results: Sequence[LearnResult]) -> Table:
    drawn = table("Arrivals", "arrival", "verdict", "what was done", "time", right=("time",))
    for result in results:
        drawn.add_row(
            result.arrival, verdict_text(result.verdict), deed(result), duration(result.seconds)
        )
    return drawn


def matrix_table(matrices: Matrices) -> Table:
    """Row i: every skill after step i; bold where the skill was first learned, or last revised.
    Accuracies, or losses where no answers were generated after the last step."""
    generated = any(value is not None for value in matrices.accuracy[-1])
    measure, cells = ("Accuracy", matrices.accuracy) if generated else ("Loss", matrices.loss)
    drawn = table(
        f"{measure} of each skill after each arrival", "after", *matrices.columns,
        right=matrices.columns,
    )  # fmt: skip
    for i, (name, row) in enumerate(zip(matrices.rows, cells, strict=True)):
        words = ["" if v is None else f"{v:.0%}" if generated else f"{v:.3f}" for v in row]
        styles = ["bold" if first == i else "" for first in matrices.learned_at]
        drawn.add_row(name, *map(Text, words, styles))
    return drawn


def pool_table(revision: PoolRevision) -> Table:
    """Experts with version, maturity, rank, parameters and the skills they serve."""
    drawn = table(
        f"Pool, revision {revision.number}",
        "expert", "version", "maturity", "rank", "parameters", "skills", "rows", "id",
        right=("version", "rank", "parameters", "rows"),
    )  # fmt: skip
    for expert in revision.experts:
        served = [skill for skill in revision.skills if skill.expert_id == expert.expert_id]
        parameters = expert.history.get("trainable_parameters")
        drawn.add_row(
            expert.alias,
            str(expert.version),
            f"{expert.maturity:.2f} {expert.maturity_state}",
            str(expert.lora_config.get("r", "-")),
            f"{parameters:,}" if isinstance(parameters, int) else "-",
            ", ".join(skill.name for skill in served) or "-",
            str(sum(skill.count for skill in served)),
            expert.expert_id,
        )
    return drawn


def scores_table(scores: Mapping[str, Scored]) -> Table:
    """Loss, accuracy and where the rows went, by skill."""
    drawn = table(
        "Evaluation", "skill", "rows", "loss", "accuracy", "went to",
        right=("rows", "loss", "accuracy"),
    )  # fmt: skip
    for name, found in scores.items():
        went = sorted(found.to.items(), key=lambda pair: -pair[1])
        drawn.add_row(
            name,
            str(found.rows),
            f"{found.loss:.3f}",
            share(found.accuracy),
            ", ".join(f"{expert} {part:.1%}" for expert, part in went if part >= 0.0005) or "-",
        )
    return drawn


def facts_table(title: str, facts: Mapping[str, Any]) -> Table:
    """Two columns without a header: what, and its value."""
    drawn = Table(title=title or None, title_justify="left", box=None, show_header=False)
    drawn.title_style = "bold"
    drawn.add_column(style="dim")
    drawn.add_column(overflow="fold")
    for name, value in facts.items():
        drawn.add_row(name, Text("-" if value is None else str(value)))
    return drawn


def verdict_text(verdict: Verdict) -> Text:
    return Text(verdict.name, VERDICT_STYLES[verdict.name])


def interval(value: Interval | None) -> str:
    """`0.93 [0.90, 0.96]`, or a dash where nothing was measured."""
    return "-" if value is None else f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]"
