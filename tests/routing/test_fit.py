"""Laws of rehearsal."""

from __future__ import annotations

import pytest
import torch

from dylora_moe.errors import RoutingError, TrainingError
from dylora_moe.foundation.statistics import FeatureStatistics
from dylora_moe.routing.calibration import best_temperature, calibrate
from dylora_moe.routing.closed_form import lda
from dylora_moe.routing.fit import calibrate_closed, fit_correction
from dylora_moe.routing.rehearsal import even_sample, rehearse
from dylora_moe.routing.router import DynamicHybridRouter

from .builders import D, build, cluster, features, none_rows


def ring(n: int, radius: float, seed: int) -> torch.Tensor:
    """Two skills that no straight line parts, with the same mean."""
    angle = torch.rand(n, generator=torch.Generator().manual_seed(seed)) * 6.2832
    plane = radius * torch.stack([angle.cos(), angle.sin()], -1)
    noise = 0.05 * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed + 50))
    return plane + noise


def rings(**settings) -> tuple[DynamicHybridRouter, dict[str, torch.Tensor]]:
    stored = {"inner": ring(120, 0.5, 0), "outer": ring(120, 1.5, 1)}
    router = DynamicHybridRouter(2, **settings)
    for skill, rows in stored.items():
        router.add_expert(skill, f"expert_{skill}", FeatureStatistics.from_features(rows))
    return router, stored


def test_the_correction_learns_what_the_closed_form_cannot() -> None:
    router, stored = rings(gate="mlp", hidden=32)
    report = fit_correction(router, stored, steps=300, lr=0.03, patience=30)
    assert report.accuracy_before < 0.8
    assert report.accuracy_after > 0.95
    assert report.loss_after < report.loss_before
    assert 0 < report.best_step <= report.steps == len(report.losses)
    routing = router(ring(100, 1.5, 7))
    assert (routing.probabilities.argmax(-1) == 1).float().mean() > 0.95


def test_a_correction_that_does_not_help_is_not_kept() -> None:
    # Two skills of one source: whatever is learned to tell them apart is learned by heart.
    stored = {"left": cluster(0, 30, seed=1), "right": cluster(0, 30, seed=2)}
    router = DynamicHybridRouter(D)
    for skill, rows in stored.items():
        router.add_expert(skill, f"expert_{skill}", FeatureStatistics.from_features(rows))
    report = fit_correction(router, stored, lr=1.0, steps=20)
    assert report.losses[-1] < report.losses[0]
    assert report.best_step == 0
    assert not router.correction.delta_W.any()
    assert report.loss_after == report.loss_before


def test_a_correction_that_is_worse_than_none_is_given_up() -> None:
    stored = {"left": cluster(0, 30, seed=1), "right": cluster(0, 30, seed=2)}
    router = DynamicHybridRouter(D)
    for skill, rows in stored.items():
        router.add_expert(skill, f"expert_{skill}", FeatureStatistics.from_features(rows))
    with torch.no_grad():
        router.correction.delta_W.normal_(generator=torch.Generator().manual_seed(0))
    report = fit_correction(router, stored, lr=1e-6, steps=10)
    assert not router.correction.delta_W.any()
    assert report.best_step == 0
    assert report.loss_after < report.loss_before


def test_a_correction_that_is_proven_survives_a_fit_that_finds_nothing_better() -> None:
    router, stored = rings(gate="mlp", hidden=32)
    fit_correction(router, stored, steps=300, lr=0.03, patience=30)
    learned = router.correction.delta_W.detach().clone()
    report = fit_correction(router, stored, steps=1, lr=0.0)
    assert learned.any()
    assert report.best_step == 0
    assert torch.equal(router.correction.delta_W, learned)


def test_a_fit_is_deterministic() -> None:
    fitted = []
    for _ in range(2):
        router, stored = rings(gate="mlp", hidden=8)
        fit_correction(router, stored, steps=20, lr=0.03)
        fitted.append(router)
    for left, right in zip(*(r.parameters() for r in fitted), strict=True):
        assert torch.equal(left, right)


