"""Laws of jobs: one at a time, in order, bounded, remembered, told to end as Ctrl-C would."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from dylora_moe.errors import PoolError, QueueFullError
from dylora_moe.serving import jobs as running
from dylora_moe.serving.commands import Work, command_line, learning, outcome
from dylora_moe.serving.jobs import Job, Jobs, dylora
from dylora_moe.serving.progress import read_progress
from dylora_moe.storage.runs import RunFolders

DONE = 'print(\'{"revision": 4, "before": 3, "experts": [], "pool": "/srv/secret"}\')'
SLOW = """
import sys, time
print("    training expert_1 on 9 rows: 3/12  loss 0.5", file=sys.stderr, flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit(130)
"""
BROKEN = """
import sys
print('{"error": {"type": "PoolLockedError", "message": "/srv/secret is in use: process 7"}}')
sys.exit(2)
"""
Make = Callable[..., Jobs]
WORK = Work("rollback", "letters", ("expert_1",))


@pytest.fixture
def store(tmp_path: Path) -> RunFolders:
    return RunFolders(tmp_path / "jobs", tmp_path / ".staging")


@pytest.fixture
def make(store: RunFolders, tmp_path: Path) -> Iterator[Make]:
    with ExitStack() as stack:

        def made(code: str, **options: int) -> Jobs:
            def command(arguments: Sequence[str]) -> list[str]:
                return [sys.executable, "-S", "-c", code, *arguments]

            jobs = Jobs(store, tmp_path, command=command, **options)
            stack.callback(jobs.stop)
            return jobs

        yield made


def until(law: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not law():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def ended(jobs: Jobs, job: Job) -> Job:
    until(lambda: jobs.get(job.id).state in running.ENDED)
    return jobs.get(job.id)


def test_a_job_runs_its_command_and_says_what_came_of_it(make: Make) -> None:
    jobs = make(DONE)
    job = jobs.submit(WORK)
    assert (job.state, job.kind, job.subject) == ("queued", "rollback", "letters")
    found = ended(jobs, job)
    assert (found.state, found.progress, found.message) == ("done", 1.0, "revision 4")
    assert found.result == {"before": 3, "revision": 4, "experts": []}
    assert found.created <= found.started <= found.ended


def test_jobs_run_one_after_the_other_and_only_so_many_wait(make: Make) -> None:
    jobs = make(SLOW, most_waiting=1)
    first = jobs.submit(WORK)
    until(lambda: jobs.get(first.id).state == "running")
    second = jobs.submit(WORK)
    with pytest.raises(QueueFullError, match="1 jobs wait"):
        jobs.submit(WORK)
    assert [job.state for job in jobs.list()] == ["running", "queued"]
    assert jobs.cancel(second.id).state == "cancelled"
    jobs.submit(WORK)


def test_a_running_job_says_how_far_it_is_and_ends_like_ctrl_c(make: Make) -> None:
    jobs = make(SLOW)
    job = jobs.submit(WORK)
    until(lambda: jobs.get(job.id).stage != "")
    seen = jobs.get(job.id)
    assert (seen.stage, seen.progress) == ("training expert_1 on 9 rows", 0.25)
    jobs.cancel(job.id)
    found = ended(jobs, job)
    assert found.state == "cancelled"
    assert "goes on where it was" in found.message
    # Once it has ended, nothing more can be done to it.
    assert jobs.cancel(job.id) == found


def test_stopping_ends_what_runs_and_what_waits(make: Make) -> None:
    jobs = make(SLOW)
    made = [jobs.submit(WORK) for _ in range(3)]
    until(lambda: jobs.get(made[0].id).stage != "")
    jobs.stop()
    assert [job.state for job in jobs.list()] == ["cancelled"] * 3
    with pytest.raises(QueueFullError):
        jobs.submit(WORK)


def test_what_fails_says_why_and_nothing_of_the_inside(make: Make) -> None:
    jobs = make(BROKEN)
    found = ended(jobs, jobs.submit(WORK))
    assert found.state == "failed"
    assert found.message == "another process is changing the pool; try again when it is done"
    told = outcome("learn", 2, json.dumps({"error": {"type": "DataError", "message": "few rows"}}))
    assert told.message == "few rows"
    for code, output in ((1, '{"error": {"message": "boom"}}'), (2, '{"error": {"message": "/a"}}'),
                         (1, "no JSON"), (-9, "")):  # fmt: skip
        assert "boom" not in outcome("learn", code, output).message
        assert "/" not in outcome("learn", code, output).message


def test_a_command_that_cannot_be_started_is_a_job_that_failed(
    store: RunFolders, tmp_path: Path
) -> None:
    jobs = Jobs(store, tmp_path, command=lambda _: [str(tmp_path / "nothing")])
    found = ended(jobs, jobs.submit(WORK))
    assert (found.state, "could not be started" in found.message) == ("failed", True)
    jobs.stop()


def test_a_later_server_remembers_and_leaves_nothing_running(
    make: Make, store: RunFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = make(DONE)
    done = ended(jobs, jobs.submit(WORK))
    lost = Job("lost", "learn", "x", "running", "2026")
    store.create({}, "lost").save({f: getattr(lost, f) for f in lost.__slots__})
    store.create({}, "unborn")
    later = make(DONE)
    assert later.get(done.id) == done
    assert later.get("lost").state == "cancelled"
    with pytest.raises(PoolError, match="no such job"):
        later.get("unborn")
    monkeypatch.setattr(running, "KEPT", 1)
    newest = ended(later, later.submit(WORK))
    until(lambda: len(later.list()) == 1)
    assert later.list() == [newest]
    assert not (store._root / done.id).exists()


def test_commands_are_those_of_the_command_line(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    work = learning(rows, name="x", as_new=True, settings=["expert.rank=2"])
    assert command_line(work, Path("pool")) == [
        "learn", "pool", str(rows), "--name=x", "--as-new", "--set=expert.rank=2", "--json",
    ]  # fmt: skip
    assert learning(rows, into="y").arguments == ("--into=y",)
    assert learning(rows, mixed=True).subject == "rows"
    retire = Work("retire", "x", ("expert_1",))
    assert command_line(retire, Path("pool"))[:4] == ["experts", "remove", "pool", "expert_1"]
    assert dylora(["--version"])[-1] == "--version"


def test_progress_is_of_the_newest_run_and_survives_half_a_line(tmp_path: Path) -> None:
    assert read_progress(tmp_path / "none", tmp_path / "runs", 0).stage == ""
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    lines = ['{"phase": "seeding", "loss": 2.0}', '{"phase": "consolidation"}', '{"loss": 1.5}']
    (run / "metrics.jsonl").write_text("\n".join(lines) + '\n{"lo')
    log = tmp_path / "log"
    log.write_text("warning: x\n    verdict ticks ...\n    observe 9 rows of x: 4/8  3 s left\n")
    found = read_progress(log, tmp_path / "runs", 0)
    assert (found.stage, found.share) == ("observe 9 rows of x", 0.5)
    assert (found.phase, found.loss) == ("consolidation", 1.5)
    assert read_progress(log, tmp_path / "runs", time.time() + 9).loss is None
