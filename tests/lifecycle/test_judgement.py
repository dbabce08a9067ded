"""The second axis: how an expert does on new rows against the base and against its own data."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dylora_moe.build.pool import Pool
from dylora_moe.foundation.trunk_cache import TrunkCache
from dylora_moe.lifecycle import judgement
from dylora_moe.lifecycle.change import load_card
from dylora_moe.lifecycle.fit import WORST_APART, WORST_HOME, Home, does_badly_by_t, relative_loss
from dylora_moe.lifecycle.judgement import Judgement, judge
from dylora_moe.lifecycle.observation import observe
from dylora_moe.records import Arrival, Example, Interval
from dylora_moe.skills.classifier import ClassifierTwoSample
from dylora_moe.skills.novelty import Limits
from dylora_moe.training.measure import RowLosses, answer_losses
from dylora_moe.training.rows import Rows
from tests.pools import LETTERS, SIGNS, rows


def losses(mean: float, spread: float = 0.0, n: int = 40) -> RowLosses:
    tokens = torch.full((n,), 4)
    noise = spread * torch.linspace(-1, 1, n)
    return RowLosses((mean + noise) * tokens, tokens)


def test_as_good_as_at_home_is_nought_and_no_better_than_the_base_is_one() -> None:
    base = losses(3.0)
    assert relative_loss(losses(1.0), base, Home(1.0)).value == pytest.approx(0.0, abs=1e-6)
    assert relative_loss(losses(3.0), base, Home(1.0)).value == pytest.approx(1.0)
    assert relative_loss(losses(2.0), base, Home(1.0)).value == pytest.approx(0.5)


def test_the_interval_holds_the_estimate_and_widens_with_the_rows_spread() -> None:
    base = losses(3.0)
    narrow, wide = (relative_loss(losses(2.0, s), base, Home(1.0)) for s in (0.1, 0.8))
    for found in (narrow, wide):
        assert found.low < found.value < found.high
    assert wide.high - wide.low > 4 * (narrow.high - narrow.low)


def test_an_expert_that_never_was_validated_is_measured_from_nought() -> None:
    assert relative_loss(losses(1.5), losses(3.0), Home(math.nan)).value == pytest.approx(0.5)


def test_a_base_no_worse_than_the_expert_at_home_makes_no_division_by_nought() -> None:
    found = relative_loss(losses(1.1), losses(1.0), Home(1.0))
    assert found.value == pytest.approx(2.0, abs=0.01)
    assert math.isfinite(found.high)


def test_an_expert_of_a_hard_skill_does_not_do_well_on_easy_rows_that_the_base_does_better() -> (
    None
):
    easy = losses(1.13, 0.2)
    assert relative_loss(losses(1.19, 0.2), easy, Home(2.39)).low > 1
    assert relative_loss(losses(1.13, 0.2), easy, Home(2.39)).value == pytest.approx(1.0, abs=1e-3)
    assert relative_loss(losses(0.5, 0.2), easy, Home(2.39)).high < 0


def test_at_home_is_measured_by_the_share_of_the_base_s_loss_where_that_is_known() -> None:
    # An expert that loses 2.3 where the base loses 3.4, on rows on which the base loses 1.18.
    hard, easy = Home(2.3, 3.4), losses(1.18, 0.05)
    assert relative_loss(losses(1.055, 0.05), easy, hard).low > 0.5
    assert relative_loss(losses(1.18 * 2.3 / 3.4), losses(1.18), hard).value == pytest.approx(
        0, abs=1e-6
    )
    assert does_badly_by_t(losses(1.15, 0.01, n=8), losses(1.18, 0.01, n=8), hard, 0.5)
    assert not does_badly_by_t(losses(0.8, 0.05, n=8), losses(1.18, 0.05, n=8), hard, 0.5)
    # Where both are alike it is the loss at home itself.
    for known in (Home(1.0, 3.0), Home(1.0)):
        assert relative_loss(losses(2.0), losses(3.0), known).value == pytest.approx(0.5)


def test_an_expert_that_hardly_gains_at_home_has_to_gain_a_tenth_elsewhere() -> None:
    for useless in (Home(2.9, 3.0), Home(3.5, 3.0)):
        assert relative_loss(losses(1.0), losses(1.0), useless).value == pytest.approx(1.0)
        assert relative_loss(losses(0.9), losses(1.0), useless).value == pytest.approx(
            0.0, abs=1e-6
        )


def test_rows_that_are_told_apart_are_covered_by_what_takes_most_of_the_loss_away() -> None:
    poor, found = losses(4.7), losses(6.8)
    assert relative_loss(poor, found, Home(2.5, 3.4)).value < 0
    assert relative_loss(poor, found, Home(2.5, 3.4, WORST_APART)).value > 0.5
    for home in (Home(0.2, 3.0), Home(0.2, 3.0, WORST_APART)):
        assert relative_loss(losses(0.2), losses(3.0), home).value == pytest.approx(0, abs=1e-6)


def test_a_verdict_takes_home_from_the_expert_s_training_and_its_bound_from_the_first_axis(
    taught: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Home] = []
    own = judgement.relative_loss

    def noted(expert: RowLosses, base: RowLosses, home: Home, **level: float) -> Interval:
        seen.append(home)
        return own(expert, base, home, **level)

    monkeypatch.setattr(judgement, "relative_loss", noted)
    looked_at(taught, "signs", rows(SIGNS, 64, 5), monkeypatch, both=False)
    assert seen
    assert {home.worst for home in seen} == {WORST_APART}
    known = {version.history["base_loss"] for version in taught.live.revision.experts}
    assert {home.base for home in seen} <= known
    seen.clear()
    looked_at(taught, "letters", rows(LETTERS, 64, 77), monkeypatch, both=False)
    assert {home.worst for home in seen} == {WORST_HOME}


def looked_at(
    pool: Pool,
    name: str,
    examples: tuple[Example, ...],
    monkeypatch: pytest.MonkeyPatch,
    both: bool,
) -> tuple[Judgement, list[tuple[str, int]]]:
    """The judgement, and the rows that each expert was scored on."""
    passes: list[tuple[str, int]] = []

    def noted(*args: Any, **options: Any) -> RowLosses:
        found = answer_losses(*args, **options)
        passes.append((options["expert"], len(found.total)))
        return found

    monkeypatch.setattr(judgement, "answer_losses", noted)
    observation = observe(pool.live, Arrival(name, examples), fraction=0.15)
    card = load_card(pool.live, pool._storage.artifacts)
    # These answers are of four tokens.
    detector = ClassifierTwoSample(limits=Limits(tokens=32))
    found = judge(pool.live, card, observation, detector, both=both)
    return found, passes


def test_what_is_new_at_a_glance_costs_no_whole_pass(
    taught: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    signs = rows(SIGNS, 64, 5)
    glance, passes = looked_at(taught, "signs", signs, monkeypatch, both=False)
    look, all_passes = looked_at(taught, "signs", signs, monkeypatch, both=True)
    assert glance.verdict.name == look.verdict.name == "novel"
    assert [count for _, count in passes] == [16, 16, 8]
    assert len({expert for expert, _ in passes}) == 3
    assert len(all_passes) == 3, "who is looked at on all rows is so in one pass"
    assert all(count > 48 for _, count in all_passes)
    assert len(glance.losses) == 1
    assert len(look.losses) == 2
    first = next(iter(glance.losses))
    assert look.losses[first] == pytest.approx(glance.losses[first], rel=0.3)


def test_few_answer_tokens_are_no_glance(taught: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    signs = rows(SIGNS, 64, 5)
    observation = observe(taught.live, Arrival("signs", signs), fraction=0.15)
    count = len(observation.train)
    tokens = sum(observation.train.targets[row] for row in judgement._spread(count))
    for limit, looked in ((tokens // 2, 16), (2 * tokens, count)):
        detector = ClassifierTwoSample(limits=Limits(tokens=limit))
        card = load_card(taught.live, taught._storage.artifacts)
        assert judge(taught.live, card, observation, detector).rows == looked


def test_a_second_expert_is_not_asked_where_it_cannot_change_the_verdict(
    taught: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = rows(LETTERS, 64, 13)
    found, passes = looked_at(taught, "more", known, monkeypatch, both=False)
    assert found.verdict.name == "known"
    assert len({expert for expert, _ in passes}) == 2
    assert len(passes) == 2, "only what may be new is looked at on a few rows first"
    assert all(count > 48 for _, count in passes)
    few, passes = looked_at(taught, "few", rows(SIGNS, 8, 6), monkeypatch, both=False)
    assert few.verdict.name == "unsure"
    assert len({expert for expert, _ in passes}) == 2


def test_few_rows_are_judged_by_the_nearest_skill_s_own_expert(
    taught: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels: list[float] = []

    def badly(*args: Any) -> tuple[str, Interval]:
        levels.append(args[-1])
        return args[2][0], Interval(1.0, 1.0, 1.0)

    # The nearest skill's expert seems to do badly; any other would only hide that.
    monkeypatch.setattr(judgement, "_best_fit", badly)
    few, passes = looked_at(taught, "few", rows(LETTERS, 20, 13), monkeypatch, both=False)
    assert few.verdict.name == "unsure"
    assert len({expert for expert, _ in passes}) == 2
    assert set(levels) == {0.99}
    _, passes = looked_at(taught, "more", rows(LETTERS, 64, 13), monkeypatch, both=False)
    assert len({expert for expert, _ in passes}) == 3


def test_a_fit_in_doubt_at_a_glance_is_settled_by_the_whole_sample(
    taught: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubt = Interval(0.6, 0.4, 0.8)
    own = judgement.relative_loss

    def relative(expert: RowLosses, base: RowLosses, home: Home, **level: float) -> Interval:
        return doubt if len(expert.total) == 16 else own(expert, base, home, **level)

    monkeypatch.setattr(judgement, "relative_loss", relative)
    monkeypatch.setattr(judgement, "does_badly_by_t", lambda *of: False)
    found, passes = looked_at(taught, "signs", rows(SIGNS, 64, 5), monkeypatch, both=False)
    assert found.verdict.name == "novel"
    assert found.verdict.fit != doubt
    assert len({expert for expert, _ in passes}) == 3
    assert sum(count for _, count in passes) > 3 * 48


def test_where_half_a_glance_is_in_doubt_the_second_expert_gets_the_other_half(
    taught: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    signs = rows(SIGNS, 64, 5)
    sure, _ = looked_at(taught, "signs", signs, monkeypatch, both=False)
    monkeypatch.setattr(judgement, "does_badly_by_t", lambda *of: False)
    found, passes = looked_at(taught, "signs", signs, monkeypatch, both=False)
    assert [count for _, count in passes] == [16, 16, 8, 8]
    assert found.verdict == sure.verdict


@pytest.mark.parametrize("held", [False, True])
def test_at_the_limit_half_a_glance_hardly_ever_says_that_an_expert_does_badly(held: bool) -> None:
    """A bootstrap of so few rows says so three times as often as its level lets it."""
    generator = torch.Generator().manual_seed(0)
    tokens, said, drawn = torch.full((8,), 10), 0, 0
    own = 2.85 if held else 1.0
    for _ in range(2000):
        base = RowLosses(tokens * (3 + 0.5 * torch.randn(8, generator=generator)), tokens)
        # The span is held at a tenth of the base's loss where the base is hardly worse than home.
        level = own + 0.5 * max(3 - own, 0.3)
        expert = RowLosses(tokens * (level + 0.5 * torch.randn(8, generator=generator)), tokens)
        said += does_badly_by_t(expert, base, Home(own), 0.5)
        drawn += relative_loss(expert, base, Home(own), level=0.99).low > 0.5
    assert said / 2000 < 0.01
    assert drawn > 2 * said


def test_an_expert_that_does_badly_in_every_row_does_so_at_half_a_glance() -> None:
    base, home = losses(3.0, n=8), Home(1.0)
    assert does_badly_by_t(losses(2.6, 0.3, n=8), base, home, 0.5)
    assert not does_badly_by_t(losses(2.6, 3.0, n=8), base, home, 0.5), "some rows it does well"
    assert not does_badly_by_t(losses(1.4, 0.3, n=8), base, home, 0.5)
    # Never validated: from nought.
    assert does_badly_by_t(losses(1.9, n=8), base, Home(math.nan), 0.5)


@pytest.mark.parametrize("count", [8, 17, 64])
def test_half_a_glance_is_every_second_row_of_it_whichever_came_first(
    taught: Pool, count: int
) -> None:
    observation = observe(taught.live, Arrival("signs", rows(SIGNS, 76, 5)), fraction=0.15)
    chosen = Rows(
        observation.train.encoded[:count],
        TrunkCache(taught.live.base, observation.train.encoded[:count]),
    )
    expert = next(iter(taught.live.skills.values())).expert_id
    one, other = (judgement._Sample(taught.live.model, chosen) for _ in range(2))
    half, glance = one.half(expert), one.glance(expert)
    torch.testing.assert_close(other.glance(expert).total, glance.total, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(other.half(expert).total, half.total, atol=1e-4, rtol=1e-4)
    assert torch.equal(half.tokens, glance.tokens[::2])
    torch.testing.assert_close(one.whole(expert).total, other.whole(expert).total)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 31, 40, 63, 64])
def test_a_glance_falls_evenly_over_the_sample(count: int) -> None:
    rows = judgement._spread(count)
    assert len(rows) == min(count, 16)
    assert rows[0] == 0
    gaps = [b - a for a, b in zip(rows, [*rows[1:], count], strict=True)]
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 1


def test_after_a_glance_the_losses_are_in_the_order_of_the_rows(taught: Pool) -> None:
    observation = observe(taught.live, Arrival("signs", rows(SIGNS, 64, 5)), fraction=0.15)
    expert = next(iter(taught.live.skills.values())).expert_id
    whole = answer_losses(taught.live.model, observation.train, expert=expert, limit=64)
    found = judgement._Sample(taught.live.model, observation.train).whole(expert)
    torch.testing.assert_close(found.total, whole.total, atol=1e-4, rtol=1e-4)
    assert torch.equal(found.tokens, whole.tokens)


def test_losses_of_a_glance_and_of_the_rest_are_those_of_one_look(
    taught: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    signs = rows(SIGNS, 64, 5)
    observation = observe(taught.live, Arrival("signs", signs), fraction=0.15)
    look, _ = looked_at(taught, "signs", signs, monkeypatch, both=True)
    for expert, loss in look.losses.items():
        whole = answer_losses(taught.live.model, observation.train, expert=expert, limit=64)
        assert loss == pytest.approx(whole.mean, rel=1e-5)