def test_a_fit_changes_only_correction_temperature_and_threshold() -> None:
    router = build()
    before = router.table.solve()
    report = fit_correction(router, features(), none_rows())
    assert torch.equal(router.table.solve().weight, before.weight)
    assert report.temperature == router.temperature
    assert report.none is not None
    assert report.none.threshold == router.none_threshold
    assert report.none.own_share <= 0.005


def test_a_loss_that_is_not_finite_stops_the_fit_and_leaves_the_gate_as_it_was() -> None:
    router, stored = rings()
    before = router(stored["inner"]).weights
    with pytest.raises(TrainingError, match="not finite"):
        fit_correction(router, stored, lr=float("inf"))
    assert not router.correction.delta_W.any()
    assert router(stored["inner"]).weights.shape == before.shape


@pytest.mark.parametrize("extra", [{"z": 0.1}, {"entropy": 0.5}, {"balance": 5.0}])
def test_each_auxiliary_loss_enters_the_training(extra: dict[str, float]) -> None:
    losses = []
    for kwargs in ({}, extra, {"label_smoothing": 0.2}):
        router, stored = rings()
        losses.append(fit_correction(router, stored, steps=1, **kwargs).losses[0])
    assert len(set(losses)) == 3


def test_held_out_rows_are_in_no_part_of_the_gate_they_are_judged_by() -> None:
    router = build()
    stored = rehearse(router.table, features(), none_rows(), holdout=0.25, seed=1)
    fresh = DynamicHybridRouter(D)
    parts = {
        label: stored.features[(stored.labels == label) & ~stored.held_out] for label in range(4)
    }
    fresh.set_none(FeatureStatistics.from_features(parts[0]))
    for row, label in zip(router.rows, range(1, 4), strict=True):
        fresh.add_expert(row.skill_id, row.expert_id, FeatureStatistics.from_features(parts[label]))
    with torch.no_grad():
        expected = fresh.raw_logits(stored.features[stored.held_out]).log_softmax(-1)
    found = stored.closed[stored.held_out].log_softmax(-1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert stored.held_out.sum() == 3 * 10 + 15


def test_rehearsal_wants_the_rows_of_every_skill() -> None:
    router = build()
    with pytest.raises(RoutingError, match="stored features"):
        fit_correction(router, {"sql": features()["sql"]}, none_rows())
    with pytest.raises(RoutingError, match="own prompts"):
        fit_correction(router, features(), None)


def test_one_skill_alone_leaves_nothing_to_fit() -> None:
    router = DynamicHybridRouter(D)
    rows = features()["sql"]
    router.add_expert("sql", "expert_sql", FeatureStatistics.from_features(rows))
    report = fit_correction(router, {"sql": rows})
    assert report.steps == 0
    assert router.temperature == pytest.approx(1.0)


def test_the_threshold_sends_at_most_the_share_away() -> None:
    own = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    for share in (0.0, 0.005, 0.1):
        found = calibrate(own, own + 3, share)
        assert found.own_share <= share
        assert found.own_share >= share - 0.001
        assert float((own + 3 > found.threshold).double().mean()) == found.foreign_share


def test_the_best_temperature_undoes_a_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4000, 3, generator=generator)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    assert best_temperature(7 * logits, labels) == pytest.approx(7.0, rel=0.1)


