"""How long a generated answer may get is the row's own, whatever is scored beside it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dylora_moe.lifecycle import scoring_pass

LENGTHS = (1, 8, 9, 24, 25, 100, 248, 249, 5000)


def limits(lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """The limit that each row was answered with, by the length of its answer."""
    rows = [
        SimpleNamespace(turns=(n, "answer"), check=None, completion="", tests=()) for n in lengths
    ]
    skill = SimpleNamespace(rows=SimpleNamespace(targets=list(lengths)), validation=rows)
    found: dict[int, int] = {}

    def answered(_: Any, prompts: list[tuple[int]], *, sampling: Any) -> list[Any]:
        assert len(prompts) <= scoring_pass.BATCH_ROWS
        found.update({prompt[0]: sampling.max_new_tokens for prompt in prompts})
        return [SimpleNamespace(text=str(prompt[0])) for prompt in prompts]

    monkeypatch.setattr(scoring_pass, "answer", answered)
    monkeypatch.setattr(scoring_pass, "score", lambda _check, text, *_: float(text))
    live: Any = SimpleNamespace(skills={"s": skill})
    drafts: Any = {"s": SimpleNamespace(generate=range(len(lengths)))}
    points = scoring_pass._checked(live, drafts)["s"]
    # Each answer is scored as its own row's.
    assert points == {index: float(n) for index, n in enumerate(lengths)}
    return found


def test_a_rows_limit_does_not_depend_on_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    together = limits(LENGTHS, monkeypatch)
    for n in LENGTHS:
        assert limits((n,), monkeypatch) == {n: together[n]}


def test_a_limit_leaves_room_behind_the_answer_up_to_the_longest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for n, limit in limits(LENGTHS, monkeypatch).items():
        assert min(n + 8, 256) <= limit <= 256


def test_many_rows_of_one_limit_go_in_full_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(limits(tuple(range(9, 75)), monkeypatch).values()) == {32, 64, 128}
