"""`dylora generate`: answers to one prompt, to stdin, or to a file of prompts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dylora_moe.cli import opening
from dylora_moe.cli.options import MAX_SEED, AsJson, Device, Dtype, PoolFolder
from dylora_moe.cli.output import command

if TYPE_CHECKING:
    from rich.console import Console

    from dylora_moe.lifecycle.results import Answer

Expert = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="This expert, or base; the router chooses by itself."),
]
NewTokens = Annotated[int, typer.Option(min=1, metavar="N", help="At most this many tokens.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")]
TopP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Nucleus sampling.")]
TopK = Annotated[int, typer.Option(min=0, help="Sample among this many tokens; 0 for all.")]
SampleSeed = Annotated[int | None, typer.Option(min=0, max=MAX_SEED, help="Seed of the sampling.")]
Stop = Annotated[
    list[str] | None, typer.Option(metavar="TEXT", help="End the answer here; may be repeated.")
]
Explain = Annotated[
    bool, typer.Option("--explain", help="Show each expert's weight, the probability of none too.")
]


def generate(
    pool: PoolFolder,
    prompt: Annotated[str | None, typer.Argument(help="The prompt; - reads it from stdin.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Prompts: .txt (one a line) or .jsonl."),
    ] = None,
    expert: Expert = None,
    max_new_tokens: NewTokens = 128,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    seed: SampleSeed = None,
    stop: Stop = None,
    explain: Explain = False,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Answer prompts; the router picks the expert for each."""
    with command(as_json) as output:
        prompts = _prompts(prompt, file)
        with opening.open_pool(pool, device=device, dtype=dtype) as opened:
            answers = opened.generate(
                prompts,
                expert=expert,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                seed=seed,
                stop=tuple(stop or ()),
            )
        document = {
            "answers": [
                {"prompt": asked, **_document(answer)}
                for asked, answer in zip(prompts, answers, strict=True)
            ]
        }
        output.show(document, lambda console: _render(console, prompts, answers, explain))


def explanation(answer: Answer) -> str:
    """`orders v2 · orders 0.97, sql 0.02 · none 0.01`."""
    version = "" if answer.version is None else f" v{answer.version}"
    weights = sorted(answer.weights.items(), key=lambda pair: -pair[1])
    listed = ", ".join(f"{name} {weight:.2f}" for name, weight in weights)
    parts = [f"{answer.expert}{version}", *([listed] if listed else []), f"none {answer.none:.2f}"]
    return " · ".join(parts)


def _document(answer: Answer) -> dict[str, object]:
    from dylora_moe.cli.output import plain

    found: dict[str, object] = plain(answer)
    return found


def _prompts(prompt: str | None, file: Path | None) -> list[str]:
    from dylora_moe.errors import ConfigError
    from dylora_moe.text.prompts import read_prompts

    if (prompt is None) == (file is None):
        raise ConfigError("give a prompt, - for stdin, or --file with prompts; exactly one of them")
    if file is not None:
        return read_prompts(file)
    text = sys.stdin.read().rstrip("\n") if prompt == "-" else str(prompt)
    if not text.strip():
        raise ConfigError("the prompt is empty; write what to answer")
    return [text]


def _render(
    console: Console, prompts: Sequence[str], answers: Sequence[Answer], explain: bool
) -> None:
    from rich.text import Text

    several = len(prompts) > 1
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        if several:
            console.print(Text(("\n" if number else "") + f"> {prompt}", "dim"), soft_wrap=True)
        # As text, not markup: an answer may hold brackets; never wrapped, it may be code.
        console.print(Text(answer.text), soft_wrap=True)
        if explain:
            console.print(Text(f"[{explanation(answer)}]", "dim"), soft_wrap=True)
