from __future__ import annotations

import math

from dylora_moe.lifecycle.gate import decide_gate, rise
from dylora_moe.scoring.bootstrap import Paired

BEFORE = [0.2, 0.3, 0.25, 0.4, 0.3, 0.2, 0.35, 0.3] * 5
TOKENS = [10] * len(BEFORE)


def worse_by(factor: float) -> Paired:
    return Paired([loss * factor for loss in BEFORE], BEFORE, TOKENS)


def test_a_skill_that_gets_worse_on_all_its_rows_closes_the_gate() -> None:
    decision = decide_gate({"sql": worse_by(1.0), "json": worse_by(1.1)}, tolerance=0.02)
    assert not decision.promoted
    assert decision.reason.startswith("json would get worse by 10.0%")


def test_a_rise_within_the_tolerance_is_let_through() -> None:
    assert decide_gate({"sql": worse_by(1.019)}, tolerance=0.02).promoted


def test_one_row_that_moved_is_no_proof_that_a_skill_got_worse() -> None:
    after = [3.0, *BEFORE[1:]]
    pair = Paired(after, BEFORE, TOKENS)
    assert rise(pair).value > 0.2
    assert decide_gate({"sql": pair}, tolerance=0.02).promoted


def test_a_tenth_of_the_rows_that_moved_is_proof() -> None:
    after = [3.0 if index % 8 == 0 else loss for index, loss in enumerate(BEFORE)]
    assert not decide_gate({"sql": Paired(after, BEFORE, TOKENS)}, tolerance=0.02).promoted


def test_the_skill_a_change_is_about_is_excused() -> None:
    assert decide_gate({"sql": worse_by(9.0)}, tolerance=0.02, excused=["sql"]).promoted


def test_a_loss_that_is_not_finite_closes_the_gate() -> None:
    pair = Paired([math.nan, *BEFORE[1:]], BEFORE, TOKENS)
    assert not decide_gate({"sql": pair}, tolerance=10.0).promoted


def test_no_older_skill_leaves_the_gate_open() -> None:
    assert decide_gate({}, tolerance=0.0).promoted
