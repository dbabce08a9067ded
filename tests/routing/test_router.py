"""Laws of the router."""

from __future__ import annotations

import itertools

import pytest
import torch

from dylora_moe.errors import ConfigError, RoutingError
from dylora_moe.foundation.statistics import FeatureStatistics
from dylora_moe.routing.losses import balance_loss
from dylora_moe.routing.router import DynamicHybridRouter
from dylora_moe.routing.selection import expert_weights

from .builders import SKILLS, D, build, cluster, features, none_rows, train_a_step


def probe(n: int = 5) -> torch.Tensor:
    return torch.cat([cluster(i, n, seed=8) for i in range(3)])


def between(share: float = 0.5) -> torch.Tensor:
    """An input of whose skill the gate of the first two is unsure."""
    first, second = cluster(0, 400).mean(0), cluster(1, 400).mean(0)
    return (share * first + (1 - share) * second)[None]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_order_of_arrival_changes_nothing(order: tuple[int, ...]) -> None:
    expected = build()(probe())
    router = DynamicHybridRouter(D)
    for index in order:
        skill = SKILLS[index]
        batches = features()[skill].split([15, 25])
        router.add_expert(skill, f"expert_{skill}", FeatureStatistics.from_features(batches[1]))
        router.extend(skill, FeatureStatistics.from_features(batches[0]))
    router.set_none(FeatureStatistics.from_features(none_rows()))
    found = router(probe())
    columns = [found.experts.index(expert) for expert in expected.experts]
    torch.testing.assert_close(found.weights[:, columns], expected.weights, rtol=1e-5, atol=1e-6)
    weights = router.table.solve().weight
    torch.testing.assert_close(
        weights[[0, *(1 + c for c in columns)]], build().table.solve().weight, rtol=1e-9, atol=1e-11
    )


@pytest.mark.parametrize("gate", ["linear", "mlp"])
def test_adding_an_expert_changes_no_older_correction(gate: str) -> None:
    router = build(gate=gate)
    train_a_step(router)
    x = probe()
    before = {name: p.detach().clone() for name, p in router.correction.named_parameters()}
    learned = router.correction(x)
    assert learned.abs().max() > 0
    router.add_expert("new", "expert_new", FeatureStatistics.from_features(cluster(4)))
    for name, parameter in router.correction.named_parameters():
        kept = parameter[: len(before[name])]
        assert torch.equal(kept, before[name])
        assert not parameter[len(before[name]) :].any()
    torch.testing.assert_close(router.correction(x)[:, :-1], learned, rtol=1e-6, atol=1e-6)
    assert not router.correction(x)[:, -1].any()


def test_removing_a_skill_is_as_if_it_had_never_come() -> None:
    router, without = build(), DynamicHybridRouter(D)
    statistics = FeatureStatistics.from_features(features()["json"])
    with pytest.raises(RoutingError, match="not the statistics"):
        router.remove("json", FeatureStatistics.from_features(features()["sql"]))
    router.remove("json", statistics)
    without.set_none(FeatureStatistics.from_features(none_rows()))
    for skill in ("sql", "bash"):
        rows = FeatureStatistics.from_features(features()[skill])
        without.add_expert(skill, f"expert_{skill}", rows)
    assert router.experts == without.experts
    torch.testing.assert_close(
        router.table.solve().weight, without.table.solve().weight, rtol=1e-9, atol=1e-11
    )
    assert router.correction.delta_b.shape == (3,)


def test_routed_twice_in_a_row_is_the_same_in_training_and_not() -> None:
    router = build(gate="mlp")
    train_a_step(router)
    first = router.train()(probe())
    router(torch.randn(3, D))
    second = router.eval()(probe())
    assert torch.equal(first.weights, second.weights)
    assert torch.equal(first.sparse, second.sparse)


def test_rows_of_a_batch_do_not_influence_each_other() -> None:
    router, x = build(maturity=1.0), probe()
    other = torch.cat([x[:7], 50 * torch.randn(8, D)])
    assert torch.equal(router(x).weights[:7], router(other).weights[:7])


