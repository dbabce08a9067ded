"""The report before any markup: what is said, in which order.

Markdown and HTML are written from this, so they cannot say different things.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dylora_moe.evaluation import pool_tables, process_tables, tables
from dylora_moe.evaluation.figures.canvas import ReportFigure
from dylora_moe.evaluation.figures.catalogue import draw_figures
from dylora_moe.evaluation.history import History
from dylora_moe.evaluation.matrix import Matrices
from dylora_moe.evaluation.quantities import count, decimal, duration, percent, plural, points
from dylora_moe.evaluation.summary import Summary
from dylora_moe.evaluation.table import Table


@dataclass(frozen=True, slots=True)
class Tile:
    """One number that matters, with its name and a word on it."""

    label: str
    value: str
    note: str


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the report. Tables of `details` may be folded away."""

    anchor: str
    title: str
    lead: str
    blocks: tuple[ReportFigure | Table, ...]
    details: tuple[Table, ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """The whole report.

    Attributes:
        lede: what the pool is.
        headline: what came of it, in one line.
        good: whether nothing was forgotten and nothing failed.
    """

    title: str
    lede: str
    headline: str
    good: bool
    tiles: tuple[Tile, ...]
    sections: tuple[Section, ...]

    def figures(self) -> Iterator[ReportFigure]:
        for section in self.sections:
            for block in section.blocks:
                if isinstance(block, ReportFigure):
                    yield block

    def tables(self) -> Iterator[Table]:
        for section in self.sections:
            for block in (*section.blocks, *section.details):
                if isinstance(block, Table):
                    yield block


def compose(history: History, matrices: Matrices, found: Summary) -> Document:
    """The report of a history."""
    return Document(
        title=history.name,
        lede=_lede(history, found),
        headline=found.headline,
        good=not found.forgotten and not found.failed,
        tiles=_tiles(found),
        sections=_sections(history, matrices, found),
    )


def _lede(history: History, found: Summary) -> str:
    base = str(history.meta.get("base") or "a base model of unknown name")
    tap = history.meta.get("tap")
    below = "" if tap is None else f", split at block {tap}: below it nothing is ever adapted"
    return (
        f"A pool of {plural(found.experts, 'LoRA expert')} for {plural(found.skills, 'skill')} on "
        f"the frozen base {base}{below}. A router sends each input to the expert that knows it, or "
        f"to none, and then the base answers alone."
    )


def _tiles(found: Summary) -> tuple[Tile, ...]:
    verdicts = ", ".join(f"{number} {name}" for name, number in found.verdicts.items())
    kept = (
        Tile("Average accuracy", percent(found.average_accuracy), "after the last step")
        if found.average_accuracy is not None
        else Tile("Average loss", decimal(found.average_loss), "nats, after the last step")
    )
    worst = (
        Tile("Worst change", points(found.worst_change), f"older skill: {found.worst_skill}")
        if found.worst_change is not None
        else Tile(
            "Worst rise of a loss",
            percent(found.worst_rise),
            f"older skill: {found.worst_rise_skill}"
            if found.worst_rise_skill
            else "no older skill",
        )
    )
    return (
        Tile("Arrivals", count(found.arrivals), verdicts or "none yet"),
        Tile("Experts", count(found.experts), f"{found.grown} grown here"),
        kept,
        worst,
        Tile("Time", duration(found.seconds), "for all steps"),
        Tile("Tokens", count(found.tokens), "in the rows that arrived"),
    )


def _sections(history: History, matrices: Matrices, found: Summary) -> tuple[Section, ...]:
    figure = draw_figures(history, matrices)

    def figures(*names: str) -> tuple[ReportFigure, ...]:
        return tuple(figure[name] for name in names)

    return (
        Section(
            "kept", "What was kept",
            "Nothing of an older skill should be lost when a new one arrives.",
            (*figures("accuracy_matrix"), tables.metrics_table(found)),
            (tables.accuracy_table(matrices), tables.loss_table(matrices)),
        ),
        Section(
            "arrivals", "What arrived",
            "Each arrival is judged before any training: can it be told from what is known, and "
            "does the nearest expert already do well on it?",
            (tables.arrivals_table(history), *figures("arrival_verdicts")),
            (tables.reasons_table(history), tables.similarity_table(history)),
        ),
        Section(
            "pool", "The pool now",
            "The experts of the current revision, and how well each skill is answered.",
            (pool_tables.experts_table(history), pool_tables.skills_table(history)),
        ),
        Section(
            "routing", "Routing",
            "Who answers what, and how sure the router is.",
            figures("routing_map", "expert_usage", "routing_entropy", "balance_loss"),
            (
                pool_tables.routing_table(history),
                process_tables.router_table(history),
                process_tables.strategies_table(history),
            ),
        ),
        Section(
            "training", "Training",
            "How each expert was trained, phase by phase.",
            figures("loss_curves", "gradient_norms", "padding_fraction", "packed_lengths"),
            (process_tables.gates_table(history),),
        ),
        Section(
            "cost", "What it cost",
            "Time, arithmetic and memory of the trainings, and the size of what they left.",
            (
                *figures("tokens_per_second", "flops", "peak_memory", "trainable_share"),
                *figures("expert_bytes"),
                process_tables.trainings_table(history),
            ),
        ),
        Section(
            "notices", "Warnings and errors", "", (process_tables.notices_table(history),)
        ),
    )  # fmt: skip


def panels_of(figures: Sequence[ReportFigure]) -> dict[str, str]:
    """File name to SVG of every panel."""
    return {f"{panel.name}.svg": panel.svg for figure in figures for panel in figure.panels}
