"""A pool as a person holds it: made, closed, opened elsewhere, asked, measured."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dylora_moe.build.inspection import inspect_pool
from dylora_moe.build.pool import Pool
from dylora_moe.errors import BaseModelError, ConfigError, DataError, PoolError, PoolLockedError
from dylora_moe.lifecycle.results import LearnResult
from tests import pools
from tests.pools import DIGITS, LETTERS, SIGNS, Notes, fingerprint, learn, rows, settings
from tests.storage.processes import ended, start


def write(path: Path, examples: tuple[pools.Example, ...]) -> Path:
    lines = [json.dumps({"prompt": e.prompt, "completion": e.completion}) for e in examples]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_three_lines_make_a_pool_teach_it_and_ask_it(base_folder: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "letters.jsonl", rows(LETTERS, 64, 3))
    with Pool.create(tmp_path / "pool", str(base_folder), tap=2, own_prompts=32) as pool:
        result = pool.learn(file, settings=settings())
        assert isinstance(result, LearnResult)
        assert (result.verdict.name, result.expert) == ("novel", "letters")
        assert pool.generate("abcdef", max_new_tokens=4).expert == "letters"


def test_files_are_learned_in_order_and_nothing_is_learned_if_one_cannot_be_read(
    empty: Pool, tmp_path: Path
) -> None:
    letters = write(tmp_path / "letters.jsonl", rows(LETTERS, 64, 3))
    digits = write(tmp_path / "digits.jsonl", rows(DIGITS, 64, 4))
    torn = tmp_path / "torn.jsonl"
    torn.write_text('{"prompt": "a", "compl', encoding="utf-8")
    with pytest.raises(DataError, match=r"torn\.jsonl:1"):
        empty.learn(letters, torn, settings=settings())
    assert empty.revision.number == 0
    results = empty.learn(letters, digits, settings=settings(), max_examples=60)
    assert [result.expert for result in results] == ["letters", "digits"]
    assert [plan.verdict.name for plan in empty.plan(letters, settings=settings())] == ["known"]


def test_what_a_pool_was_made_with_is_kept(empty: Pool, base_folder: Path) -> None:
    assert empty.meta["base"] == str(base_folder)
    assert (empty.meta["format"], empty.meta["tap"], empty.meta["seed"]) == ("plain", 2, 0)
    assert empty.meta["feature_blocks"] == list(empty.live.base.anatomy.feature_blocks)
    assert empty.meta["fingerprint"] == empty.live.base.fingerprint


def test_a_base_given_by_a_relative_path_is_found_from_elsewhere(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base_folder.parent)
    pools.create(tmp_path / "pool", Path(base_folder.name)).close()
    monkeypatch.chdir(tmp_path)
    with Pool.open("pool") as pool:
        assert pool.generate("a", max_new_tokens=1).expert == "base"


def test_a_pool_closed_and_opened_is_the_same(taught: Pool) -> None:
    before = fingerprint(taught)
    taught.close()
    with Pool.open(taught.path, device="cpu", dtype="fp32") as again:
        assert fingerprint(again) == before


def test_a_pool_that_another_object_changed_answers_as_it_is_now(taught: Pool) -> None:
    with Pool.open(taught.path, device="cpu", dtype="fp32") as reader:
        assert reader.generate("+-*+-*", max_new_tokens=1).expert != "signs"
        learn(taught, "signs", rows(SIGNS, 64, 5))
        assert reader.generate("+-*+-*", max_new_tokens=1).expert == "signs"
        assert fingerprint(reader) == fingerprint(taught)


_LEARNS_AND_DIES = """
import os, signal, sys
from dylora_moe.build.pool import Pool
from tests.pools import SIGNS, Notes, answers, learn, rows

pool = Pool.open(sys.argv[1], device="cpu", dtype="fp32")
print(*answers(pool), sep="\\x00", end="\\x01", flush=True)

def die(step):
    if step == 5:
        os.kill(os.getpid(), signal.SIGKILL)

