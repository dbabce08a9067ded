"""A whole search on a tiny base, the parts it cuts rows into, and what it leaves behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from dylora_moe.config import ExpertSettings, LearnSettings
from dylora_moe.errors import ConfigError, DataError
from dylora_moe.parsing import override, parse
from dylora_moe.records import Arrival
from dylora_moe.tuning.material import FEWEST, fingerprint, parts
from dylora_moe.tuning.outcome import document, outcome, words
from dylora_moe.tuning.search import Trial
from dylora_moe.tuning.trials import Trained
from dylora_moe.tuning.tune import Ask, tune
from tests.pools import DIGITS, LETTERS, rows, save_base, settings

LETTER, DIGIT = Arrival("letters", rows(LETTERS, 128, 1)), Arrival("digits", rows(DIGITS, 128, 2))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


def ask(base: Path, **changes: object) -> Ask:
    made = Ask(
        (LETTER, DIGIT), settings(), ("consolidation.learning_rate", "expert.rank"), str(base),
        tap=2, device="cpu", dtype="fp32",
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def test_a_row_is_in_one_part_whatever_comes_with_it() -> None:
    train, watched, judged = parts(LETTER, 0.15)
    keys = [row.key for part in (train, watched, judged) for row in part]
    assert sorted(keys) == sorted(row.key for row in LETTER.examples)
    alone = parts(Arrival("letters", tuple(reversed(LETTER.examples))), 0.15)
    assert {row.key for row in alone[2]} == {row.key for row in judged}


def test_rows_named_for_validation_are_watched_and_never_trained() -> None:
    train, watched, judged = parts(Arrival("letters", LETTER.examples, DIGIT.examples), 0.15)
    assert watched == list(DIGIT.examples)
    assert len(train) + len(judged) == len(LETTER.examples)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(DataError, match=rf"letters: of 20 rows .* {FEWEST} are needed"):
        parts(Arrival("letters", LETTER.examples[:20]), 0.15)


def test_the_fingerprint_knows_rows_and_what_is_told() -> None:
    found = {
        fingerprint([LETTER], ["a"]),
        fingerprint([LETTER], ["b"]),
        fingerprint([DIGIT], ["a"]),
        fingerprint([Arrival("letters", LETTER.examples, DIGIT.examples)], ["a"]),
    }
    assert len(found) == 4


def test_a_search_tries_keeps_and_judges(base: Path, tmp_path: Path) -> None:
    told: list[Trial] = []
    found = tune(ask(base), tmp_path, minutes=10, trials=3, tell=told.append)
    assert len(found.trials) == len(told) == 3
    assert found.first.values == {"consolidation.learning_rate": 2e-2, "expert.rank": 8}
    assert found.first.skills.keys() == {"letters", "digits"}
    again = tune(ask(base), tmp_path, minutes=10, trials=3)
    assert again == found


def test_a_search_for_the_rank_alone_gives_a_curve(base: Path, tmp_path: Path) -> None:
    found = tune(ask(base, keys=("expert.rank",)), tmp_path, minutes=10)
    assert found.ranks is not None
    assert [one.rank for one in found.ranks.points] == [2, 4, 8, 16, 32]
    assert found.ranks.points[4].parameters == 16 * found.ranks.points[0].parameters
    assert found.ranks.suggested <= found.ranks.best


def test_the_same_values_come_to_the_same_loss(base: Path, tmp_path: Path) -> None:
    # The one ground that all trials share keeps nothing of an earlier one.
    once = tune(ask(base), tmp_path / "a", minutes=0)
    third = tune(ask(base), tmp_path / "b", minutes=10, trials=3).trials[0]
    assert once.first.skills["digits"].loss == third.skills["digits"].loss
    assert once.against is None


def test_wrong_keys_and_formats_are_told_before_anything_is_loaded(tmp_path: Path) -> None:
    nowhere = tmp_path / "no such base"
    with pytest.raises(ConfigError, match="nothing is searched"):
        tune(ask(nowhere, keys=("rank",)), tmp_path, minutes=1)
    with pytest.raises(ConfigError, match="prompt format"):
        tune(ask(nowhere, format="poem"), tmp_path, minutes=1)


def trial(number: int, loss: float, judged: float, **values: float) -> Trial:
    rows = tuple(judged * (1 + 0.01 * index) for index in range(20))
    trained = Trained(loss, rows, (1,) * 20, (True,) * 20, 1, 1.0, 1)
    return Trial(number, values, {"a": trained}, loss, True)


START = LearnSettings()


def test_the_choice_is_judged_by_rows_it_never_saw() -> None:
    first = trial(0, 1.0, 1.0)
    lucky = trial(1, 0.8, 1.1, **{"consolidation.epochs": 6.0})
    good = trial(2, 0.9, 0.7, **{"consolidation.epochs": 4.0})
    fooled = outcome([first, lucky], START)
    assert fooled.best is lucky
    assert not fooled.better
    assert "may be chance" in fooled.message
    assert fooled.settings == {}, "one stays where one was"
    found = outcome([first, good], START)
    assert found.better
    assert found.against is not None
    assert found.against.value == pytest.approx(0.7)
    assert outcome([first, trial(1, 1.2, 0.5)], START).against is None


def test_what_is_written_is_what_learn_takes() -> None:
    best = trial(1, 0.8, 0.7, **{"consolidation.epochs": 4.0, "expert.rank": 16, "seeding": False})
    found = outcome([trial(0, 1.0, 1.0), best], START)
    written = yaml.safe_load(document(found))
    by_file = parse(LearnSettings, written["learn"], "file")
    by_words = parse(LearnSettings, override({}, words(found.settings)), "--set")
    assert by_file == by_words
    assert by_file.seeding is None
    assert (by_file.expert.rank, by_file.expert.alpha) == (16, 32.0)
    assert by_file.consolidation.epochs == 4.0


def test_paths_and_dotted_names_are_written_so_that_they_are_read_again(tmp_path: Path) -> None:
    sets = {"my.set": tmp_path / "v.jsonl"}
    start = LearnSettings(evaluation=sets, expert=ExpertSettings(targets=("q_proj", "v_proj")))
    found = outcome([trial(0, 1.0, 1.0)], start)
    written = yaml.safe_load(document(found))
    by_file = parse(LearnSettings, written["learn"], "file")
    assert by_file == parse(LearnSettings, override({}, words(found.settings)), "--set") == start
