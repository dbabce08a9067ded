from __future__ import annotations

from dataclasses import replace

import torch

from dylora_moe.build.pool import Pool
from dylora_moe.build.recipe import make_recipe
from dylora_moe.lifecycle.router_change import adapt_router, router_event, shape_router
from tests.pools import LETTERS, SIGNS, Notes, learn, rows, settings


def test_another_kind_of_gate_begins_as_the_closed_form_and_keeps_what_the_experts_are(
    taught: Pool,
) -> None:
    live, recipe = taught.live, make_recipe(settings(router={"gate": "mlp", "top_k": 1}))
    features = live.own[:8]
    with torch.no_grad():
        closed, maturity = live.router.closed_form(features), live.router.maturity
        shape_router(live, recipe)
        assert (live.router.gate, live.router.rule.top_k) == ("mlp", 1)
        torch.testing.assert_close(live.router.raw_logits(features), closed)
    assert live.router.maturity == maturity
    assert max(maturity.values()) > 0


def test_the_same_kind_of_gate_keeps_its_correction(taught: Pool) -> None:
    live = taught.live
    live.router.correction.delta_b.data.fill_(0.5)
    router = live.router
    shape_router(live, make_recipe(settings()))
    assert live.router is router
    assert (live.router.correction.delta_b == 0.5).all()


def test_what_is_not_given_stays_as_the_pool_has_it(taught: Pool) -> None:
    changed = settings(router={"gate": "mlp", "top_k": 1, "none_share": 0.01})
    first = learn(taught, "letters-b", rows(LETTERS, 32, 9), settings=changed, into="letters")
    again = learn(taught, "letters-c", rows(LETTERS, 32, 10), into="letters")
    assert "rejected" not in (first.action, again.action)
    for name in ("digits", "letters"):
        taught.remove(name)
        router = taught.live.router
        assert (router.gate, router.rule.top_k, router.none_share) == ("mlp", 1, 0.01)


def test_the_event_tells_how_the_stored_rows_are_shared_out(taught: Pool) -> None:
    live = taught.live
    fitted = adapt_router(live, make_recipe(settings()))
    numbers = router_event(live, fitted, 0.5, "run").numbers
    assert (numbers["classes"], numbers["fit_seconds"]) == (3, 0.5)
    # Two skills of one size, told apart: an even load, and no doubt.
    assert 0.99 < numbers["balance_loss"] < 1.1
    assert 0 <= numbers["entropy"] < 0.1


def test_a_young_expert_keeps_the_gate_from_being_annealed(taught: Pool) -> None:
    live, recipe = taught.live, make_recipe(settings())
    adapt_router(live, recipe)
    assert live.router.rule.progress == 0.0
    live.router.set_maturity({"expert_1": 1.0, "expert_2": 0.9})
    adapt_router(live, replace(recipe, seed=1))
    assert 0.4 < live.router.rule.progress < 0.6


def test_a_new_row_is_calibrated_before_its_expert_trains(taught: Pool) -> None:
    before = taught.live.router.none_threshold
    seen: list[float] = []

    def at_stage(name: str) -> None:
        if name == "training":
            seen.append(taught.live.router.none_threshold)

    result = learn(taught, "signs", rows(SIGNS, 64, 3), watch=Notes(at_stage=at_stage), as_new=True)
    assert result.action == "created"
    assert len(seen) == 1
    assert seen[0] != before