def test_weights_of_an_input_sum_to_one_or_to_nothing() -> None:
    router = build()
    router.calibrate_none(features(), none_rows())
    for maturity in (0.0, 1.0):
        router.set_maturity(dict.fromkeys(router.experts, maturity))
        own, foreign = router(probe()), router(none_rows(20, seed=3))
        torch.testing.assert_close(own.weights.sum(-1), torch.ones(15))
        assert not foreign.weights.any()
        assert foreign.to_none.all()
        torch.testing.assert_close(own.probabilities.sum(-1) + own.none, torch.ones(15))
        torch.testing.assert_close(own.load, own.weights.mean(0))


def test_an_empty_pool_sends_everything_to_no_expert() -> None:
    router = DynamicHybridRouter(D)
    for fitted in (False, True):
        if fitted:
            router.set_none(FeatureStatistics.from_features(none_rows()))
        routing = router(probe())
        assert routing.weights.shape == (15, 0)
        assert routing.experts == ()
        assert torch.equal(routing.none, torch.ones(15))


def test_without_a_row_for_it_nothing_goes_to_no_expert() -> None:
    routing = build(none=False)(1e3 * torch.randn(20, D))
    assert not routing.none.any()
    torch.testing.assert_close(routing.weights.sum(-1), torch.ones(20))


def test_a_young_candidate_makes_its_inputs_dense_and_only_its() -> None:
    router = build(maturity=1.0, temperature=20.0, none=False)
    mature = router(probe())
    assert mature.sparse.all()
    assert mature.dense_share == 0.0
    assert ((mature.weights > 0).sum(-1) <= 2).all()
    router.set_maturity({"expert_sql": 0.3})
    routing = router(probe())
    held = router(probe()).probabilities[:, 0] > 0.05
    assert torch.equal(~routing.sparse, held)
    assert held.any()
    assert not held.all()
    torch.testing.assert_close(routing.weights[held], routing.probabilities[held])


def test_annealing_leaves_one_expert_but_mixes_where_the_gate_is_unsure() -> None:
    router = build(maturity=1.0, temperature=3.0, none=False)
    router.anneal(1.0)
    sure = router(probe())
    assert torch.equal((sure.weights > 0).sum(-1), torch.ones(15, dtype=torch.int64))
    mixed = router(between()).weights
    assert (mixed[0, :2] > 0.05).all()
    hard = build(maturity=1.0, temperature=3.0, none=False, top_k=1)(between())
    assert hard.weights.max() == 1.0


def test_a_higher_mix_temperature_mixes_more() -> None:
    weights = [
        build(maturity=1.0, none=False, temperature=8.0, mix_temperature=t)(between(0.55)).weights
        for t in (1.0, 4.0)
    ]
    assert weights[1].max() < weights[0].max() < 1.0


def test_skills_of_one_expert_add_up() -> None:
    apart, together = build(temperature=10.0), build(temperature=10.0)
    rows = FeatureStatistics.from_features(cluster(5))
    apart.add_expert("more", "expert_more", rows)
    together.add_expert("more", "expert_sql", rows)
    assert together.experts == build().experts
    expected = apart(probe()).probabilities
    expected = torch.cat([expected[:, :1] + expected[:, 3:], expected[:, 1:3]], -1)
    torch.testing.assert_close(together(probe()).probabilities, expected)


@pytest.mark.parametrize("none", [True, False])
@pytest.mark.parametrize("gate", ["linear", "mlp"])
def test_the_mixing_weights_send_a_gradient_to_every_parameter(gate: str, none: bool) -> None:
    router = build(gate=gate, none=none, temperature=10.0)
    train_a_step(router)  # the hidden layer sees a gradient once the rows above it are not zero
    router.zero_grad()
    (router(probe()).weights[:, 0] * torch.arange(15)).sum().backward()
    for name, parameter in router.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_the_balance_loss_reaches_the_gate() -> None:
    router = build(temperature=10.0)
    routing = router(cluster(0, 6, seed=4))
    balance_loss(routing.probabilities).backward()
    gradient = router.correction.delta_W.grad
    assert gradient is not None
    assert (gradient[1:].abs().sum(-1) > 0).all()
    train = torch.optim.SGD(router.parameters(), lr=1.0)
    before = balance_loss(router(cluster(0, 6, seed=4)).probabilities)
    train.step()
    assert balance_loss(router(cluster(0, 6, seed=4)).probabilities) < before


