"""Laws of the score that says how foreign one input is, and of its line."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dylora_moe.errors import ConfigError
from dylora_moe.foundation.statistics import FeatureStatistics, SharedScatter
from dylora_moe.scoring.detection import auroc
from dylora_moe.skills.library import SkillLibrary
from dylora_moe.skills.screening import Screen, screen_of

from .builders import D, cluster, library

FOREIGN = 99
"""Number of the cluster that stands for the base's own prompts."""


def foreign(n: int = 80, d: int = D) -> FeatureStatistics:
    return FeatureStatistics.from_features(cluster(FOREIGN, n, d=d))


def fitted(n: int = 3, share: float = 0.02) -> Screen:
    return screen_of(library(n), foreign(), share=share)


def held_against(screen: Screen, rows: Tensor) -> list[float]:
    return screen(rows).scores.tolist()


def test_inputs_of_skills_that_were_never_learned_score_above_new_ones_of_those_that_were() -> None:
    screen = fitted()
    own = [score for index in range(3) for score in held_against(screen, cluster(index, seed=1))]
    for stranger in (3, 4, 5):
        assert auroc(held_against(screen, cluster(stranger)), own) > 0.95


def test_foreign_rows_seen_again_are_strange_and_rows_of_skills_are_not() -> None:
    screen = fitted()
    assert screen(cluster(FOREIGN, seed=1)).strange.float().mean() > 0.95
    for index in range(3):
        found = screen(cluster(index, seed=1))
        assert found.strange.float().mean() < 0.1
        assert (found.nearest == index).float().mean() > 0.95


@pytest.mark.parametrize(("n", "d"), [(12, 40), (60, 12)])
def test_a_row_left_out_scores_as_by_a_screen_made_without_it(n: int, d: int) -> None:
    groups = [cluster(index, n + index, d=d) for index in range(3)]
    built = SkillLibrary(capacity=100)
    for index, group in enumerate(groups):
        built.add_skill(str(index), group, "expert", [str(row) for row in range(len(group))])
    away = cluster(FOREIGN, 20, d=d)
    screen = screen_of(built, FeatureStatistics.from_features(away))
    for skill, group in enumerate(groups):
        expected = []
        for row in range(len(group)):
            kept = [g.double() for g in groups]
            kept[skill] = torch.cat([kept[skill][:row], kept[skill][row + 1 :]])
            centred = torch.cat([part - part.mean(0) for part in [away.double(), *kept]])
            freedom = len(torch.cat(groups)) + len(away) - 4
            scaled = centred / screen.scale
            matrix = 0.9 / freedom * scaled.T @ scaled + 0.1 * torch.eye(d, dtype=torch.float64)
            seen = [(x - screen.origin) / screen.scale for x in (group[row].double(),)]
            seen += [(part.mean(0) - screen.origin) / screen.scale for part in kept]
            table = torch.stack(seen) @ torch.linalg.solve(matrix, torch.stack(seen).T)
            sizes = table.diagonal().sqrt()
            expected.append(1 - float((table[0, 1:] / (sizes[0] * sizes[1:])).max()))
        found = screen.left_out(group, skill)
        torch.testing.assert_close(
            found.double(), torch.tensor(expected).double(), atol=1e-4, rtol=1e-4
        )


def test_with_more_features_than_rows_left_out_scores_are_those_of_new_rows() -> None:
    d = 200
    built = SkillLibrary()
    for index in range(3):
        built.add_skill(str(index), cluster(index, 30, d=d), "expert")
    screen = screen_of(built, foreign(40, d))
    for index in range(3):
        seen = screen(built[str(index)].features).scores.mean()
        new = screen(cluster(index, 200, seed=1, d=d)).scores
        left_out = screen.left_out(built[str(index)].features, index)
        assert seen < new.mean() - 3 * new.std() / 30**0.5
        assert abs(left_out.mean() - new.mean()) < 3 * new.std() / 30**0.5


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2])
def test_the_line_lets_no_more_than_the_share_of_stored_rows_pass_for_strange(share: float) -> None:
    built = library()
    screen = screen_of(built, foreign(), share=share)
    scores = torch.cat([screen.left_out(s.features, i) for i, s in enumerate(built.skills)])
    passed = int((scores.double() > screen.threshold).sum())
    assert passed == int(share * len(scores))
    new = torch.cat([screen(cluster(index, 400, seed=1)).strange for index in range(3)])
    assert float(new.float().mean()) == pytest.approx(share, abs=0.03)


def test_what_an_input_gets_depends_on_that_input_alone() -> None:
    screen, rows = fitted(), torch.cat([cluster(0, 5, seed=1), cluster(4, 5)])
    together = screen(rows)
    for index, row in enumerate(rows):
        alone = screen(row[None])
        torch.testing.assert_close(alone.scores[0], together.scores[index])
        assert alone.nearest[0] == together.nearest[index]


def test_the_scores_are_the_same_in_any_order_of_the_skills() -> None:
    forth, back = SkillLibrary(), SkillLibrary()
    for index in range(3):
        forth.add_skill(str(index), cluster(index), "expert")
        back.add_skill(str(2 - index), cluster(2 - index), "expert")
    rows = torch.cat([cluster(1, 20, seed=1), cluster(5, 20)])
    one, other = screen_of(forth, foreign())(rows), screen_of(back, foreign())(rows)
    torch.testing.assert_close(one.scores, other.scores)
    assert (one.nearest == 2 - other.nearest).all()


def test_the_scatter_handed_in_is_the_one_it_would_sum_itself() -> None:
    built = library()
    shared = SharedScatter.of([foreign(), *(skill.statistics for skill in built.skills)], D)
    rows = cluster(5, 20)
    ours, theirs = screen_of(built, foreign()), screen_of(built, foreign(), shared=shared)
    torch.testing.assert_close(ours(rows).scores, theirs(rows).scores)
    assert ours.threshold == pytest.approx(theirs.threshold)


def test_to_a_pool_without_skills_everything_is_strange() -> None:
    found = screen_of(SkillLibrary(), foreign())(cluster(0, 7))
    assert found.strange.all()
    assert (found.nearest == -1).all()
    assert len(found.scores) == 7


def test_a_skill_of_one_row_draws_no_line() -> None:
    built = SkillLibrary()
    built.add_skill("lonely", cluster(0, 1), "expert")
    assert not screen_of(built, foreign())(cluster(3)).strange.any()


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="from 0 to below 1"):
        screen_of(library(), foreign(), share=share)
