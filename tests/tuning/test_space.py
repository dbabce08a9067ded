"""What is searched: each key is a setting, and values go into settings and come out again."""

from __future__ import annotations

import pytest

from dylora_moe.config import LearnSettings
from dylora_moe.errors import ConfigError
from dylora_moe.parsing import override, parse
from dylora_moe.tuning.space import (
    SPACE,
    Between,
    OneOf,
    chosen,
    differences,
    values_of,
    with_values,
)

START = LearnSettings()


def test_every_key_is_a_setting_and_holds_its_default() -> None:
    usual = values_of(START, SPACE)
    assert usual.keys() == SPACE.keys()
    for key, dimension in SPACE.items():
        if isinstance(dimension, Between):
            assert dimension.low <= float(usual[key]) <= dimension.high
        else:
            assert usual[key] in dimension.values


def test_values_go_in_and_come_out() -> None:
    values = {
        "consolidation.learning_rate": 2e-3,
        "seeding": True,
        "seeding.learning_rate": 5e-3,
        "expert.rank": 16,
        "expert.targets": "attention",
    }
    found = with_values(START, values)
    assert values_of(found, dict.fromkeys(values, OneOf(()))) == values
    assert found.expert.alpha == 2 * START.expert.alpha
    assert with_values(START, {}) == START


def test_a_phase_is_switched_off_and_on() -> None:
    without = with_values(START, {"seeding": False, "consolidation.epochs": 2.0})
    assert without.seeding is None
    assert with_values(without, {"seeding": True}).seeding == START.seeding
    assert "seeding.learning_rate" not in values_of(without, SPACE)


def test_the_rank_alone_is_not_searched_while_ranks_grow() -> None:
    growing = with_values(START, {"expert.max_rank": 32})
    with pytest.raises(ConfigError, match="none of them would be measured"):
        chosen(growing, ["expert.rank"])
    # Where more is searched, the settings that are found have the growth in them.
    assert "expert.rank" in chosen(growing, ["expert.rank", "consolidation.epochs"])
    assert "expert.rank" in chosen(growing)


def test_a_start_outside_the_usual_values_is_searched_too() -> None:
    start = parse(LearnSettings, {"expert": {"rank": 12}, "seeding": {"learning_rate": 0.5}}, "t")
    found = chosen(start)
    assert isinstance(found["expert.rank"], OneOf)
    assert 12 in found["expert.rank"].values
    assert isinstance(found["seeding.learning_rate"], Between)
    assert found["seeding.learning_rate"].high == 0.5


def test_keys_are_chosen_and_others_refused() -> None:
    assert list(chosen(START, ["expert.rank"])) == ["expert.rank"]
    with pytest.raises(ConfigError, match=r"did you mean 'expert.rank'"):
        chosen(START, ["expert.ranks"])


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"seeding": None}, "seeding.learning_rate"),
        ({"expert": {"targets": ["q_proj", "v_proj"]}}, "expert.targets"),
    ],
)
def test_what_has_no_one_value_is_left_out_and_refused_by_name(
    settings: dict[str, object], key: str
) -> None:
    start = parse(LearnSettings, settings, "t")
    assert key not in chosen(start)
    with pytest.raises(ConfigError, match="no one value there to start from"):
        chosen(start, [key])


def test_differences_are_what_set_takes() -> None:
    found = with_values(START, {"expert.rank": 4, "seeding": False, "consolidation.epochs": 1.0})
    told = differences(found)
    assert told == {
        "expert.rank": 4, "expert.alpha": 8.0, "consolidation.epochs": 1.0, "seeding": None,
    }  # fmt: skip
    words = [f"{key}={'null' if value is None else value}" for key, value in told.items()]
    assert parse(LearnSettings, override({}, words), "t") == found