learn(pool, "signs", rows(SIGNS, 64, 5), watch=Notes(at_step=die))
"""


def test_another_process_answers_the_same_and_killed_while_it_learns_changes_nothing(
    taught_folder: Path, taught: Pool, tmp_path: Path
) -> None:
    before = fingerprint(taught)
    process = start(_LEARNS_AND_DIES, taught.path)
    code, output = ended(process)
    assert code == -9, output
    assert tuple(output.partition("\x01")[0].split("\x00")) == before.answers

    with Pool.open(taught.path, device="cpu", dtype="fp32") as again:
        assert fingerprint(again) == before
        (run,) = again.unfinished()
        notes = Notes()
        result = learn(again, "signs", rows(SIGNS, 64, 5), watch=notes)
        assert (result.action, result.run_id) == ("created", run.id)
        phases = again.events("trained")[-1].numbers["phases"]
        assert notes.steps == phases[1]["steps"]  # the finished phase was not done again
        resumed = fingerprint(again)
    with pools.copied(taught_folder, tmp_path / "whole") as whole:
        learn(whole, "signs", rows(SIGNS, 64, 5))
        assert fingerprint(whole).answers == resumed.answers
        assert fingerprint(whole).weights == resumed.weights


_HOLDS = """
import sys
from pathlib import Path
from dylora_moe.storage.lock import FileLock
with FileLock(Path(sys.argv[1])).hold("learning sql.jsonl"):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_of_two_that_learn_the_second_is_told_who_is_first_and_readers_are_not_kept_out(
    taught: Pool, tmp_path: Path
) -> None:
    before = fingerprint(taught)
    process = start(_HOLDS, taught.path)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    changes = (
        lambda: learn(taught, "signs", rows(SIGNS, 64, 5)),
        lambda: taught.rename("letters", "abc"),
        lambda: taught.rollback(),
        lambda: taught.rollback("letters"),
        lambda: taught.remove("letters"),
        lambda: taught.import_expert(tmp_path, "new", ["x"]),
    )
    for change in changes:
        with pytest.raises(PoolLockedError, match=f"process {process.pid}.*learning sql.jsonl"):
            change()
    assert "learning sql.jsonl" in str(inspect_pool(taught.path).holder)
    assert fingerprint(taught) == before
    assert ended(process, "go\n")[0] == 0
    assert inspect_pool(taught.path).holder is None


def test_a_pool_of_another_base_is_refused(tmp_path: Path) -> None:
    base = pools.save_base(tmp_path / "base")
    pools.create(tmp_path / "pool", base).close()
    pools.save_base(base, seed=1)
    with Pool.open(tmp_path / "pool") as pool:
        assert pool.experts() == ()
        with pytest.raises(PoolError, match="made on another base"):
            pool.generate("a")


def test_a_base_that_is_gone_is_missed_at_the_first_question_only(tmp_path: Path) -> None:
    base = pools.save_base(tmp_path / "base")
    pools.create(tmp_path / "pool", base).close()
    os.rename(base, tmp_path / "elsewhere")
    with Pool.open(tmp_path / "pool") as pool:
        assert pool.events() == []
        with pytest.raises(BaseModelError, match="base"):
            pool.generate("a")


def test_a_pool_that_cannot_be_made_leaves_nothing(base_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "pool"
    for options in ({"format": "xml"}, {"own_prompts": 3}):
        with pytest.raises(ConfigError):
            Pool.create(target, str(base_folder), **options)  # type: ignore[arg-type]
    with pytest.raises(BaseModelError):
        Pool.create(target, str(tmp_path / "no-base"))
    assert list(tmp_path.iterdir()) == []
    (target / "something").mkdir(parents=True)
    with pytest.raises(PoolError, match="not empty"):
        Pool.create(target, str(base_folder))


def test_a_pool_is_measured_on_its_own_rows_and_on_files(taught: Pool, tmp_path: Path) -> None:
    own = taught.evaluate()
    assert list(own) == ["letters", "digits"]
    for name, found in own.items():
        assert found.to == {name: 1.0}
        assert found.loss == pytest.approx(found.pinned_loss, abs=1e-4)
        assert found.accuracy is not None
    scores = pools.learn(taught, "letters", rows(LETTERS, 64, 3)).scores
    assert own["letters"].loss == pytest.approx(scores["letters"].loss, abs=1e-4)
    file = write(tmp_path / "x.jsonl", rows(LETTERS, 20, 9))
    assert taught.evaluate({"x": file}, limit=8, generate=False)["x"].rows == 8
    base = taught.evaluate({"x": file}, expert="base", generate=False)["x"]
    assert base.to == {"base": 1.0}
    assert base.loss > taught.evaluate({"x": file}, expert="letters", generate=False)["x"].loss
    with pytest.raises(PoolError, match="no expert 'sql'"):
        taught.evaluate({"x": file}, expert="sql")
