"""The matrices and the summary say what the scores say."""

from __future__ import annotations

from pathlib import Path

import pytest

from dylora_moe.evaluation.history import History, collect
from dylora_moe.evaluation.matrix import build_matrices
from dylora_moe.evaluation.summary import summary
from dylora_moe.records import Event
from tests.evaluation.pools import PoolWriter, empty_pool, small_pool


def history_of(pool: PoolWriter) -> History:
    return collect(pool.registry, pool.artifacts, pool.root)


def test_matrix_has_a_row_for_each_arrival_and_repeats_it_where_nothing_changed(
    tmp_path: Path,
) -> None:
    matrices = build_matrices(history_of(small_pool(tmp_path)))
    assert matrices.rows == ("a", "b", "c")
    assert matrices.columns == ("sums", "colours")
    assert matrices.accuracy == ((0.90, None), (0.88, 0.70), (0.88, 0.70))
    assert matrices.loss == ((0.40, None), (0.41, 0.50), (0.41, 0.50))
    assert matrices.learned_at == (0, 1)


def test_metrics_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    matrices = build_matrices(history_of(small_pool(tmp_path)))
    assert matrices.average_accuracy == pytest.approx((0.88 + 0.70) / 2)
    assert matrices.backward_transfer == pytest.approx((-0.02 + 0.0) / 2)
    assert matrices.forgetting == pytest.approx((0.02 + 0.0) / 2)
    assert matrices.accuracy_changes == pytest.approx((-0.02, 0.0))
    assert matrices.loss_changes == pytest.approx((0.01 / 0.40, 0.0))


def test_headline_counts_and_names_the_worst_change(tmp_path: Path) -> None:
    found = summary(history_of(small_pool(tmp_path)))
    assert found.headline == (
        "3 arrivals, 2 experts grown, nothing forgotten: "
        "worst change of an older skill -2.0 points (sums)"
    )
    assert found.verdicts == {"novel": 2, "known": 1}
    assert found.forgotten == ()


def test_one_generated_row_is_no_forgetting_and_two_are(tmp_path: Path) -> None:
    for rows, forgotten in ((1, ()), (2, ("sums",))):
        pool = empty_pool(tmp_path / str(rows))
        pool.arrive("a", "novel", "created", "sums", {"sums": 1.0})
        pool.arrive("b", "novel", "created", "hats", {"sums": 1.0 - rows / 32, "hats": 1.0})
        assert summary(history_of(pool)).forgotten == forgotten


def test_without_accuracy_the_loss_decides_by_the_gates_tolerance(tmp_path: Path) -> None:
    for loss, forgotten in ((0.405, ()), (0.42, ("sums",))):
        pool = empty_pool(tmp_path / str(loss))
        pool.arrive("a", "novel", "created", "sums", {"sums": None}, {"sums": 0.40})
        pool.arrive(
            "b", "novel", "created", "hats", {"sums": None, "hats": None}, {"sums": loss}
        )  # fmt: skip
        found = summary(history_of(pool))
        assert found.average_accuracy is None
        assert found.forgotten == forgotten
        assert f"+{100 * (loss - 0.4) / 0.4:.1f}%" in found.headline


def test_a_skill_learned_last_is_no_older_skill(tmp_path: Path) -> None:
    pool = empty_pool(tmp_path)
    pool.arrive("a", "novel", "created", "sums", {"sums": 0.9})
    found = summary(history_of(pool))
    assert found.worst_change is None
    assert found.headline == "1 arrival, 1 expert grown"


def test_a_revised_skill_is_learned_anew_and_forgets_only_from_there_on(tmp_path: Path) -> None:
    pool = small_pool(tmp_path)
    pool.arrive(
        "d", "revised", "new version", "sums", {"sums": 0.60, "colours": 0.70},
        {"sums": 0.80, "colours": 0.50},
    )  # fmt: skip
    matrices = build_matrices(history_of(pool))
    assert matrices.learned_at == (3, 1)
    assert matrices.accuracy[0] == (0.90, None)  # what it scored before is still shown
    assert (matrices.accuracy_changes[0], matrices.loss_changes[0]) == (None, None)
    assert matrices.backward_transfer == pytest.approx(0.0)
    assert summary(history_of(pool)).forgotten == ()
    pool.arrive("e", "novel", "created", "hats", {"sums": 0.50, "colours": 0.70, "hats": 0.9})
    assert build_matrices(history_of(pool)).accuracy_changes[0] == pytest.approx(-0.10)
    assert summary(history_of(pool)).forgotten == ("sums",)


@pytest.mark.parametrize("whole_pool", [True, False])
def test_a_revision_that_is_taken_back_is_no_baseline(whole_pool: bool, tmp_path: Path) -> None:
    pool = small_pool(tmp_path)
    before = pool.registry.pointer
    pool.arrive("d", "revised", "new version", "sums", {"sums": 1.0, "colours": 0.70})
    scores = {"sums": 0.88, "colours": 0.70}
    if whole_pool:
        numbers = {"action": "rolled back", "revision": before}
        pool.registry.move_to(before, Event("promoted", numbers, "taken back"))
    else:
        expert = pool.experts[0]
        pool._promote("none", "back", "rolled back", "", expert, scores, {}, {})
    pool.arrive("e", "novel", "created", "hats", {**scores, "hats": 0.9})
    matrices = build_matrices(history_of(pool))
    assert matrices.learned_at[0] == 4
    assert matrices.accuracy_changes[0] == pytest.approx(0.0)


def test_a_known_skill_with_a_new_version_keeps_its_baseline(tmp_path: Path) -> None:
    pool = small_pool(tmp_path)
    pool.arrive("d", "known", "new version", "sums", {"sums": 0.60, "colours": 0.70})
    assert build_matrices(history_of(pool)).learned_at == (0, 1)
    assert summary(history_of(pool)).forgotten == ("sums",)


def test_a_removed_skill_leaves_the_row_and_is_not_forgotten(tmp_path: Path) -> None:
    pool = small_pool(tmp_path)
    del pool.skills[0], pool.experts[0]
    pool._promote("none", "d", "covered", "colours", pool.experts[0], {"colours": 0.7}, {}, {})
    matrices = build_matrices(history_of(pool))
    assert matrices.accuracy[-1] == (None, 0.7)
    assert matrices.accuracy_changes == (None, pytest.approx(0.0))
    assert summary(history_of(pool)).skills == 1