def golden(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The best temperature by golden section: slow and plain."""
    low, high, ratio = -3.0, 6.0, 0.6180339887498949
    for _ in range(60):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        losses = [
            float(torch.nn.functional.cross_entropy(logits.double() / 2.718281828459045**t, labels))
            for t in (left, right)
        ]
        low, high = (low, right) if losses[0] <= losses[1] else (left, high)
    return 2.718281828459045 ** ((low + high) / 2)


@pytest.mark.parametrize("scale", [0.3, 1.0, 30.0])
def test_the_best_temperature_is_that_of_a_plain_search(scale: float) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(200, 6, generator=generator)
    labels = (logits + torch.randn(200, 6, generator=generator)).argmax(-1)
    logits[:, 0] = torch.where(labels == 0, logits[:, 0], -1e30)
    found = best_temperature(scale * logits, labels)
    assert found == pytest.approx(golden(scale * logits, labels), rel=1e-6)
    assert best_temperature(50 * torch.eye(4), torch.arange(4)) == 0.05


def test_of_more_rows_than_are_rehearsed_an_even_sample_is_taken() -> None:
    assert [len(rows) for rows in even_sample([3, 40, 40, 5], 40)] == [3, 16, 16, 5]
    assert [len(rows) for rows in even_sample([9, 9, 9], 2)] == [1, 1, 1]
    for part, rows in enumerate(even_sample([40, 3], 43)):
        assert torch.equal(rows, torch.arange((40, 3)[part]))
    again = even_sample([40, 40], 20)[1]
    assert torch.equal(again, even_sample([7, 40], 17)[1])
    assert len(again.unique()) == 10


def test_a_sample_of_the_rows_is_judged_as_in_the_whole() -> None:
    router = build()
    whole = rehearse(router.table, features(), none_rows())
    some = rehearse(router.table, features(), none_rows(), most=40)
    assert torch.equal(some.labels.bincount(), torch.tensor([10] * 4))
    places = torch.cat(
        [
            rows + start
            for rows, start in zip(
                even_sample([60, 40, 40, 40], 40), (0, 60, 100, 140), strict=True
            )
        ]
    )
    assert torch.equal(some.features, whole.features[places])
    torch.testing.assert_close(some.closed, whole.closed[places], rtol=1e-6, atol=1e-6)


def test_of_many_classes_only_some_hold_rows_out_and_none_of_one_with_few() -> None:
    router = build()
    stored = rehearse(router.table, features(), none_rows(), holdout=0.2, most=10)
    assert stored.held_out.sum() == 2
    only = rehearse(router.table, features(), none_rows(), holdout=0.2, most=10, only_held_out=True)
    assert torch.equal(only.features, stored.features[stored.held_out])
    assert torch.equal(only.closed, stored.closed[stored.held_out])
    assert only.classes == stored.classes == 4


def test_calibrating_the_closed_form_is_what_a_fit_without_steps_does_to_it() -> None:
    fitted, calibrated = build(), build()
    fit_correction(fitted, features(), none_rows(), steps=0)
    calibrate_closed(calibrated, features(), none_rows())
    assert calibrated.temperature == fitted.temperature
    assert calibrated.none_threshold == fitted.none_threshold


def test_rows_are_judged_in_float32_as_in_float64() -> None:
    """With more features than rows, where leaving a row out changes most."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(300, 300, generator=generator) * torch.arange(1, 301)[:, None] ** -0.5
    parts = [40 + torch.randn(300, generator=generator) @ mix * 0.3 for _ in range(5)]
    stored = {
        str(i): part + torch.randn(30, 300, generator=generator) @ mix
        for i, part in enumerate(parts)
    }
    router = DynamicHybridRouter(300)
    for skill, rows in stored.items():
        router.add_expert(skill, f"expert_{skill}", FeatureStatistics.from_features(rows))
    table = router.table
    inside, held = (rehearse(table, stored, None, holdout=share) for share in (0.0, 0.2))
    exact = table.whitened().leave_one_out(inside.features, inside.labels - 1, [30] * 5)
    torch.testing.assert_close(inside.closed[:, 1:].double(), exact, rtol=1e-4, atol=1e-3)
    out = held.held_out
    kept = [held.features[(held.labels == k) & ~out] for k in range(1, 6)]
    exact = lda([FeatureStatistics.from_features(part) for part in kept]).logits(held.features[out])
    found = held.closed[out, 1:].double()
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-3)
