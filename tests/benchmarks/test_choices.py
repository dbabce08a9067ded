"""Choices about routing and novelty are what their names say, on made-up features."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import choice_features
import choices_table
import novelty_choices
import novelty_variants
import numpy as np
import pytest
import router_choices
import router_fitting
import router_variants
import torch
import workload
from choice_features import KINDS, POSITIONS, Stored
from harness import Options
from novelty_variants import Arrival, Seen
from router_variants import Fit, Variant
from torch import Tensor

from dylora_moe.evaluation.continual.data import SkillRows
from dylora_moe.records import Interval, pair

SKILLS = ("snips", "clinc150", "scan")
D_MODEL, ROWS, TESTED, SEEDS = 6, 24, 20, 2


def around(place: int, count: int, seed: int) -> dict[str, Tensor]:
    """Rows around a point, in every kind."""
    centre = torch.randn(4 * D_MODEL, generator=torch.Generator().manual_seed(place))
    noise = torch.Generator().manual_seed(1000 * place + seed)
    return {kind: 2 * centre + torch.randn(count, 4 * D_MODEL, generator=noise) for kind in KINDS}


@pytest.fixture(scope="module")
def stored() -> Stored:
    tests = {name: around(i, TESTED, 1) for i, name in enumerate((*SKILLS, "gsm8k"))}
    return Stored(
        train={name: around(i, ROWS * SEEDS, 0) for i, name in enumerate(SKILLS)},
        test=tests,
        own=around(9, 40, 0),
        prefixes={
            name: {n: torch.full_like(one["mean"], torch.nan) for n in POSITIONS}
            for name, one in tests.items()
        },
        d_model=D_MODEL,
    )


@pytest.fixture(scope="module")
def found(stored: Stored) -> dict[str, object]:
    quick = [
        replace(one, fit=replace(one.fit, steps=min(2, one.fit.steps)))
        for one in router_variants.VARIANTS
    ]
    return router_choices.measure(stored, quick, SEEDS, ROWS)


# -- features --------------------------------------------------------------------------------------


def test_features_are_those_that_the_product_takes_and_every_prefix_ends_in_the_whole(
    tmp_path: Path,
) -> None:
    base = workload.load(Options(toy=True, device="cpu", dtype="fp32"))
    rows = tuple(pair(f"Say {n}" + " and again" * n, str(n)) for n in range(3))
    skill = SkillRows("counting", rows, rows)
    taken = choice_features.take(base, [skill], [], 4)
    choice_features.keep(tmp_path / "kept.pt", taken)
    kept = choice_features.kept(tmp_path / "kept.pt")
    assert kept is not None
    assert choice_features.kept(tmp_path / "none.pt") is None
    pooled, width = kept.test["counting"], base.anatomy.d_features
    assert {kind: rows.shape for kind, rows in pooled.items()} == dict.fromkeys(KINDS, (3, width))
    assert torch.equal(kept.train["counting"]["mean"], pooled["mean"])
    assert (pooled["max"] >= pooled["mean"]).all()
    first = kept.prefixes["counting"]
    assert first[POSITIONS[0]].isfinite().all()
    lengths = [sum(bool(first[n][row].isfinite().all()) for n in POSITIONS) for row in range(3)]
    assert lengths == sorted(lengths), "the longer prompt has more prefixes"


def test_a_row_s_tokens_in_every_kind() -> None:
    states = torch.tensor([[1.0, 3.0, 0.0, 2.0], [3.0, 1.0, 4.0, 2.0]])
    found = choice_features.pool(states, 2)
    assert found["mean"].tolist() == [2, 2, 2, 2]
    assert found["last"].tolist() == [3, 1, 4, 2]
    assert found["max"].tolist() == [3, 3, 4, 2]
    assert found["std"].tolist() == [1, 1, 2, 0]
    assert found["normed"] == pytest.approx([0, 0, 0, 0], abs=1e-4)


# -- routing ---------------------------------------------------------------------------------------


def test_every_choice_is_judged_and_the_default_beside_each(found: dict[str, object]) -> None:
    assert list(found) == [one.name for one in router_variants.VARIANTS]
    rows = choices_table.router_rows(found)  # type: ignore[arg-type]
    assert len(rows) == len(found) - 1
    assert all(row.low <= row.value <= row.high for row in rows)  # type: ignore[operator]
    shown = choices_table.router_table(found)  # type: ignore[arg-type]
    assert shown.count("| as it is |") == shown.count("### Choices: ")
    json.dumps(found)


def test_a_choice_that_changes_nothing_is_even_with_the_default(found: dict[str, object]) -> None:
    # Prompts that are too short for a prefix are read to their end.
    for name in ("after 8 tokens", "as it is"):
        one = found[name]
        assert isinstance(one, dict)
        assert one.get("over", {"hit": [0.0, 0.0, 0.0]})["hit"] == [0.0, 0.0, 0.0]
    # The closed form standardises by itself.
    one = found["standardised"]
    assert isinstance(one, dict)
    assert one["over"]["cross_entropy"][0] == pytest.approx(0, abs=1e-2)


def test_choices_reach_the_router(stored: Stored) -> None:
    usual = router_fitting.fitted(stored, Fit(), slice(0, ROWS), 0)

    def experts(**more: object) -> float:
        # Warm, or the second-best expert would have a weight that float32 does not know.
        variant = replace(Variant("x", "y", temperature=1e3), **more)  # type: ignore[arg-type]
        return router_choices.of_rows(router_fitting.seen(stored, usual, variant, 0))[
            "experts"
        ].mean()

    assert experts(rule={"top_k": 1}) == 1
    # A row that is sure of one expert, or of none, has no second one.
    assert 1.9 < experts(rule={"top_k": 2}) <= 2, "unsure"
    assert experts(rule={"unsure_above": 0.9}) == 1
    assert experts(rule={"progress": 0.0}) == 2
    assert experts(young="all", rule={"dense_above": 0.0}) == 3
    cold = router_fitting.seen(stored, usual, Variant("x", "y", temperature=0.1), 0)
    warm = router_fitting.seen(stored, usual, Variant("x", "y", temperature=1e3), 0)
    assert cold.probabilities.amax(1).mean() > warm.probabilities.amax(1).mean()
    few = router_fitting.fitted(stored, Fit(blocks=(3,), kinds=("mean", "std")), slice(ROWS), 0)
    assert few.router.d_features == 2 * D_MODEL
    kept = router_fitting.fitted(stored, Fit(steps=3, forced=True), slice(ROWS), 0)
    assert kept.kept == 3
    assert not kept.router.correction.is_zero
    assert kept.multiply_adds == 2 * usual.multiply_adds
    unit = router_fitting.fitted(stored, Fit(scale="unit"), slice(ROWS), 0)
    assert unit.view(stored.own).square().sum(1) == pytest.approx(4.0)


def test_an_expert_takes_no_more_of_a_batch_than_its_capacity() -> None:
    right = torch.arange(64) % 2
    weights = torch.nn.functional.one_hot(right, 2).float()
    rule = {"top_k": 1}
    assert torch.equal(router_fitting.limited(weights, right, 2.0, rule, False, 0), weights)
    alike = router_fitting.limited(weights, right, 1.0, rule, True, 0)
    assert int((alike.sum(1) == 0).sum()) == 32, "half of a batch of one skill finds no room"
    both = torch.full((64, 2), 0.5)
    left = router_fitting.limited(both, right, 1.0, {"top_k": 1}, False, 0)
    assert set(left.sum(1).tolist()) == {0.0, 1.0}


def test_a_difference_is_of_the_same_rows_and_seeds() -> None:
    right = np.repeat([0, 1], 50)
    keys = ("hit", "cross_entropy", "weight", "weight_entropy")
    values = np.random.default_rng(0).random((3, 100))
    usual = [dict.fromkeys(keys, one) for one in values]
    more = [dict.fromkeys(keys, one + 0.25) for one in values]
    found = router_choices.differences(more, usual, right)
    assert found["hit"] == pytest.approx([0.25, found["hit"][1], found["hit"][2]])
    noisy = [dict.fromkeys(keys, one) for one in values[::-1]]
    value, low, high = router_choices.differences(noisy, usual, right)["hit"]
    assert low < value < high


def test_few_seeds_that_differ_are_not_taken_for_more_than_they_are() -> None:
    right = np.repeat([0, 1], 50)
    keys = ("hit", "cross_entropy", "weight", "weight_entropy")
    usual = [dict.fromkeys(keys, np.zeros(100))] * 4
    apart = [dict.fromkeys(keys, np.full(100, seed / 3)) for seed in range(4)]
    # One fewer than there are is drawn: of four the interval would end at 1/6.
    found = router_choices.differences(apart, usual, right)["hit"]
    assert found == pytest.approx([1 / 2, 1 / 9, 8 / 9])


def test_features_of_other_rows_are_refused(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*choice_features.SKILLS, *choice_features.FOREIGN):
        folder = tmp_path / "skills" / name
        folder.mkdir(parents=True)
        for part, first in (("train", 0), ("test", 100)):
            lines = [
                json.dumps({"prompt": f"{name} {n}", "completion": str(n)})
                for n in range(first, first + 40)
            ]
            (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    kept = tmp_path / "kept.pt"

    def asked(**options: int) -> Stored:
        words = ["--data", str(tmp_path / "skills"), "--features", str(kept)]
        values = {"rows": 5, "seeds": 2, "test": 6} | options
        words += [word for key, value in values.items() for word in (f"--{key}", str(value))]
        return router_choices.features(router_choices.parser_of("x").parse_args(words))

    def take(base: object, learned: object, foreign: object, own: int) -> Stored:
        return replace(stored, keys=choice_features.keys_of(learned, foreign))  # type: ignore[arg-type]

    monkeypatch.setattr(router_choices, "take", take)
    monkeypatch.setattr(router_choices, "load_base", lambda _: None)
    asked()
    monkeypatch.setattr(router_choices, "take", None)
    assert asked().d_model == stored.d_model
    assert asked(rows=10, seeds=1).d_model == stored.d_model, "the same rows, cut otherwise"
    for options in ({"rows": 6}, {"seeds": 3}, {"test": 7}):
        with pytest.raises(SystemExit, match=r"has features of .* and not of the"):
            asked(**options)
    choice_features.keep(kept, stored)
    with pytest.raises(SystemExit, match="features of 0 rows"):
        asked()


def test_gradients_of_other_rows_are_refused(tmp_path: Path) -> None:
    count = 2 * novelty_variants.VISIT
    skills = [
        SkillRows(name, tuple(pair(f"{name} {n}", str(n)) for n in range(count)), ())
        for name in ("a", "b")
    ]
    torch.save({"other": torch.zeros(1)}, tmp_path / "gradients.pt")
    with pytest.raises(SystemExit, match="has gradients of 1 rows"):
        novelty_choices.taken(tmp_path / "gradients.pt", skills)


def test_arrivals_of_one_skill_are_no_further_skills() -> None:
    def judged(wrong: tuple[bool, ...], times: int) -> list[novelty_variants.Judged]:
        return [
            novelty_variants.Judged(
                (0, "hard", n), f"skill {n // times}", False, one, 0.0, 0.0, False
            )
            for n, one in enumerate(one for one in wrong for _ in range(times))
        ]

    wrong, none = (True, False, False, True), (False,) * 4
    once = novelty_choices.apart(judged(wrong, 1), judged(none, 1))
    often = novelty_choices.apart(judged(wrong, 8), judged(none, 8))
    assert often == once
    assert once.low < once.value == 0.5 < once.high


# -- novelty ---------------------------------------------------------------------------------------


def seen(*apart: tuple[float, float, float]) -> list[Seen]:
    return [Seen(None, 0, 0.0), *(Seen(Interval(*one), 1, 0.0) for one in apart)]


def arrivals(*new: bool) -> list[Arrival]:
    return [Arrival("a", torch.zeros(1, 1), n, False, one) for n, one in enumerate((True, *new))]


def test_an_interval_may_be_unsure_and_an_estimate_never_is() -> None:
    variant = novelty_variants.VARIANTS[0]
    sure, unsure = (0.95, 0.9, 1.0), (0.85, 0.7, 0.9)
    here = arrivals(True, False)
    by_interval = novelty_variants.judged(variant, here, seen(sure, unsure), "hard", 0)
    assert [one.said for one in by_interval] == [True, None]
    assert [one.wrong for one in by_interval] == [0, 0]
    estimate = replace(variant, by="estimate")
    assert [
        o.wrong for o in novelty_variants.judged(estimate, here, seen(sure, unsure), "x", 0)
    ] == [
        0,
        1,
    ]


def test_the_average_and_the_rising_threshold() -> None:
    variant = replace(novelty_variants.VARIANTS[0], by="estimate", share=0.5)
    here, what = arrivals(True, True), seen((1.0, 1.0, 1.0), (0.7, 0.7, 0.7))
    smooth = novelty_variants.judged(variant, here, what, "hard", 0)
    assert [one.value for one in smooth] == pytest.approx([1.0, 0.85])
    # A new skill has come in between: what was before says nothing of now.
    what[2] = replace(what[2], skills=2)
    assert novelty_variants.judged(variant, here, what, "hard", 0)[1].value == 0.7
    rising = replace(variant, share=0.0, delta=1.0)
    assert [o.said for o in novelty_variants.judged(rising, here, what, "hard", 0)] == [False] * 2


def test_every_test_measures_streams_and_the_truth_grows_the_library() -> None:
    names = ("a", "b")
    rows = {
        name: tuple(pair(f"{name} {n}", str(n)) for n in range(2 * novelty_variants.VISIT))
        for name in names
    }
    skills = [SkillRows(name, rows[name], ()) for name in names]
    features = {name: around(i, len(rows[name]), 0)["mean"] for i, name in enumerate(names)}
    keys = {row.key: features[n][i] for n in names for i, row in enumerate(rows[n])}
    said = novelty_choices.verdicts(
        skills, features, around(9, 40, 0)["mean"], novelty_variants.VARIANTS, 1, keys
    )
    table = novelty_choices.compared(said, novelty_variants.VARIANTS)
    assert list(table) == [one.name for one in novelty_variants.VARIANTS]
    usual = table[novelty_variants.VARIANTS[0].name]
    # Of two skills the second is new once in each stream, and nothing is new to an empty library.
    assert (usual["new"], usual["missed"], usual["again"]) == (2, 0, 0)
    assert usual["auroc"] == 1
    assert len(choices_table.novelty_rows(table)) == len(table) - 1
    shown = choices_table.novelty_table(table)
    assert shown.count("classifier, AUC 0.80, interval") == shown.count("### Choices: ")
    json.dumps(table)
