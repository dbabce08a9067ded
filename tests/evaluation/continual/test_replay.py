"""Laws of detectors replayed on stored features."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from dylora_moe.errors import DataError
from dylora_moe.evaluation.continual.replay import DETECTORS, OURS, replay, replay_all
from dylora_moe.evaluation.continual.streams import Stream, blurred, hard, mixed, returning
from dylora_moe.records import Interval
from dylora_moe.skills.library import SkillLibrary
from dylora_moe.skills.novelty import Limits, Measurement, NoveltyDetector

from .made_up import NAMES, skills_of

D = 24
LIMITS = Limits()


def features_of(stream: Stream) -> Tensor:
    """Rows around a point of their skill."""
    noise = torch.randn(len(stream.truth.keys), D, generator=torch.Generator().manual_seed(0))
    centres = torch.randn(len(NAMES), D, generator=torch.Generator().manual_seed(1))
    return noise + 10 + 3 * centres[[NAMES.index(skill) for skill in stream.truth.skills]]


def own() -> Tensor:
    return 10 + torch.randn(64, D, generator=torch.Generator().manual_seed(2))


@dataclass(frozen=True)
class Knowing(NoveltyDetector):
    """Reads the truth off features that name each row's skill."""

    name: str = "knowing"
    threshold: float = 0.5
    limits: Limits = LIMITS

    def measure(self, features: Tensor, library: SkillLibrary) -> Measurement:
        said = int(features.sum(0).argmax())
        known = [
            (skill.skill_id, float(said != int(skill.statistics.mean.argmax())))
            for skill in library.skills
        ]
        known.sort(key=lambda pair: pair[1])
        if not known:
            return Measurement(None, (), len(features))
        return Measurement(Interval(*[known[0][1]] * 3), tuple(known), len(features))


@dataclass(frozen=True)
class Stubborn(NoveltyDetector):
    """Says the same of every batch."""

    says: float
    name: str = "stubborn"
    threshold: float = 0.5
    limits: Limits = LIMITS

    def measure(self, features: Tensor, library: SkillLibrary) -> Measurement:
        ids = [(skill.skill_id, self.says) for skill in library.skills]
        apart = Interval(self.says, self.says, self.says) if ids else None
        return Measurement(apart, tuple(ids), len(features))


def told(stream: Stream) -> Tensor:
    return torch.eye(len(NAMES))[[NAMES.index(skill) for skill in stream.truth.skills]]


def streams() -> Sequence[Stream]:
    skills = skills_of(4)
    return [make(skills, rows=30, batch=10, seed=3) for make in (hard, blurred, returning)]


@pytest.mark.parametrize("stream", streams(), ids=lambda stream: stream.kind)
def test_a_perfect_detector_scores_one(stream: Stream) -> None:
    found = replay(lambda library: Knowing(), stream, told(stream))
    assert found.experts == found.true_skills == 4
    assert found.again == found.returned == 0
    assert found.borders is not None
    assert (found.borders.precision, found.borders.recall, found.borders.f1) == (1, 1, 1)
    assert found.borders.delay == 0
    assert found.detector == "knowing"
    assert found.stream == stream.kind


def test_a_detector_that_calls_everything_new_grows_an_expert_a_batch() -> None:
    stream = returning(skills_of(3), rows=30, batch=10)
    found = replay(lambda library: Stubborn(1.0), stream, told(stream))
    assert found.experts == 12
    assert found.again == 9
    assert found.returned == 3
    assert found.borders is not None
    assert found.borders.recall == 1
    assert found.borders.precision == pytest.approx(3 / 11)


def test_a_detector_that_calls_nothing_new_grows_one_expert_and_sees_no_border() -> None:
    stream = hard(skills_of(3), rows=30, batch=10)
    found = replay(lambda library: Stubborn(0.0), stream, told(stream))
    assert found.experts == 1
    assert found.again == 0
    assert found.borders is not None
    assert found.borders.recall == 0
    assert found.borders.precision is None


def test_mixed_traffic_has_no_borders_and_no_returns() -> None:
    stream = mixed(skills_of(3), rows=30, batch=10)
    found = replay(lambda library: Stubborn(0.0), stream, told(stream))
    assert found.borders is None
    assert found.returned is None


def test_a_switch_seen_before_a_blurred_border_is_early_and_not_wrong() -> None:
    stream = blurred(skills_of(2), rows=40, batch=5, seed=1)
    says = told(stream)
    # The batch before the border already reads as the next skill's: within the mixed quarter.
    border = stream.truth.borders[0]
    says[:] = torch.eye(len(NAMES))[0]
    says[border - 5 :] = torch.eye(len(NAMES))[1]
    early = replay(lambda library: Knowing(), stream, says)
    assert early.borders is not None
    assert early.borders.f1 == 1
    assert early.borders.delay == -1
    strict = replay(lambda library: Knowing(), stream, says, early=0)
    assert strict.borders is not None
    assert strict.borders.f1 == 0


def test_every_detector_of_the_catalogue_is_replayed_or_named_with_the_reason() -> None:
    stream = hard(skills_of(3), rows=36, batch=18)
    rows = features_of(stream)
    found = replay_all(stream, {"tap": rows, "last-layer": rows}, own())
    assert [one.detector for one in found] == list(DETECTORS)
    skipped = {one.detector: one.skipped for one in found if one.skipped}
    assert list(skipped) == ["gradient-mahalanobis"]
    assert "gradient" in skipped["gradient-mahalanobis"]
    by_name = {one.detector: one for one in found}
    assert by_name[OURS].experts == 3
    assert by_name["cosine-0.75"].experts == 1
    assert all(one.seconds > 0 for one in found if not one.skipped)


def test_a_result_is_plain_json() -> None:
    stream = hard(skills_of(2), rows=20, batch=10)
    document = replay(lambda library: Knowing(), stream, told(stream)).document()
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_features_that_are_not_the_streams_are_refused() -> None:
    stream = hard(skills_of(2), rows=20, batch=10)
    with pytest.raises(DataError, match="39 rows of features for a stream of 40"):
        replay(lambda library: Knowing(), stream, told(stream)[1:])
