"""The pool as an arm: no names, no borders, and nothing learned or answered twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dylora_moe.build.pool import Pool
from dylora_moe.evaluation.continual.arms import routed
from dylora_moe.evaluation.continual.arms.arm import Setting
from dylora_moe.evaluation.continual.arms.journal import (
    Arrived,
    arrived,
    borders,
    new_for_returning,
)
from dylora_moe.evaluation.continual.arms.ours import Ours
from dylora_moe.evaluation.continual.arms.shortening import shortened
from dylora_moe.evaluation.continual.results import ArmResult
from dylora_moe.evaluation.continual.streams import STREAMS, Stream
from dylora_moe.foundation.base import load_base
from dylora_moe.records import Arrival
from tests.evaluation.continual.arms.tiny_setting import setting, skills
from tests.pool_fixtures import _no_waiting, base_folder

__all__ = ["_no_waiting", "base_folder"]

ROWS, BATCH = 64, 32
OURS = Ours()
SKILLS = skills(3, train=2 * ROWS, test=4)


def streamed(kind: str) -> Stream:
    return STREAMS[kind](SKILLS, rows=ROWS, batch=BATCH, seed=0)


def given(folder: Path, base: Path, kind: str = "hard", **changes: Any) -> Setting:
    load = partial(load_base, str(base), device="cpu", dtype="fp32")
    return setting(
        folder, kind, skills=SKILLS, stream=streamed(kind), base=load, base_name=str(base),
        device="cpu", dtype="fp32", own_prompts=32, **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def returned(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ArmResult:
    """The pool on a stream whose first skill comes back."""
    return OURS.run(given(tmp_path_factory.mktemp("returned"), base_folder, "returning"))


@dataclass(frozen=True)
class Hard:
    """A run on hard switches: its folder, its result, and what the pool was given."""

    folder: Path
    result: ArmResult
    given: list[tuple[Arrival, Mapping[str, Any]]]


@pytest.fixture(scope="module")
def hard(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Hard:
    folder, seen = tmp_path_factory.mktemp("hard"), []
    learn = Pool.learn_arrivals

    def watched(self: Pool, arrivals: Any, **options: Any) -> Any:
        seen.append((*arrivals, options))
        return learn(self, arrivals, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Pool, "learn_arrivals", watched)
        return Hard(folder, OURS.run(given(folder, base_folder)), seen)


def timeless(result: ArmResult) -> tuple[Any, ...]:
    """What is the same from run to run: no times, and no losses, which batches of another shape
    round otherwise."""
    told = [(o["parts"], o["action"], o["expert"], o["version"], o["tokens"], o["skills"])
            for o in result.details["arrivals"]]  # fmt: skip
    rows = [[(row.key, row.score, row.expert) for row in stage.rows] for stage in result.stages]
    kept = {key: result.details[key] for key in ("experts", "borders", "none", "waiting")}
    return told, rows, kept, result.trained_tokens, result.parameters


def losses(result: ArmResult) -> list[float]:
    return [row.loss for stage in result.stages for row in stage.rows]


def test_it_grows_an_expert_for_each_skill_and_none_for_one_that_returns(
    returned: ArmResult,
) -> None:
    assert returned.details["experts_grown"] == 3
    assert returned.details["new_for_returning"] == 0
    parts = [one["parts"] for one in returned.details["arrivals"]][:2]
    assert [[one["verdict"] for one in some] for some in parts] == [["novel"], ["known"]]
    found = returned.details["borders"]
    assert found["true"] == found["detected"] == [2, 4, 6]


def test_every_visit_is_answered_and_rows_go_to_their_own_experts(returned: ArmResult) -> None:
    assert [stage.after for stage in returned.stages] == [1, 2, 3, 4]
    assert [stage.skill for stage in returned.stages] == ["letters", "digits", "signs", "letters"]
    # What was learned and what comes next; in the end all.
    assert [sorted({row.skill for row in stage.rows}) for stage in returned.stages] == [
        ["digits", "letters"],
        *[["digits", "letters", "signs"]] * 3,
    ]
    assert [len(stage.rows) for stage in returned.stages] == [8, 12, 12, 12]
    assert {row.expert for row in returned.stages[0].rows} <= {"letters", ""}
    right = [row.expert == row.skill for row in returned.last.rows]
    assert sum(right) >= 10
    assert all(0 <= (row.confidence or 0.0) <= 1 for row in returned.last.rows)


def test_it_says_what_it_used(returned: ArmResult) -> None:
    assert returned.trained_tokens == sum(o["tokens"] for o in returned.details["arrivals"]) > 0
    assert all(one["tokens"] > 0 for one in returned.details["arrivals"][:6:2])
    assert 0 < returned.parameters_in_use <= returned.parameters
    assert returned.base_loss is not None
    assert set(returned.details["none"]) == {row.key for row in returned.last.rows}


def test_no_name_tells_the_pool_a_skill(hard: Hard) -> None:
    assert [arrival.name for arrival, _ in hard.given] == [f"batch-{n:04d}" for n in range(6)]
    for arrival, options in hard.given:
        assert options.keys() == {"settings", "mixed"}
        # Nor that a batch is of one skill alone.
        assert options["mixed"] is True
        assert arrival.validation is None
        assert {row.origin for row in arrival.examples} == {""}


def interrupted_after(count: int) -> Callable[[str], None]:
    lines: list[str] = []

    def tell(line: str) -> None:
        lines.append(line)
        if len(lines) == count:
            raise KeyboardInterrupt

    return tell


def test_an_interrupted_stream_goes_on_and_ends_as_if_it_had_not_been(
    base_folder: Path, tmp_path: Path, returned: ArmResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An empty pool, two batches, the stage behind them, and the third batch.
    broken = given(tmp_path, base_folder, "returning", told=interrupted_after(5))
    with pytest.raises(KeyboardInterrupt):
        OURS.run(broken)
    learned: list[str] = []
    learn = Pool.learn_arrivals

    def watched(self: Pool, arrivals: Any, **options: Any) -> Any:
        learned.append(arrivals[0].name)
        return learn(self, arrivals, **options)

    monkeypatch.setattr(Pool, "learn_arrivals", watched)
    found = OURS.run(given(tmp_path, base_folder, "returning"))
    assert learned == [f"batch-{number:04d}" for number in range(3, 8)]
    assert timeless(found) == timeless(returned)
    assert losses(found) == pytest.approx(losses(returned), abs=1e-4)


def test_a_batch_that_was_learned_and_not_written_down_is_told_by_the_pools_events(
    base_folder: Path, tmp_path: Path
) -> None:
    first = OURS.run(given(tmp_path, base_folder, every_visit=False))
    path = tmp_path / "own" / "arrivals.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told[:-2]))
    (tmp_path / "own" / "stage-003.json").unlink()
    again = OURS.run(given(tmp_path, base_folder, every_visit=False))

    def facts(result: ArmResult) -> list[Any]:
        left = ("action", "expert", "version", "parts")
        return [[one[key] for key in left] for one in result.details["arrivals"]]

    assert facts(again) == facts(first)
    assert again.trained_tokens == first.trained_tokens


def test_the_empty_pool_is_made_once_for_all_streams(
    base_folder: Path, hard: Hard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(Pool, "create", refuse)
    mixed = replace(given(hard.folder, base_folder, "mixed"), folder=hard.folder / "mixed")
    mixed.folder.mkdir()
    found = OURS.run(mixed)
    assert found.stream == "mixed"
    check_mixed(found)
    assert [stage.skill for stage in found.stages] == [""]
    with pytest.raises(AssertionError, match="made again"):
        OURS.run(replace(mixed, seed=1, folder=hard.folder))


def check_mixed(found: ArmResult) -> None:
    """Every expert is of a part of a batch."""
    told = [Arrived(**one) for one in found.details["arrivals"]]
    assert [one.batch for one in told] == list(range(6))
    made = [expert for one in told for expert in one.made]
    assert len(made) == len(set(made)) == found.details["experts_grown"]
    assert found.details["grown_after_batch"][-1] == len(made)
    assert set(made) == set(found.details["after"]["1"]["owners"])


def test_mixed_rows_that_were_learned_and_not_written_down_are_told_by_the_pools_events(
    base_folder: Path, tmp_path: Path
) -> None:
    first = OURS.run(given(tmp_path, base_folder, "mixed"))
    path = tmp_path / "own" / "arrivals.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told[:-1]))
    again = OURS.run(given(tmp_path, base_folder, "mixed"))
    assert again.details["arrivals"][-1]["parts"] == first.details["arrivals"][-1]["parts"]
    assert again.details["grown_after_batch"] == first.details["grown_after_batch"]
    assert again.trained_tokens == first.trained_tokens


def test_rows_whose_experts_are_the_same_are_not_answered_again(
    base_folder: Path, hard: Hard, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[int] = []
    answer = routed.answer_rows

    def watched(*arguments: Any, only: Any, **options: Any) -> Any:
        answered.append(len(only))
        return answer(*arguments, only=only, **options)

    monkeypatch.setattr(routed, "answer_rows", watched)
    with Pool.open(hard.folder / "own" / "pool", device="cpu", dtype="fp32") as pool:
        asked = routed.Asked(pool.live, given(hard.folder, base_folder).test_rows)
        first, second = asked.score({}), asked.score({})
    assert answered == [12, 0]
    assert first == second


def test_rows_whose_scores_alone_were_asked_for_are_written_to_their_ends_where_all_is(
    base_folder: Path, hard: Hard
) -> None:
    with Pool.open(hard.folder / "own" / "pool", device="cpu", dtype="fp32") as pool:
        asked = routed.Asked(pool.live, given(hard.folder, base_folder).test_rows)
        scores, all_of_it = asked.score({}, whole=False), asked.score({})
        assert asked.score({}, whole=False) == all_of_it
    assert [row.score for row in scores.rows] == [row.score for row in all_of_it.rows]
    assert any(row.f1 is None for row in scores.rows)
    assert all(row.f1 is not None for row in all_of_it.rows)


def test_an_end_that_may_be_read_off_is_written_whole(returned: ArmResult) -> None:
    whole = [all(row.f1 is not None for row in stage.rows) for stage in returned.stages]
    # All skills are asked for after the second of three.
    assert whole[1:] == [True, True, True]


def test_the_hard_stream_is_read_off_the_one_with_a_return(hard: Hard, returned: ArmResult) -> None:
    found, hard_one = shortened(returned, streamed("hard"), "hard"), hard.result
    assert found is not None
    assert timeless(replace(found, details=hard_one.details)) == timeless(hard_one)
    assert losses(found) == pytest.approx(losses(hard_one), abs=1e-4)
    assert found.trained_tokens == hard_one.trained_tokens
    assert found.parameters == hard_one.parameters
    assert found.parameters_in_use == pytest.approx(hard_one.parameters_in_use)
    assert found.base_loss == pytest.approx(hard_one.base_loss, abs=1e-4)
    # The return visit changed the pool: what is read off is not what was there in the end.
    assert returned.details["experts"] != hard_one.details["experts"]
    for key in ("experts_grown", "borders", "new_for_returning", "grown_after_batch",
                "experts", "none", "waiting"):  # fmt: skip
        assert found.details[key] == hard_one.details[key], key


def test_nothing_that_is_read_off_is_of_after_the_return(returned: ArmResult) -> None:
    later = {"experts": {}, "none": {}, "experts_grown": 99, "waiting": 99, "borders": {}}
    spoiled = replace(
        returned, base_loss=99.0, parameters=99, parameters_in_use=99.0,
        details={**returned.details, **later},
    )  # fmt: skip
    hard_stream = streamed("hard")
    assert shortened(spoiled, hard_stream, "hard") == shortened(returned, hard_stream, "hard")
    unknown = replace(returned, details={**returned.details, "after": {}})
    assert shortened(unknown, hard_stream, "hard") is None


def test_other_batches_are_no_beginning(returned: ArmResult) -> None:
    assert shortened(returned, streamed("blurred"), "blurred") is None
    last = replace(returned, stages=returned.stages[-1:])
    assert shortened(last, streamed("hard"), "hard") is None


# -- what verdicts say of borders ----------------------------------------------------------------


def batch(number: int, verdict: str, expert: str | None, skill: str) -> Arrived:
    action = "waiting" if expert is None else "created" if verdict == "novel" else "statistics"
    part = {"arrival": "x", "verdict": verdict, "action": action, "expert": expert, "version": 1}
    parts = () if expert is None else (part,)
    return Arrived(number, action, expert, 1, {skill: BATCH}, 0, 0.0, 0, parts)


def test_a_border_is_a_novel_batch_or_one_that_goes_elsewhere() -> None:
    told = [
        batch(0, "novel", "expert_1", "letters"),
        batch(1, "known", "expert_1", "letters"),
        batch(2, "unsure", None, "digits"),
        batch(3, "novel", "expert_2", "digits"),
        batch(4, "known", "expert_2", "signs"),
        batch(5, "covered", "expert_2", "signs"),
        batch(6, "known", "expert_1", "letters"),
        batch(7, "known", "expert_1", "letters"),
    ]
    found = borders(streamed("returning"), told)
    assert found is not None
    assert found["detected"] == [3, 5, 6]
    assert found["true"] == [2, 4, 6]
    assert (found["early"], found["tolerance"]) == (0, 1)
    assert borders(streamed("mixed"), told) is None


def test_a_batch_belongs_to_its_largest_part_or_to_the_expert_that_was_made_of_it() -> None:
    def told(kind: str, **numbers: Any) -> SimpleNamespace:
        return SimpleNamespace(kind=kind, numbers=numbers)

    def part(name: str, rows: int, action: str) -> list[SimpleNamespace]:
        promoted = {"arrival": name, "action": action, "expert": name, "version": 2}
        return [
            told("arrival", arrival=name, rows=rows, verdict="known"),
            told("promoted", **promoted),
        ]

    def main(*parts: list[SimpleNamespace]) -> tuple[str | None, int]:
        ours = [told("sorted", traffic="batch-0003", waiting=7), *(e for p in parts for e in p)]
        other = [*part("x", 99, "created"), told("sorted", traffic="batch-0004", waiting=9)]
        registry = SimpleNamespace(events=lambda: [*other[:2], *ours, other[2]])
        waits = [SimpleNamespace(action="waiting")]
        found = arrived(3, waits, registry, {"a": 9}, 5, 1.0, str.upper)  # type: ignore[arg-type]
        return found.expert, found.waiting

    large, small = part("a", 50, "new version"), part("b", 40, "new version")
    assert main(large, small) == main(small, large) == ("A", 7)
    assert main(large, part("c", 30, "created")) == ("C", 7)
    assert main() == (None, 7)


def test_experts_for_a_skill_that_returns_are_those_made_in_its_second_visit() -> None:
    told = [batch(0, "novel", "expert_1", "letters"), batch(4, "novel", "expert_2", "signs")]
    assert new_for_returning(streamed("returning"), told, {}) == 0
    again = [*told, batch(7, "novel", "expert_3", "letters")]
    assert new_for_returning(streamed("returning"), again, {}) == 1
    assert new_for_returning(streamed("hard"), again, {}) is None


def test_an_expert_is_for_the_skill_of_most_of_its_rows_whatever_batch_it_was_made_of() -> None:
    stream = streamed("returning")
    told = [batch(0, "novel", "expert_1", "letters"), batch(7, "novel", "expert_2", "signs")]
    own = {"expert_1": "letters", "expert_2": "letters"}
    assert new_for_returning(stream, told, own) == 1
    assert new_for_returning(stream, told, own | {"expert_2": "signs"}) == 0
    parts = [*told[1].parts, {"arrival": "y", "verdict": "known", "action": "statistics"}]
    several = [told[0], replace(told[1], expert=None, parts=parts)]
    assert new_for_returning(stream, several, own) == 1


def test_a_border_within_a_batch_may_be_seen_at_the_next_one() -> None:
    told = [batch(n, "novel", f"expert_{n}", "letters") for n in (0, 2, 3)]
    cut = STREAMS["hard"](SKILLS, rows=40, batch=32, seed=0)
    found = borders(cut, told)
    assert found is not None
    assert (found["true"], found["tolerance"]) == ([1, 2], 1)
