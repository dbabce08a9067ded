"""The search: it starts from what one has, finds what is better, keeps time, and goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from dylora_moe.errors import LearningInterruptedError, TrainingError
from dylora_moe.tuning.search import Search, Trial
from dylora_moe.tuning.space import Between, OneOf, Space, Value
from dylora_moe.tuning.trials import Trained

SPACE: Space = {"rate": Between(1e-4, 1e-1), "rank": OneOf((4, 8))}
START = {"rate": 1e-3, "rank": 8}
LONG = 1e9


def came(loss: float) -> Trained:
    return Trained(loss, (loss, loss), (3, 5), (True, False), 100, 1.0, 10)


def bowl(name: str, values: Mapping[str, Value], look: Callable[[], None]) -> Trained:
    """Best at 1e-2; the second skill twice as hard."""
    look()
    off = abs(math.log10(float(values["rate"])) + 2)
    return came((1 + off) * (2 if name == "hard" else 1))


def search(folder: Path, seed: int = 0, name: str = "it") -> Search:
    return Search(folder / "trials.db", name, SPACE, START, ["easy", "hard"], seed)


def test_the_first_trial_is_where_one_starts_and_counts_as_one(tmp_path: Path) -> None:
    first = search(tmp_path).run(bowl, seconds=0)
    assert [(one.values, one.ratio, one.whole) for one in first] == [(START, 1.0, True)]
    assert first[0].skills["hard"].loss == 4


def test_where_one_starts_is_known_again_whatever_its_digits(tmp_path: Path) -> None:
    odd = {"rate": 0.0012345, "rank": 8}
    made = Search(tmp_path / "trials.db", "it", SPACE, odd, ["easy"])
    assert [one.values for one in made.run(bowl, seconds=0)] == [odd]
    again = Search(tmp_path / "trials.db", "it", SPACE, odd, ["easy"]).run(bowl, seconds=0)
    assert len(again) == 1


@pytest.mark.parametrize("loss", [0.0, float("nan")])
def test_a_loss_of_nought_or_none_ends_no_search(tmp_path: Path, loss: float) -> None:
    def falls(name: str, values: Mapping[str, Value], look: Callable[[], None]) -> Trained:
        return came(loss if values["rate"] != START["rate"] else 0.0)

    found = search(tmp_path).run(falls, seconds=LONG, trials=3)
    assert [one.whole for one in found] == [True, *[loss == 0.0] * 2]


def test_it_finds_the_better_rate(tmp_path: Path) -> None:
    found = search(tmp_path).run(bowl, seconds=LONG, trials=25)
    best = min((one for one in found if one.whole), key=lambda one: one.ratio)
    assert len(found) == 25
    assert best.ratio < 0.75
    assert 10**-2.5 < float(best.values["rate"]) < 10**-1.5


def test_a_bad_trial_is_cut_short(tmp_path: Path) -> None:
    found = search(tmp_path).run(bowl, seconds=LONG, trials=25)
    cut = [one for one in found if not one.whole]
    assert cut
    assert all(list(one.skills) == ["easy"] for one in cut)
    assert min(one.ratio for one in cut) > min(one.ratio for one in found)


def test_it_goes_on_where_it_ended(tmp_path: Path) -> None:
    ran: list[str] = []

    def counted(name: str, values: Mapping[str, Value], look: Callable[[], None]) -> Trained:
        ran.append(name)
        return bowl(name, values, look)

    before = search(tmp_path).run(counted, seconds=LONG, trials=3)
    ran.clear()
    after = search(tmp_path).run(counted, seconds=LONG, trials=4)
    assert after[:3] == before
    assert ran == ["easy", "hard"]
    # Not the values that were drawn on the first day.
    assert after[3].values not in [one.values for one in before]


def test_of_one_key_with_few_values_each_is_tried_once(tmp_path: Path) -> None:
    ran: list[Value] = []

    def ranked(name: str, values: Mapping[str, Value], look: Callable[[], None]) -> Trained:
        ran.append(values["rank"])
        if values["rank"] == 16:
            raise TrainingError("the loss is not finite")
        return came(1.0 / float(values["rank"]))

    def ranks() -> Search:
        space = {"rank": OneOf((2, 4, 8, 16))}
        return Search(tmp_path / "trials.db", "ranks", space, {"rank": 8}, ["easy"])

    assert len(ranks().run(ranked, seconds=LONG, trials=2)) == 2
    found = ranks().run(ranked, seconds=LONG)
    assert ran == [8, 2, 4, 16]
    assert [one.values["rank"] for one in found if one.whole] == [8, 2, 4]
    assert ranks().run(ranked, seconds=LONG) == found


def test_trials_of_another_name_do_not_count(tmp_path: Path) -> None:
    search(tmp_path).run(bowl, seconds=LONG, trials=3)
    assert len(search(tmp_path, name="other").run(bowl, seconds=0)) == 1


def test_the_time_ends_a_trial_in_its_middle(tmp_path: Path) -> None:
    now = [0.0]

    def slow(name: str, values: Mapping[str, Value], look: Callable[[], None]) -> Trained:
        for _ in range(10):
            now[0] += 1
            look()
        return bowl(name, values, look)

    # The first trial takes 20 seconds, the second is cut off in its first skill.
    found = search(tmp_path).run(slow, seconds=25, clock=lambda: now[0])
    assert len(found) == 1
    assert now[0] == 25


def test_a_training_that_diverges_is_the_worst_trial(tmp_path: Path) -> None:
    def diverges(name: str, values: Mapping[str, Value], look: Callable[[], None]) -> Trained:
        if values["rate"] != START["rate"]:
            raise TrainingError("the loss is not finite")
        return bowl(name, values, look)

    told: list[Trial] = []
    found = search(tmp_path).run(diverges, seconds=LONG, trials=3, tell=told.append)
    assert [one.whole for one in found] == [True, False, False]
    assert told == found
    assert found[1].note == "the loss is not finite"


def test_what_one_starts_from_must_train(tmp_path: Path) -> None:
    def never(name: str, values: Mapping[str, Value], look: Callable[[], None]) -> Trained:
        raise TrainingError("the loss is not finite")

    with pytest.raises(TrainingError):
        search(tmp_path).run(never, seconds=LONG)


def test_interrupted_the_trials_before_are_kept(tmp_path: Path) -> None:
    calls = [0]

    def until(name: str, values: Mapping[str, Value], look: Callable[[], None]) -> Trained:
        calls[0] += 1
        if calls[0] > 5:
            raise KeyboardInterrupt
        return bowl(name, values, look)

    with pytest.raises(LearningInterruptedError, match="the same command goes on"):
        search(tmp_path).run(until, seconds=LONG)
    assert len(search(tmp_path).trials()) == 2
