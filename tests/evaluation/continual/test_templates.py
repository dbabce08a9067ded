from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from dylora_moe.errors import DataError
from dylora_moe.evaluation.continual.data import SkillRows
from dylora_moe.evaluation.continual.templates import (
    IDENTITY,
    PLACE,
    TEMPLATES,
    instruct,
    instructed,
    templates_of,
)
from dylora_moe.records import Example, Turn, pair
from tests.evaluation.continual.made_up import rows_of

SKILL = SkillRows("sums", rows_of("sums", 90), rows_of("sums", 30, "test"), ("what is love",))
WORDS = ("Add up: {prompt}", "{prompt}\nWhat does it make?", 'As {"json": 1}: {prompt}')


def test_every_known_skill_has_three_ways_to_say_it_that_hold_the_prompt_once() -> None:
    assert len(TEMPLATES) == 8
    everything = [template for found in TEMPLATES.values() for template in found]
    assert all(len(found) >= 3 for found in TEMPLATES.values())
    assert len(set(everything)) == len(everything)
    for template in everything:
        assert template.count(PLACE) == 1
        assert len(template.replace(PLACE, "").strip()) > 10


def test_a_template_changes_the_prompt_and_nothing_else() -> None:
    row = Example(
        (Turn("system", "Be brief."), Turn("user", "2 {prompt} 2"), Turn("assistant", "4")),
        "tests",
        ("assert True",),
        "a.jsonl:3",
    )
    found = instruct(WORDS[2], row)
    assert found.turns == (row.turns[0], Turn("user", 'As {"json": 1}: 2 {prompt} 2'), row.turns[2])
    assert (found.check, found.tests, found.origin) == (row.check, row.tests, row.origin)
    assert found.key != row.key


def test_of_a_conversation_the_last_question_is_put_into_words() -> None:
    turns = (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d"))
    found = instruct("Say: {prompt}", Example(turns))
    assert [turn.content for turn in found.turns] == ["a", "b", "Say: c", "d"]


def test_by_default_nothing_changes() -> None:
    assert instructed(SKILL) == SKILL
    text = replace(SKILL, train=(Example((Turn("assistant", "plain text"),)),))
    assert instructed(text, IDENTITY) == text


def test_every_row_is_said_in_one_of_the_words_and_each_is_used() -> None:
    found = instructed(SKILL, WORDS, seed=1)
    used: Counter[str] = Counter()
    for before, after in zip(SKILL.train + SKILL.test, found.train + found.test, strict=True):
        used[next(w for w in WORDS if instruct(w, before) == after)] += 1
    assert len(used) == len(WORDS)
    assert min(used.values()) > 20
    assert found.out_of_scope[0] in [w.replace(PLACE, "what is love") for w in WORDS]
    assert (found.name, len(found.out_of_scope)) == ("sums", 1)


def test_the_choice_depends_on_the_seed_and_the_prompt_alone() -> None:
    found = instructed(SKILL, WORDS, seed=1)
    assert instructed(SKILL, WORDS, seed=1) == found
    turned = instructed(replace(SKILL, train=SKILL.train[::-1]), WORDS, seed=1)
    assert turned.train == found.train[::-1]
    assert instructed(SKILL, WORDS, seed=2).train != found.train


def test_a_skill_that_nobody_knows_has_its_own_templates_or_none(tmp_path: Path) -> None:
    assert templates_of("sums") == templates_of("sums", tmp_path) == IDENTITY
    assert templates_of("scan", tmp_path) == TEMPLATES["scan"]
    (tmp_path / "templates.txt").write_text("Add: {prompt}\n\n{prompt}\\nHow much?\n")
    assert templates_of("sums", tmp_path) == ("Add: {prompt}", "{prompt}\nHow much?")
    assert templates_of("scan", tmp_path) == templates_of("sums", tmp_path)


def test_templates_without_a_place_for_the_prompt_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "templates.txt"
    for text, message in (
        ("Add: {prompt}\nAdd up!\n", r"templates\.txt:2: a template holds"),
        ("{prompt} and {prompt}", r"templates\.txt:1: a template holds"),
        ("\n \n", "holds no templates"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            templates_of("sums", tmp_path)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="cannot be read"):
        templates_of("sums", tmp_path)
    for wrong in ("Add up!", "{prompt} {prompt}"):
        with pytest.raises(DataError, match="must hold"):
            instruct(wrong, pair("1 1", "2"))
    with pytest.raises(DataError, match="no templates to choose from"):
        instructed(SKILL, ())
    with pytest.raises(DataError, match="has no prompt"):
        instruct(WORDS[0], Example((Turn("assistant", "text"),)))
