from __future__ import annotations

from pathlib import Path

import pytest

from dylora_moe.errors import DataError
from dylora_moe.scoring.checks import score
from dylora_moe.text.stream import arrivals_from_files
from dylora_moe.text.synthetic import SAMPLE_STREAM, SKILLS, generate, sample_stream
from dylora_moe.text.synthetic_skill import SyntheticSkill

FORMS = [(False, False), (True, False), (False, True)]


@pytest.mark.parametrize("skill", SKILLS)
@pytest.mark.parametrize(("reworded", "revised"), FORMS)
def test_rows_are_deterministic_distinct_short_and_checkable(
    skill: str, reworded: bool, revised: bool
) -> None:
    rows = generate(skill, 300, 1, reworded=reworded, revised=revised)
    assert rows == generate(skill, 300, 1, reworded=reworded, revised=revised)
    assert rows != generate(skill, 300, 2, reworded=reworded, revised=revised)
    assert len({row.prompt for row in rows}) == 300
    for row in rows:
        assert score(row.check, row.completion, row.completion) == 1.0
        assert len(row.prompt) < 200
        assert len(row.completion) < 120
        assert "{" not in row.prompt  # no template left unfilled


def test_there_are_at_least_five_skills() -> None:
    assert len(SKILLS) >= 5


@pytest.mark.parametrize("skill", SKILLS)
def test_a_revision_gives_other_answers_to_the_same_prompts(skill: str) -> None:
    before, after = generate(skill, 50), generate(skill, 50, revised=True)
    assert [row.prompt for row in before] == [row.prompt for row in after]
    assert all(a.completion != b.completion for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("skill", SKILLS)
def test_other_words_share_answers_of_the_same_form_but_no_beginning(skill: str) -> None:
    first = {row.prompt.split()[0] for row in generate(skill, 300)}
    other = [row.prompt.split()[0] for row in generate(skill, 300, reworded=True)]
    assert sum(word in first for word in other) < 200


def test_the_sample_stream_is_one_the_demo_needs(tmp_path: Path) -> None:
    paths = sample_stream(tmp_path, seed=3, rows=60)
    arrivals = arrivals_from_files(paths)
    assert len(arrivals) >= 7
    assert len({step.skill for step in SAMPLE_STREAM[:4]}) == 4
    assert any(step.reworded for step in SAMPLE_STREAM)
    assert any(step.revised for step in SAMPLE_STREAM)
    prompts = [row.prompt for arrival in arrivals for row in arrival.examples]
    assert len(prompts) == len(set(prompts)) == 60 * len(arrivals)
    assert [path.name for path in paths[:2]] == ["1-orders.jsonl", "2-robot.jsonl"]


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    one, other = sample_stream(tmp_path / "a", rows=20), sample_stream(tmp_path / "b", rows=20)
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


def test_wrong_requests_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="unknown synthetic skill 'cooking'"):
        generate("cooking", 5)
    with pytest.raises(DataError, match="at least 1"):
        generate("robot", 0)
    coin = SyntheticSkill("coin", "exact", lambda rng, *_: (rng.choice("ht"), "x"))
    monkeypatch.setitem(SKILLS, "coin", coin)
    with pytest.raises(DataError, match="no 3 different prompts; ask for at most 2"):
        generate("coin", 3)
