"""A version that failed its trial leaves the pool, whatever stands in the way, and no other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import pytest

from dylora_moe.errors import QueueFullError
from dylora_moe.serving.commands import Work
from dylora_moe.serving.jobs import Job
from dylora_moe.serving.taking_back import Failed, TakingBack
from tests.serving.double_pool import DoublePool

FAILED = Failed("expert_1", "letters", version=2, back_to=1)
WORK = Work("promote", "letters", ("expert_1", "1", "--instead-of=2"))


class DoubleJobs:
    """Jobs that become what the test says."""

    def __init__(self) -> None:
        self.works: list[Work] = []
        self.full = False
        self.state: Any = "queued"
        self.tried = 0

    def submit(self, work: Work) -> Job:
        self.tried += 1
        if self.full:
            raise QueueFullError("8 jobs wait, as many as may", 5.0)
        self.works.append(work)
        return self.get(str(len(self.works)))

    def get(self, job_id: str) -> Job:
        return Job(job_id, "promote", "letters", self.state, "", message="it is in use")


class Setting:
    """A pool whose expert is at version 2, which failed."""

    def __init__(self) -> None:
        self.pool, self.jobs = DoublePool(), DoubleJobs()
        self.troubles: list[str] = []
        self.becomes(2)
        given = cast("Any", self.pool.registry), cast("Any", self.jobs)
        self.taking = TakingBack(*given, self.troubles.append, again=0.01)

    def becomes(self, version: int) -> None:
        now = self.pool.registry.current()
        first, *others = now.experts
        experts = (replace(first, version=version), *others)
        self.pool.registry.known.append(replace(now, number=now.number + 1, experts=experts))


@pytest.fixture
def found() -> Iterator[Setting]:
    made = Setting()
    yield made
    made.taking.stop()


def until(true: Callable[[], bool]) -> None:
    for _ in range(500):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to that")


def test_it_is_taken_back_by_one_job_that_names_what_it_replaces(found: Setting) -> None:
    found.taking.add(FAILED)
    until(lambda: bool(found.jobs.works))
    time.sleep(0.1)
    assert found.jobs.works == [WORK]
    assert found.taking.left() == [FAILED]
    found.becomes(1)
    assert found.taking.left() == []
    until(lambda: not found.taking._wanted)
    assert not found.troubles


def test_a_full_queue_and_a_job_that_fails_are_tried_again(found: Setting) -> None:
    found.jobs.full = True
    found.taking.add(FAILED)
    until(lambda: found.jobs.tried > 2)
    found.jobs.full = False
    until(lambda: bool(found.jobs.works))
    found.jobs.state = "failed"
    until(lambda: len(found.jobs.works) > 1)
    found.jobs.state = "queued"
    time.sleep(0.1)
    assert set(found.jobs.works) == {WORK}
    assert ["8 jobs wait" in each for each in found.troubles] == [True, False], "each told once"
    assert "it is in use" in found.troubles[1]


def test_nothing_is_done_where_the_pool_moved_on(found: Setting) -> None:
    found.becomes(3)
    found.taking.add(FAILED)
    until(lambda: not found.taking._wanted)
    assert not found.jobs.works


def test_a_person_who_cancels_the_job_is_not_overruled(found: Setting) -> None:
    found.taking.add(FAILED)
    until(lambda: bool(found.jobs.works))
    found.jobs.state = "cancelled"
    until(lambda: not found.taking._wanted)
    assert found.jobs.works == [WORK]
    assert "cancelled" in found.troubles[0]


def test_what_is_not_done_when_it_stops_is_known(found: Setting) -> None:
    found.jobs.full = True
    found.taking.add(FAILED)
    until(lambda: found.jobs.tried > 0)
    found.taking.stop()
    tried = found.jobs.tried
    assert found.taking.left() == [FAILED]
    time.sleep(0.1)
    assert found.jobs.tried == tried
