from __future__ import annotations

from pathlib import Path

import pytest

from dylora_moe.errors import DataError
from dylora_moe.evaluation.continual.data import read_skills
from tests.evaluation.continual.made_up import rows_of, write_rows, write_skill


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("sums", "hats", "moods"):
        write_skill(tmp_path / name)
    return tmp_path


def test_each_skill_brings_as_many_rows_as_were_asked_for(folder: Path) -> None:
    found = read_skills(folder, train=12, test=5)
    assert [skill.name for skill in found] == ["hats", "moods", "sums"]
    for skill in found:
        assert (len(set(skill.train)), len(set(skill.test))) == (12, 5)
        assert {row.key for row in skill.train} <= {row.key for row in rows_of(skill.name, 30)}
        assert not {row.prompt for row in skill.train} & {row.prompt for row in skill.test}
        assert skill.out_of_scope == ()


def test_the_skills_named_come_in_the_order_named(folder: Path) -> None:
    found = read_skills(folder, train=2, test=2, names=["sums", "hats"])
    assert [skill.name for skill in found] == ["sums", "hats"]


def test_the_seed_picks_the_rows_whatever_their_order_in_the_file(folder: Path) -> None:
    first = read_skills(folder, train=12, test=5, seed=1)
    assert read_skills(folder, train=12, test=5, seed=1) == first
    write_rows(folder / "sums" / "train.jsonl", reversed(rows_of("sums", 30)))
    assert read_skills(folder, train=12, test=5, seed=1) == first
    other = read_skills(folder, train=12, test=5, seed=2)
    assert [s.train for s in other] != [s.train for s in first]


def test_fewer_rows_are_the_first_of_more_on_each_side_alone(folder: Path) -> None:
    few, many = read_skills(folder, train=3, test=9), read_skills(folder, train=20, test=2)
    for less, more in zip(few, many, strict=True):
        assert less.train == more.train[:3]
        assert less.test[:2] == more.test


def test_a_training_row_whose_prompt_is_in_the_test_file_is_never_picked(folder: Path) -> None:
    train = rows_of("sums", 6)
    write_rows(folder / "sums" / "train.jsonl", train)
    write_rows(folder / "sums" / "test.jsonl", [*train[:2], *rows_of("sums", 4, "test")])
    skill = next(s for s in read_skills(folder, train=4, test=1) if s.name == "sums")
    assert set(skill.train) == set(train[2:])
    with pytest.raises(DataError, match="4 rows that can be used, 5 wanted"):
        read_skills(folder, train=5, test=1)


def test_plain_text_without_prompts_keeps_its_rows(folder: Path) -> None:
    for kind, count in (("train", 5), ("test", 3)):
        text = "\n".join(f'{{"text": "{kind} line {n}"}}' for n in range(count))
        (folder / "sums" / f"{kind}.jsonl").write_text(text)
    skill = next(s for s in read_skills(folder, train=5, test=3) if s.name == "sums")
    assert len(skill.train) == 5


def test_prompts_out_of_scope_come_along_where_a_skill_has_them(folder: Path) -> None:
    text = '{"prompt": "who won"}\n{"prompt": "sing"}\n'
    (folder / "hats" / "out_of_scope.jsonl").write_text(text)
    by_name = {skill.name: skill for skill in read_skills(folder, train=2, test=2)}
    assert sorted(by_name["hats"].out_of_scope) == ["sing", "who won"]
    assert by_name["sums"].out_of_scope == ()


def test_the_seed_picks_the_prompts_out_of_scope(folder: Path) -> None:
    lines = [f'{{"prompt": "stranger {n}"}}' for n in range(40)]
    path = folder / "hats" / "out_of_scope.jsonl"
    picked = []
    for seed, order in ((0, lines), (0, lines[::-1]), (1, lines)):
        path.write_text("\n".join(order))
        (hats,) = read_skills(folder, train=2, test=2, seed=seed, names=["hats"], at_least=1)
        picked.append(hats.out_of_scope)
    assert picked[0] == picked[1] != picked[2]
    assert sorted(picked[0]) == sorted(picked[2])
    assert set(picked[0][:10]) != set(picked[2][:10])


def test_a_row_that_comes_twice_in_a_file_counts_once(folder: Path) -> None:
    train = rows_of("sums", 6)
    write_rows(folder / "sums" / "train.jsonl", [*train, *train[:3]])
    # A row's answer may be scored otherwise the second time: it is the same row still.
    path = folder / "sums" / "train.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[0].replace("{", '{"check": "f1", ', 1)]))
    (skill,) = read_skills(folder, train=6, test=1, names=["sums"], at_least=1)
    assert sorted(row.key for row in skill.train) == sorted(row.key for row in train)
    with pytest.raises(DataError, match="6 rows that can be used, 7 wanted"):
        read_skills(folder, train=7, test=1, names=["sums"], at_least=1)


def test_what_is_missing_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read_skills(folder / "nowhere", train=1, test=1)
    with pytest.raises(DataError, match=r"no skill 'shoes'.*there is: hats, moods, sums"):
        read_skills(folder, train=1, test=1, names=["sums", "shoes"])
    (folder / "moods" / "test.jsonl").unlink()
    with pytest.raises(DataError, match=r"moods/test\.jsonl: no such file"):
        read_skills(folder, train=1, test=1)


def test_too_few_skills_or_rows_are_said_with_how_many_there_are(folder: Path) -> None:
    with pytest.raises(DataError, match="3 skills, 4 needed"):
        read_skills(folder, train=1, test=1, at_least=4)
    with pytest.raises(DataError, match="1 skills, 2 needed"):
        read_skills(folder, train=1, test=1, names=["sums"])
    with pytest.raises(DataError, match=r"hats/train\.jsonl: 30 rows that can be used, 31 wanted"):
        read_skills(folder, train=31, test=1)
    with pytest.raises(DataError, match=r"test\.jsonl: 10 rows that can be used, 11 wanted"):
        read_skills(folder, train=1, test=11)
    with pytest.raises(DataError, match="at least one"):
        read_skills(folder, train=0, test=1)
    with pytest.raises(DataError, match="named twice"):
        read_skills(folder, train=1, test=1, names=["sums", "sums"])


def test_a_row_of_two_skills_is_refused_with_its_line(folder: Path) -> None:
    write_rows(folder / "hats" / "train.jsonl", rows_of("hats", 3))
    write_rows(folder / "sums" / "train.jsonl", [*rows_of("sums", 2), rows_of("hats", 1)[0]])
    with pytest.raises(DataError, match=r"sums/train\.jsonl:3: the row is in hats too"):
        read_skills(folder, train=3, test=1)
