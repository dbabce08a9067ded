"""A setting of the bench on a random tiny base, whose skills take a second to learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dylora_moe.evaluation.continual.arms.arm import Setting
from dylora_moe.evaluation.continual.data import SkillRows
from dylora_moe.evaluation.continual.streams import STREAMS
from dylora_moe.text.template import PLAIN
from tests.models import tiny_base
from tests.pools import DIGITS, LETTERS, SIGNS, rows, settings

SKILLS = {"letters": LETTERS, "digits": DIGITS, "signs": SIGNS}


def skills(count: int = 3, train: int = 24, test: int = 4) -> tuple[SkillRows, ...]:
    """Rows of words over an alphabet of the skill's own."""
    found = []
    for seed, (name, alphabet) in enumerate(list(SKILLS.items())[:count]):
        made = rows(alphabet, train + test, seed)
        found.append(SkillRows(name, made[test:], made[:test]))
    return tuple(found)


def setting(folder: Path, kind: str = "hard", **changes: Any) -> Setting:
    """A stream of three skills, 12 rows a visit.

    Args:
        folder: for the arm's and the shared files.
        kind: of the stream.
        changes: of the setting's attributes.
    """
    own, shared = folder / "own", folder / "shared"
    for place in (own, shared):
        place.mkdir(parents=True, exist_ok=True)
    of = changes.pop("skills", skills())
    values: dict[str, Any] = {
        "skills": of,
        "stream": STREAMS[kind](of, rows=12, batch=6, seed=0),
        "seed": 0,
        "epochs": 2.0,
        "rank": 2,
        "alpha": 4.0,
        "learning_rate": 1e-2,
        "batch_rows": 4,
        "targets": "all-linear",
        "learn": settings(novelty={"min_cluster": 24, "alike": 0.3, "strange_share": 0.1}),
        "base": tiny_base,
        "base_name": "tiny-llama",
        "fmt": PLAIN,
        "neutral": rows("uvwxyz", 3, 9),
        "folder": own,
        "shared": shared,
        "told": lambda _: None,
    }
    return Setting(**(values | changes))
