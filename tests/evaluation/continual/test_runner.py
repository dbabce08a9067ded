"""Every job runs once, whatever ends the process, and again only if something that decides it
changed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dylora_moe.config import ExpertSettings, LearnSettings, NoveltySettings
from dylora_moe.errors import ConfigError, DataError
from dylora_moe.evaluation.continual import runner
from dylora_moe.evaluation.continual.arms import ARMS
from dylora_moe.evaluation.continual.arms.arm import Arm, ArmKind, Setting
from dylora_moe.evaluation.continual.arms.ours import Ours
from dylora_moe.evaluation.continual.plan import Job, Plan, jobs, read_material, skill_names
from dylora_moe.evaluation.continual.presets import ARM_NAMES, PRESETS, Preset, chosen
from dylora_moe.evaluation.continual.results import ArmResult, RowResult, Stage
from dylora_moe.evaluation.continual.runner import run
from dylora_moe.evaluation.continual.streams import STREAMS
from tests.evaluation.continual.made_up import write_skill
from tests.models import tiny_tokenizer


@dataclass
class Noted:
    """An arm that answers nothing and keeps what it was given."""

    name: str
    score: float = 1.0
    streams: frozenset[str] = frozenset(STREAMS)
    kind: ArmKind = "trained"
    title: str = ""
    given: list[Setting] = field(default_factory=list)
    breaks: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)

    def run(self, setting: Setting) -> ArmResult:
        self.given.append(setting)
        if self.breaks:
            raise KeyboardInterrupt
        rows = tuple(
            RowResult(skill, row.key, self.score, 0, 0, 1.0, 1) for skill, row in setting.test_rows
        )
        kind = setting.stream.kind
        return ArmResult(self.name, kind, setting.seed, (Stage(1, "", rows),), 7, 0.1, 0, 0,
                         details=self.details)  # fmt: skip


SMALL = Preset(
    "small", ("hats", "moods", "sums"), rows=8, batch=4, test_rows=3,
    arms={"hard": ("ours", "base", "multi-task"), "blurred": ("ours",)},
)  # fmt: skip


def learning(**changes: Any) -> LearnSettings:
    """Settings by which so few rows become a skill."""
    return LearnSettings(novelty=NoveltySettings(min_cluster=2), **changes)


@pytest.fixture(autouse=True)
def base(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """No model is needed where no arm has one."""
    found = SimpleNamespace(
        fingerprint="f" * 8,
        dtype="fp32",
        device=SimpleNamespace(type="cpu"),
        tokenizer=tiny_tokenizer(),
        context_length=256,
    )
    monkeypatch.setattr(runner, "load_base", lambda *_, **__: found)
    return found


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    for name in SMALL.skills:
        write_skill(tmp_path / "skills" / name)
    return Plan(SMALL, tmp_path / "skills", tmp_path / "out", learning(), "tiny")


def arms(**changes: Any) -> dict[str, Noted]:
    kinds: dict[str, ArmKind] = {"ours": "pool", "base": "untrained", "multi-task": "trained"}
    return {name: Noted(name, kind=kind, **changes) for name, kind in kinds.items()}


def ran(given: Mapping[str, Noted]) -> list[str]:
    return [f"{setting.stream.kind}-{arm.name}" for arm in given.values() for setting in arm.given]


def known(given: Mapping[str, Noted]) -> Mapping[str, Arm]:
    return dict(given)


def test_every_job_has_its_file_and_the_second_run_runs_none(plan: Plan) -> None:
    first, second = arms(), arms()
    found = run(plan, known(first))
    assert ran(first) == ["hard-ours", "blurred-ours", "hard-base", "hard-multi-task"]
    files = {path.name for path in (plan.out / "arms").iterdir()}
    assert files == {f"{job.name}.json" for job in jobs(SMALL)}
    told: list[str] = []
    assert run(plan, known(second), told.append) == found
    assert ran(second) == []
    assert len(told) == 4
    assert all("is there" in line for line in told)


def test_what_was_done_before_an_interruption_is_not_done_again(plan: Plan) -> None:
    first, second = arms(), arms()
    first["base"].breaks = True
    with pytest.raises(KeyboardInterrupt):
        run(plan, known(first))
    assert ran(first) == ["hard-ours", "hard-base"]
    run(plan, known(second))
    assert ran(second) == ["blurred-ours", "hard-base", "hard-multi-task"]
    # What it left in its folder is there to go on from.
    assert second["base"].given[0].folder == first["base"].given[0].folder


def test_a_damaged_result_is_made_again(plan: Plan) -> None:
    run(plan, known(arms()))
    (plan.out / "arms" / "hard-base-s0.json").write_text("{", encoding="utf-8")
    second = arms()
    run(plan, known(second))
    assert ran(second) == ["hard-base"]


@pytest.mark.parametrize(
    "change",
    [
        {"learn": learning(validation_fraction=0.2)},
        {"preset": replace(SMALL, rows=7)},
        {"preset": replace(SMALL, batch=3)},
        {"preset": replace(SMALL, test_rows=2)},
        {"preset": replace(SMALL, every_visit=False)},
        {"preset": replace(SMALL, skills=("moods", "hats", "sums"))},
    ],
    ids=["settings", "rows", "batch", "test rows", "stages", "order"],
)
def test_whatever_decides_a_result_makes_it_anew(plan: Plan, change: dict[str, Any]) -> None:
    first, second = arms(), arms()
    run(plan, known(first))
    run(replace(plan, **change), known(second))
    assert len(ran(second)) == 4
    before, after = (one["base"].given[0].folder for one in (first, second))
    assert before != after


def test_another_base_makes_all_anew(plan: Plan, base: SimpleNamespace) -> None:
    run(plan, known(arms()))
    base.fingerprint = "other"
    second = arms()
    run(plan, known(second))
    assert len(ran(second)) == 4


def test_an_arm_at_equal_tokens_is_told_them_and_is_anew_where_they_changed(plan: Plan) -> None:
    first = arms()
    run(plan, known(first))
    assert first["multi-task"].given[0].ours_tokens == 7
    alone = replace(plan, preset=replace(SMALL, arms={"hard": ("base", "multi-task")}))
    second = arms()
    run(alone, known(second))
    assert ran(second) == ["hard-multi-task"]
    assert second["multi-task"].given[0].ours_tokens is None


def test_an_arm_of_the_pool_s_size_is_told_it_and_is_anew_where_it_changed(plan: Plan) -> None:
    sized = Preset("small", SMALL.skills, 8, 4, 3, {"hard": ("ours", "fixed")})
    of = replace(plan, preset=sized)
    for experts in (2, 2, 5):
        given = {
            "ours": Noted("ours", kind="pool", details={"experts_grown": experts}),
            "fixed": Noted("fixed", kind="sized"),
        }
        (plan.out / "arms" / "hard-ours-s0.json").unlink(missing_ok=True)
        run(of, known(given))
        told = [setting.ours_experts for setting in given["fixed"].given]
        assert told == ([] if ran(given) == ["hard-ours"] else [experts])
    assert told == [5]


def test_an_arm_of_the_pool_s_size_is_refused_where_the_pool_does_not_run_before_it(
    plan: Plan,
) -> None:
    given = {"ours": Noted("ours", kind="pool"), "fixed": Noted("fixed", kind="sized")}
    for arms_ in (("fixed",), ("fixed", "ours")):
        sized = replace(plan, preset=replace(SMALL, arms={"hard": arms_}))
        with pytest.raises(ConfigError, match="fixed has as many experts as ours grew on hard"):
            run(sized, known(given))
    assert ran(given) == []


def test_every_pool_needs_visits_of_a_cluster(plan: Plan) -> None:
    small = replace(plan, learn=LearnSettings(), preset=replace(SMALL, arms={"hard": ("other",)}))
    with pytest.raises(ConfigError, match="from 64 on"):
        run(small, known({"other": Noted("other", kind="pool")}))


def test_a_novelty_test_of_its_own_decides_a_pool_s_result(
    plan: Plan, base: SimpleNamespace
) -> None:
    ground, material = runner.Ground(plan), read_material(plan, 0, False)
    marks = {
        ground.fingerprint(Job("hard", "same name", 0), arm, material, None)
        for arm in (Ours(), Ours(novelty={"threshold": 0.7}), Ours(novelty={"threshold": 0.6}))
    }
    assert len(marks) == 3
    ours = ground.fingerprint(Job("hard", "ours", 0), Ours(), material, None)
    assert ours == ground.fingerprint(
        Job("hard", "ours", 0), Noted("ours", kind="pool"), material, None
    )


def test_other_arms_may_begin_with_what_ours_learned_on_the_same_stream(plan: Plan) -> None:
    given = arms()
    run(plan, known(given))
    learned, ours = given["base"].given[0].ours_folder, given["ours"].given[0]
    assert learned == ours.folder
    assert ours.ours_folder is None
    shutil.rmtree(plan.out / "work")
    again = arms()
    (plan.out / "arms" / "hard-base-s0.json").unlink()
    run(plan, known(again))
    assert again["base"].given[0].ours_folder is None


def test_a_stream_that_an_arm_cannot_learn_is_left_out(plan: Plan) -> None:
    given = arms()
    given["ours"].streams = frozenset({"hard"})
    run(plan, known(given))
    assert "blurred-ours" not in ran(given)


def test_an_arm_that_there_is_not_is_refused_before_anything_runs(plan: Plan) -> None:
    given = {"ours": Noted("ours")}
    with pytest.raises(ConfigError, match="no arm 'base'"):
        run(plan, known(given))
    assert given["ours"].given == []


def test_visits_that_never_make_a_cluster_are_refused_before_anything_runs(plan: Plan) -> None:
    given = arms()
    with pytest.raises(ConfigError, match=r"a visit has 8 rows, .* from 64 on; give more --rows"):
        run(replace(plan, learn=LearnSettings()), known(given))
    assert ran(given) == []
    # Nobody sorts rows where the pool is not asked.
    run(replace(plan, preset=replace(SMALL, arms={"hard": ("base",)}), learn=LearnSettings()),
        known(given))  # fmt: skip
    assert ran(given) == ["hard-base"]


def test_a_seed_among_the_settings_is_refused(plan: Plan) -> None:
    given = arms()
    with pytest.raises(ConfigError, match=r"seed=5 would do nothing: .* give --seed 5 instead"):
        run(replace(plan, learn=learning(seed=5)), known(given))
    assert ran(given) == []


@pytest.mark.parametrize("rule", [{"max_rank": 16}, {"freeze_below": 0.1}])
def test_rules_that_the_other_arms_have_not_are_for_pools_alone(
    plan: Plan, rule: dict[str, Any]
) -> None:
    grows = replace(plan, learn=learning(expert=ExpertSettings(rank=8, **rule)))
    given = arms()
    with pytest.raises(
        ConfigError, match=rf"expert\.{next(iter(rule))} would change the pool alone"
    ):
        run(grows, known(given))
    assert ran(given) == []
    run(replace(grows, preset=replace(SMALL, arms={"hard": ("ours", "base")})), known(given))
    assert ran(given) == ["hard-ours", "hard-base"]


def test_a_stream_may_be_answered_at_its_end_alone(plan: Plan) -> None:
    given = arms()
    run(replace(plan, preset=replace(SMALL, at_end=("blurred",))), known(given))
    asked = {one.stream.kind: one.every_visit for one in given["ours"].given}
    assert asked == {"hard": True, "blurred": False}


def test_every_arm_gets_the_same_rows_and_the_products_figures(plan: Plan) -> None:
    given = arms()
    run(plan, known(given))
    ours, base = given["ours"].given[0], given["base"].given[0]
    assert ours.stream == base.stream
    assert ours.skills == base.skills
    assert ours.shared == base.shared
    learn = learning()
    assert (base.rank, base.epochs) == (learn.expert.rank, learn.consolidation.epochs)
    assert base.learning_rate == learn.consolidation.learning_rate
    assert base.batch_rows == learn.consolidation.batch_size


def test_text_that_the_base_has_no_room_for_is_left_out(plan: Plan) -> None:
    given = arms()
    run(plan, known(given))
    there, every = given["ours"].given[0].neutral, read_material(plan, 0, False).neutral
    assert 3 < len(there) < len(every)
    assert all(len(row.prompt) + len(row.completion) < 256 for row in there)


# -- rows and streams ----------------------------------------------------------------------------


def test_a_stream_with_a_return_begins_as_the_hard_one(plan: Plan) -> None:
    both = replace(SMALL, arms={"returning": ("ours",), "hard": ("ours",)})
    found = read_material(replace(plan, preset=both), 0, False).streams
    count = len(found["hard"].batches)
    assert found["returning"].batches[:count] == found["hard"].batches
    alone = read_material(replace(plan, preset=replace(SMALL, arms={"hard": ()})), 0, False)
    assert alone.streams["hard"] == found["hard"]


def test_rows_for_one_visit_are_enough_where_nothing_returns(plan: Plan) -> None:
    write_skill(plan.data / "hats", train=8)
    assert read_material(plan, 0, False).streams["hard"].truth.visits[0].stop == 8
    both = replace(plan, preset=replace(SMALL, arms={"returning": ("ours",)}))
    with pytest.raises(DataError, match="16 wanted"):
        read_material(both, 0, False)


def test_each_seed_has_an_order_of_its_own_and_the_first_the_presets(plan: Plan) -> None:
    orders = {
        seed: [
            visit.skill for visit in read_material(plan, seed, False).streams["hard"].truth.visits
        ]
        for seed in range(6)
    }
    assert orders[0] == list(SMALL.skills)
    assert len({tuple(order) for order in orders.values()}) > 2
    assert {tuple(sorted(order)) for order in orders.values()} == {SMALL.skills}


def test_a_folder_without_the_presets_skills_is_taken_whole(plan: Plan) -> None:
    assert skill_names(plan) == SMALL.skills
    other = replace(plan, preset=replace(SMALL, skills=("snips", "sums")))
    assert skill_names(other) == ("hats", "moods", "sums")
    named = replace(plan, preset=replace(other.preset, or_all=False))
    assert skill_names(named) == ("snips", "sums")


def test_text_of_no_skill_has_rows_of_the_skills_that_are_not_learned(plan: Plan) -> None:
    every = read_material(plan, 0, False).neutral
    fewer = replace(plan, preset=replace(SMALL, skills=("hats", "sums")))
    with_moods = read_material(fewer, 0, False).neutral
    assert len(every) > 20
    assert with_moods[: len(every)] == every
    assert len(with_moods) == len(every) + 3
    assert {row.prompt.split()[0] for row in with_moods[len(every) :]} == {"moods"}


# -- presets -------------------------------------------------------------------------------------


def test_every_preset_names_streams_that_there_are_and_ours_runs_first() -> None:
    for preset in PRESETS.values():
        for stream, names in preset.arms.items():
            assert stream.removesuffix("-templated") in STREAMS
            assert names[0] == "ours"
            assert set(names) <= set(ARM_NAMES) == set(ARMS)
            assert len(set(names)) == len(names)


def test_arms_that_differ_in_one_choice_are_of_the_full_preset_alone() -> None:
    variants = {name for name in ARM_NAMES if name.startswith("ours-cosine")} | {"o-lora-squared"}
    for name, preset in PRESETS.items():
        named = {arm for arms_ in preset.arms.values() for arm in arms_}
        assert variants <= named if name == "full" else not variants & named
    assert chosen("cpu", arms=["ours-cosine-0.85"]).arms["hard"] == ("ours-cosine-0.85",)


def test_what_a_person_names_is_run_and_nothing_else() -> None:
    found = chosen("cpu", arms=["base", "ours"], streams=["mixed", "hard"], rows=32, seeds=[3])
    assert found.arms == {"mixed": ("base", "ours"), "hard": ("base", "ours")}
    assert (found.rows, found.seeds, found.test_rows) == (32, (3,), PRESETS["cpu"].test_rows)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "tpu"}, "no preset 'tpu'; choose cpu"),
        ({"name": "cpu", "arms": ["our"]}, "no arm 'our'"),
        ({"name": "cpu", "streams": ["soft"]}, "no stream 'soft'"),
    ],
)
def test_what_there_is_not_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        chosen(**options)


def test_how_an_answer_is_scored_decides_a_result_too(plan: Plan) -> None:
    first, second = arms(), arms()
    run(plan, known(first))
    path = plan.data / "hats" / "test.jsonl"
    path.write_text(path.read_text().replace("{", '{"check": "number", '))
    run(plan, known(second))
    assert ran(second) == ran(first)


def test_rows_to_validate_on_decide_a_result_by_what_is_in_their_file(plan: Plan) -> None:
    sets = plan.data / "other.jsonl"
    sets.write_text("one")
    named = replace(plan, learn=learning(evaluation={"other": sets}))
    first, second, third = arms(), arms(), arms()
    run(named, known(first))
    moved = sets.rename(plan.data / "moved.jsonl")
    named = replace(plan, learn=learning(evaluation={"other": moved}))
    run(named, known(second))
    assert ran(second) == []
    moved.write_text("two")
    run(named, known(third))
    assert ran(third) == ran(first)
