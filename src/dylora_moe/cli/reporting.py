"""`dylora report`: the pool's history as Markdown and HTML, and where it lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dylora_moe.cli import opening
from dylora_moe.cli.options import AsJson, PoolFolder
from dylora_moe.cli.output import command

if TYPE_CHECKING:
    from rich.console import Console

    from dylora_moe.build.pool import Pool
    from dylora_moe.evaluation.matrix import Matrices
    from dylora_moe.evaluation.summary import Summary


@dataclass(frozen=True)
class Written:
    """A report on disk and what it comes to."""

    matrices: Matrices
    summary: Summary
    markdown: Path
    html: Path
    data: Path

    def document(self) -> dict[str, Any]:
        """The parts of a JSON result."""
        return {
            "matrix": self.matrices,
            "summary": self.summary,
            "report": {"markdown": self.markdown, "html": self.html, "data": self.data},
        }


def write(pool: Pool) -> Written:
    """Writes the pool's report.

    Raises:
        ArtifactError: stored scores are damaged.
    """
    from dylora_moe.evaluation.history import collect
    from dylora_moe.evaluation.matrix import build_matrices
    from dylora_moe.evaluation.report import write_report
    from dylora_moe.evaluation.summary import summary

    history = collect(pool.registry, pool.artifacts, pool.path)
    matrices = build_matrices(history)
    paths = write_report(pool.path, pool.registry, pool.artifacts)
    return Written(matrices, summary(history, matrices), paths.markdown, paths.html, paths.data)


def report(pool: PoolFolder, as_json: AsJson = False) -> None:
    """Write the report: accuracy matrix, verdicts, losses, routing, costs, with figures."""
    with command(as_json) as output:
        from dylora_moe.cli.tables import matrix_table

        with opening.open_pool(pool) as opened:
            written = write(opened)

        def render(console: Console) -> None:
            if written.matrices.columns:
                console.print(matrix_table(written.matrices))
            console.print(written.summary.headline, soft_wrap=True)
            console.print(f"Markdown: {written.markdown}", soft_wrap=True)
            console.print(f"HTML: {written.html}", soft_wrap=True)

        output.show({"pool": pool, **written.document()}, render)
