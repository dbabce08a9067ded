"""A skill in pieces: every way begins with the same expert and keeps the weights it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pieces
import pytest
import torch
import workload
from harness import Options
from pieces import EXPERT, State, Way
from study import drawn


@pytest.fixture
def learner(monkeypatch: pytest.MonkeyPatch) -> pieces.Learner:
    made = pieces.Learner(workload.load(Options(toy=True, device="cpu", dtype="fp32")))
    monkeypatch.setattr(pieces, "_learner", lambda: made)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "counting"
    found.mkdir()
    for part, first in (("train", 0), ("test", 1000)):
        lines = [
            json.dumps({"prompt": f"Say {n}", "completion": str(n)})
            for n in range(first, first + 140)
        ]
        (found / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return found


def test_a_skill_is_learned_in_pieces_or_at_once(learner: pieces.Learner, folder: Path) -> None:
    by_piece = pieces.run(folder, "as it is", 140, 8, 0)
    assert len(learner.stored) + len(learner.watched) == 140
    at_once = pieces.run(folder, "all at once", 140, 8, 0)
    assert len(learner.stored) + len(learner.watched) == 140
    # Three pieces with old rows beside the new ones, and no more than three old to one new.
    assert at_once.tokens < by_piece.tokens < 4 * at_once.tokens
    assert at_once.operations < by_piece.operations < 4 * at_once.operations
    assert pieces.run(folder, "as it is", 140, 8, 0).operations == by_piece.operations
    assert (by_piece.skill, by_piece.variant, by_piece.rows) == ("counting", "as it is", 140)


def test_what_is_kept_is_what_the_way_says(
    learner: pieces.Learner, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = drawn(folder, 140, 0)

    def state(then: Callable[[], None] = lambda: None) -> State:
        learner.begin(rows[: pieces.PIECE], 0)
        then()
        return learner.experts.state(EXPERT)

    def same(a: State, b: State) -> bool:
        return all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)

    first = state()
    assert same(first, state())
    last = state(lambda: learner.more(rows[pieces.PIECE :], Way(keep="last")))
    assert not same(first, last)
    mean = state(lambda: learner.more(rows[pieces.PIECE :], Way(keep="mean")))
    assert same(mean, {name: (first[name] + last[name]) / 2 for name in first})
    monkeypatch.setattr(learner, "_loss", lambda rows: 0.0)
    kept = state(lambda: learner.more(rows[pieces.PIECE :], Way()))
    assert same(first, kept), "no better, and yet kept"