def test_casting_the_model_around_it_keeps_the_gate_in_float32() -> None:
    router = build()
    expected = router(probe()).weights
    model = torch.nn.ModuleDict({"router": router}).to(torch.bfloat16)
    assert {t.dtype for t in model.parameters()} == {torch.float32}
    assert torch.equal(router(probe()).weights, expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(router(probe()).weights, expected)


def test_the_threshold_holds_on_rows_the_gate_has_not_seen() -> None:
    router = build()
    found = router.calibrate_none(features(), none_rows(), share=0.05)
    assert router.none_threshold == found.threshold
    assert found.own_share <= 0.05
    assert found.foreign_share > 0.95
    assert router(probe(100)).to_none.float().mean() < 0.1
    assert router(none_rows(200, seed=9)).to_none.float().mean() > 0.9


def test_what_the_correction_learns_moves_nobody_to_no_expert() -> None:
    router, x = build(none_threshold=-5.0), torch.cat([probe(), none_rows(20, seed=3)])
    before = router(x).to_none
    train_a_step(router, lr=5.0)
    assert torch.equal(router(x).to_none, before)
    assert before.any()
    assert not before.all()


def test_features_of_each_position_are_routed_like_rows() -> None:
    router, x = build(), probe()
    nested = router(x.reshape(3, 5, D), torch.ones(3, 5, dtype=torch.bool))
    torch.testing.assert_close(nested.weights.reshape(15, 3), router(x).weights)


def test_padding_does_not_count_for_the_load() -> None:
    mask = torch.zeros(15, dtype=torch.bool)
    mask[:5] = True
    load = build()(probe(), mask).load
    torch.testing.assert_close(load, build()(probe()[:5]).load)


def test_wrong_values_are_refused() -> None:
    router = build()
    statistics = FeatureStatistics.from_features(cluster(0))
    with pytest.raises(RoutingError, match="row already"):
        router.add_expert("sql", "expert_2", statistics)
    with pytest.raises(RoutingError, match="width 3"):
        router(torch.zeros(1, 3))
    with pytest.raises(RoutingError, match="maturity"):
        router.set_maturity({"expert_nobody": 1.0})
    with pytest.raises(RoutingError, match="no row"):
        router.remove("nobody", statistics)
    with pytest.raises(RoutingError, match="fitted already"):
        router.set_none(statistics)
    with pytest.raises(ConfigError):
        router.anneal(1.5)
    with pytest.raises(ConfigError):
        DynamicHybridRouter(D, top_k=0)
    with pytest.raises(ConfigError, match="cosine"):
        DynamicHybridRouter(D, gate="cosine")


def test_the_row_of_no_expert_can_be_replaced() -> None:
    router, fresh = build(), DynamicHybridRouter(D)
    old, new = (FeatureStatistics.from_features(none_rows(seed=s)) for s in (0, 4))
    router.set_none(new, replaces=old)
    for skill, rows in features().items():
        fresh.add_expert(skill, f"expert_{skill}", FeatureStatistics.from_features(rows))
    fresh.set_none(new)
    torch.testing.assert_close(
        router.table.solve().weight, fresh.table.solve().weight, rtol=1e-9, atol=1e-11
    )


def test_after_many_comings_and_goings_the_gate_is_that_of_a_fit_from_scratch() -> None:
    router = build()
    for turn in range(30):
        rows = FeatureStatistics.from_features(1e3 * cluster(10 + turn, 5))
        router.add_expert(f"guest_{turn}", "expert_sql", rows)
        router.remove(f"guest_{turn}", rows)
    found, expected = router.table.solve(), build().table.solve()
    torch.testing.assert_close(found.weight, expected.weight, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(router(probe()).weights, build()(probe()).weights)


def test_skills_with_an_expert_each_are_not_summed_and_weigh_the_same() -> None:
    router = build()
    rows = torch.cat([cluster(i, 20, seed=8) for i in range(3)])
    assert router.sharing is None
    alone = router(rows)
    summed = expert_weights(alone.logits[:, 1:], torch.eye(3), router.young, router.rule)
    plain = expert_weights(alone.logits[:, 1:], None, router.young, router.rule)
    assert all(torch.equal(a, b) for a, b in zip(plain, summed, strict=True))
    router.add_expert("more", router.experts[0], FeatureStatistics.from_features(cluster(7)))
    assert router.sharing is router.membership
    assert router(rows).weights.shape[-1] == 3
