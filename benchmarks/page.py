"""The generated part of the documentation's page of figures, from the result files.

Writes Markdown; what stands above the mark is a person's and stays.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verdicts import Entry, Result, entries, goal, number, spread, tally

MARK = "<!-- generated from the result files; do not edit below -->"


def rewritten(text: str, results: Sequence[Result], page: Path) -> str:
    """The page with its generated part made anew.

    Args:
        text: the page as it is.
        results: what to show.
        page: where it lies, for links to figures.

    Raises:
        ValueError: the page has no mark.
    """
    return replaced(text, _generated(results, page), page)


def replaced(text: str, body: str, page: Path) -> str:
    """The page with `body` below the mark.

    Raises:
        ValueError: the page has no mark.
    """
    written, mark, _ = text.partition(MARK)
    if not mark:
        raise ValueError(f"{page} has no line {MARK!r}; put it where the figures are to begin")
    return f"{written}{MARK}\n\n{body}\n"


def _generated(results: Sequence[Result], page: Path) -> str:
    found = entries(results)
    parts = ["## All figures", tally(found)]
    if found:
        parts.append(_summary(found))
    parts += [_section(result, page) for result in results]
    return "\n\n".join(parts)


def _summary(found: Sequence[Entry]) -> str:
    lines = [
        "| figure | measured | rounds | must | aim | verdict | from |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found:
        row = one.row
        measure = f"{row.measure} ({row.note})" if row.note else row.measure
        cells = (
            measure,
            number(row.value),
            spread(row),
            goal(row, row.must),
            goal(row, row.aim),
            one.verdict.words,
            one.result.name,
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _section(result: Result, page: Path) -> str:
    raw = result.raw
    parts = [f"## {result.name}"]
    parts += [f"{raw['title']}."] if raw.get("title") else []
    parts += [f"Compared: {raw['compared']}."] if raw.get("compared") else []
    if raw.get("command"):
        parts.append(f"```bash\n{raw['command']}\n```")
    made = _made_on(raw)
    parts += [made] if made else []
    figure = result.path.with_suffix(".png")
    if figure.exists():
        there = os.path.relpath(figure.resolve(), page.resolve().parent)
        parts.append(f"![{raw.get('title', result.name)}]({Path(there).as_posix()})")
    parts += [_checks(raw["checks"])] if raw.get("checks") else []
    return "\n\n".join(parts)


def _made_on(raw: Mapping[str, Any]) -> str:
    on = raw.get("machine", {})
    said = []
    if on:
        gpu = f"{on['gpu']}, " if "gpu" in on else ""
        said.append(
            f"{gpu}{on['processor']}, cores: {on['cores']}, threads: {on['threads']}, "
            f"{on['memory_gib']} GiB, Python {on['python']}"
        )
    said += [", ".join(f"{name} {value}" for name, value in raw.get("versions", {}).items())]
    rounds = len(raw.get("rounds", ()))
    said += [f"{raw['date']}"] if "date" in raw else []
    said += [f"{rounds} round{'s' if rounds > 1 else ''}"] if rounds else []
    return "; ".join(part for part in said if part) + "." if any(said) else ""


def _checks(checks: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| compared with the reference | largest difference | let through | |"]
    lines.append("|---|---|---|---|")
    for one in checks:
        verdict = "holds" if one["holds"] else "**does not hold**"
        difference, through = f"{one['difference']:.2g}", f"{one['tolerance']:g}"
        lines.append(f"| {one['what']} | {difference} | {through} | {verdict} |")
    return "\n".join(lines)
