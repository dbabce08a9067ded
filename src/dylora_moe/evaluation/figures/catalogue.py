"""Every figure of the report. Adding one touches its file and one line here."""

from __future__ import annotations

from collections.abc import Callable

from dylora_moe.evaluation.figures.arrivals import arrival_verdicts
from dylora_moe.evaluation.figures.canvas import ReportFigure
from dylora_moe.evaluation.figures.cost import (
    expert_bytes,
    peak_memory,
    tokens_per_second,
    trainable_share,
    training_flops,
)
from dylora_moe.evaluation.figures.matrices import accuracy_matrix, routing_map
from dylora_moe.evaluation.figures.routing import balance_loss, expert_usage, routing_entropy
from dylora_moe.evaluation.figures.training import (
    gradient_norms,
    loss_curves,
    packed_lengths,
    padding_fraction,
)
from dylora_moe.evaluation.history import History
from dylora_moe.evaluation.matrix import Matrices

_OF_HISTORY: tuple[Callable[[History], ReportFigure], ...] = (
    arrival_verdicts,
    routing_map,
    expert_usage,
    routing_entropy,
    balance_loss,
    loss_curves,
    gradient_norms,
    padding_fraction,
    packed_lengths,
    tokens_per_second,
    training_flops,
    peak_memory,
    trainable_share,
    expert_bytes,
)


def draw_figures(history: History, matrices: Matrices) -> dict[str, ReportFigure]:
    """Every figure by its name; one without data has no panel, and says so in its caption."""
    figures = [accuracy_matrix(history, matrices), *(paint(history) for paint in _OF_HISTORY)]
    return {figure.name: figure for figure in figures}
