"""`dylora data ...`: what training will see of a file, and a sample stream to try things with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dylora_moe.cli.options import AsJson, MaxExamples
from dylora_moe.cli.output import command

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from dylora_moe.text.preview import Preview, PreviewRow

app = typer.Typer(help="Preview data, or write a sample stream.", no_args_is_help=True)


@app.command()
def preview(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Any data file `learn` takes.")],
    fmt: Annotated[
        Literal["plain", "chat"], typer.Option("--format", help="The pool's prompt format.")
    ] = "plain",
    system: Annotated[
        str | None, typer.Option(help="System prompt of every conversation without one.")
    ] = None,
    base: Annotated[str, typer.Option(help="Whose tokenizer to use.")] = "smollm2-135m",
    limit: Annotated[int, typer.Option(min=0, metavar="N", help="Rows to spell out.")] = 3,
    max_examples: MaxExamples = None,
    max_length: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Hold rows against this limit, not the context's."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    r"""Show exactly which text is trained (marked [\[so]] without colours), and count tokens."""
    with command(as_json) as output:
        from dylora_moe.foundation.base import load_base
        from dylora_moe.text import preview as previews
        from dylora_moe.text.reading import read_examples
        from dylora_moe.text.template import PromptFormat

        examples = read_examples(file, max_examples)
        loaded = load_base(base, device="cpu")
        found = previews.preview(
            examples,
            loaded.tokenizer,
            PromptFormat(fmt, system),
            max_length=max_length or loaded.context_length,
            show=limit,
        )
        output.show(
            {"file": file, "rows": found.rows, "statistics": found.statistics},
            lambda console: _render(console, found),
        )


@app.command()
def sample(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the files go.")],
    rows: Annotated[int, typer.Option(min=1, metavar="N", help="Rows of each arrival.")] = 240,
    seed: Annotated[int, typer.Option(help="The same seed writes the same bytes.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Write a stream of synthetic skills with checkable answers: data files and stream.yaml."""
    with command(as_json) as output:
        from dylora_moe.text.synthetic import sample_stream

        paths = sample_stream(folder, seed, rows)
        stream = folder / "stream.yaml"
        lines = ["# Arrivals in their order; paths are relative to this file.", "arrivals:"]
        lines += [f"  - file: {path.name}" for path in paths]
        stream.write_text("\n".join(lines) + "\n", encoding="utf-8")

        def render(console: Console) -> None:
            for path in paths:
                console.print(str(path), soft_wrap=True)
            console.print(f"Stream: {stream}", soft_wrap=True)

        output.show({"stream": stream, "files": paths, "rows": rows, "seed": seed}, render)


def _render(console: Console, found: Preview) -> None:
    from dylora_moe.cli.tables import facts_table

    coloured = console.is_terminal and not console.no_color
    for row in found.rows:
        limit = " - over the limit: refused, or left out with --drop-long" if row.too_long else ""
        console.print(f"{row.origin}: {row.tokens} tokens{limit}", style="bold", soft_wrap=True)
        console.print(marked(row, coloured), soft_wrap=True)
        console.print()
    counts = found.statistics
    over = f"{len(counts.too_long)}: {', '.join(counts.too_long[:5])}" if counts.too_long else "0"
    facts = {
        "rows": counts.rows,
        "tokens": counts.tokens,
        "trained tokens": f"{counts.trained_share:.1%}",
        "longest row": f"{counts.longest} tokens",
        "prompt format": counts.prompt_format,
        "limit": "none" if counts.max_length is None else f"{counts.max_length} tokens",
        "rows over the limit": over,
        "padding, batches by length": f"{counts.grouped_padding:.1%} of {counts.batch_size} rows",
        "padding, batches in file order": f"{counts.shuffled_padding:.1%}",
        "packed": f"{counts.packed_sequences} sequences of {counts.packed_capacity} tokens, "
        f"{counts.packed_unused:.1%} unused",
    }
    console.print(facts_table("", facts))


def marked(row: PreviewRow, coloured: bool) -> Text:
    """The row with its trained text in colour, or in double brackets where there are none."""
    from rich.text import Text

    text = Text()
    for piece in row.pieces:
        if coloured:
            text.append(piece.text, "bold green" if piece.trained else "dim")
        else:
            text.append(f"[[{piece.text}]]" if piece.trained else piece.text)
    return text
