"""The page of what was learned: every kept run of the continual bench, then the studies.

python benchmarks/results_page.py --write docs/results.md
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ablations_table import table
from choices_table import novelty_table, router_table
from page import replaced
from verdicts import RESULTS

STUDIES = ("ablations.json", "pieces.json", "neighbours.json")
"""Result files of trainings in variants."""
CHOICES = {"router_choices.json": router_table, "novelty_choices.json": novelty_table}
"""Result files of choices judged on stored features, with what makes their tables."""


def body(page: Path, folder: Path = RESULTS) -> str:
    """The generated part of the page.

    Args:
        page: where it lies, for links to figures.
        folder: of the result files.
    """
    parts = [_embedded(path, page) for path in sorted((folder / "continual").glob("*.md"))]
    parts += [_study(folder / name) for name in STUDIES if (folder / name).exists()]
    for name, made in CHOICES.items():
        if (folder / name).exists():
            found = json.loads((folder / name).read_text(encoding="utf-8"))
            parts.append(_section(found, made(found["choices"])))
    return "\n\n".join(parts)


def _study(path: Path) -> str:
    found = json.loads(path.read_text(encoding="utf-8"))
    return _section(found, table(found["runs"]))


def _section(found: Mapping[str, Any], shown: str) -> str:
    compared, command = f"Compared: {found['compared']}.", f"```bash\n{found['command']}\n```"
    return "\n\n".join((f"## {found['title']}", compared, command, shown))


def _embedded(path: Path, page: Path) -> str:
    """A run's own page: its headings a level lower, its drawings found from ours."""
    text = re.sub(r"^#", "##", path.read_text(encoding="utf-8"), flags=re.MULTILINE).strip()
    there = Path(os.path.relpath(path.parent.resolve(), page.resolve().parent)).as_posix()
    return re.sub(r"!\[([^\]]*)\]\(([^)]*)\)", rf"![\1]({there}/\2)", text)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What was learned, as a page.")
    parser.add_argument("--write", type=Path, required=True, help="page to write anew")
    page = parser.parse_args(argv).write
    text = page.read_text(encoding="utf-8")
    page.write_text(replaced(text, body(page), page), encoding="utf-8")


if __name__ == "__main__":
    main()
