"""A new expert whose rank grows while it trains: what is stored, told and capped."""

from __future__ import annotations

import json

from dylora_moe.build.pool import Pool
from dylora_moe.config import LearnSettings
from dylora_moe.records import Arrival
from tests.pools import LETTERS, answers, learn, rows, settings, shouted

SMALL = {"rank": 2, "alpha": 4.0}
# Every epoch but a phase's last counts as stalled.
GROWING = settings(
    expert={"rank": 2, "alpha": 4.0, "max_rank": 8, "grow_below": 0.99},
    consolidation={"epochs": 4},
)


def test_the_version_is_a_plain_adapter_of_the_rank_that_did_best(empty: Pool) -> None:
    result = learn(empty, "letters", rows(LETTERS, 64, 3), settings=GROWING)
    assert result.action == "created"
    (version,) = empty.experts()
    trained = empty.events("trained")[-1].numbers
    growths = [one for phase in trained["phases"] for one in phase["growths"]]
    assert [(one["before"], one["after"]) for one in growths] == [(2, 4), (4, 8)]
    assert version.lora_config["r"] == trained["rank"]
    assert version.lora_config["lora_alpha"] == 2 * trained["rank"]
    stored = json.loads((empty.path / version.storage_path / "adapter_config.json").read_text())
    assert (stored["r"], stored["rank_pattern"]) == (trained["rank"], {})
    before = answers(empty)
    with Pool.open(empty.path, device="cpu", dtype="fp32") as again:
        assert answers(again) == before


def test_the_plan_and_the_cap_reckon_with_the_highest_rank(empty: Pool) -> None:
    arrival = Arrival("letters", rows(LETTERS, 64, 3))
    (plan,) = empty.plan_arrivals([arrival], settings=GROWING)
    (small,) = empty.plan_arrivals([arrival], settings=settings(expert={"rank": 2, "alpha": 4.0}))
    assert plan.cost.parameters == 4 * small.cost.parameters
    novelty = {"max_parameters": plan.cost.parameters - 1}
    capped = GROWING.model_copy(update={"novelty": settings(novelty=novelty).novelty})
    assert learn(empty, "letters", arrival.examples, settings=capped).action != "created"


def test_a_revised_skill_s_growth_is_in_the_plan_and_under_the_cap(empty: Pool) -> None:
    learn(empty, "letters", rows(LETTERS, 64, 3), settings=settings(expert=SMALL))
    (expert,) = empty.experts()
    own = empty.live.experts.parameter_count(expert.expert_id)
    arrival = Arrival("others", rows(LETTERS, 64, 3, shouted))

    def capped(times: int) -> LearnSettings:
        novelty = settings(novelty={"max_parameters": times * own}).novelty
        return GROWING.model_copy(update={"novelty": novelty})

    (plan,) = empty.plan_arrivals([arrival], settings=GROWING)
    assert plan.verdict.name == "revised"
    assert (plan.cost.parameters, plan.cost.bytes) == (3 * own, 4 * 4 * own)
    for times, most in ((3, 2), (1, 0)):
        (plan,) = empty.plan_arrivals([arrival], settings=capped(times))
        assert plan.cost.parameters == most * own
    result = learn(empty, "others", arrival.examples, settings=capped(3))
    trained = empty.events("trained")[-1].numbers
    growths = [one for phase in trained["phases"] for one in phase["growths"]]
    assert [(one["before"], one["after"]) for one in growths] == [(2, 4), (4, 6)]
    assert result.verdict.name == "revised"
    assert empty.live.experts.parameter_count(expert.expert_id) <= 3 * own
