"""A version on trial gets its share, and what speaks against it takes it back."""

from __future__ import annotations

import pytest

from dylora_moe.errors import ConfigError
from dylora_moe.records import Interval
from dylora_moe.serving.engine.canary import Canary, CanaryRule

RULE = CanaryRule(share=0.25, answers=8, errors=2)


def test_the_new_version_gets_its_share_from_the_first_request_on() -> None:
    canary = Canary("expert_1", 1, 2, RULE)
    chosen = [canary.choose() for _ in range(40)]
    assert chosen.count(2) == 10
    assert chosen[0] == 2


def test_it_passes_after_enough_answers_once_it_was_weighed() -> None:
    canary = Canary("expert_1", 1, 2, RULE)
    for _ in range(20):
        canary.count(2, True)
    assert canary.state == "on trial"
    canary.weigh(Interval(0.03, -0.01, 0.08))
    assert canary.state == "passed"


def test_a_worse_loss_takes_it_back_only_where_it_is_sure() -> None:
    unsure, sure = Canary("expert_1", 1, 2, RULE), Canary("expert_1", 1, 2, RULE)
    unsure.weigh(Interval(0.2, 0.01, 0.4))
    sure.weigh(Interval(0.2, 0.03, 0.4))
    assert (unsure.state, sure.state) == ("on trial", "failed")
    assert "20.0%" in sure.reason


def test_answers_that_go_wrong_take_it_back_unless_the_old_version_s_do_too() -> None:
    bad, usual = Canary("expert_1", 1, 2, RULE), Canary("expert_1", 1, 2, RULE)
    for canary, old in ((bad, True), (usual, False)):
        canary.weigh(None)
        for _ in range(4):
            canary.count(1, old)
        canary.count(2, False)
        canary.count(2, False)
    assert (bad.state, usual.state) == ("failed", "on trial")
    assert "2 of 2" in bad.reason


def test_what_is_settled_stays() -> None:
    canary = Canary("expert_1", 1, 2, RULE)
    canary.weigh(Interval(0.5, 0.4, 0.6))
    for _ in range(20):
        canary.count(2, True)
    assert canary.state == "failed"


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"share": 1.0}, {"share": 0.5, "answers": 0}])
def test_a_rule_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="share between 0 and 1"):
        CanaryRule(**wrong)  # type: ignore[arg-type]
