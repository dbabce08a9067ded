"""Laws of jobs: one at a time, in order, bounded, remembered, told to end as Ctrl-C would."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from dylora_moe.build.pool import Pool
from dylora_moe.errors import PoolError, QueueFullError, StorageFullError, UnavailableError
from dylora_moe.serving import job_book
from dylora_moe.serving import jobs as running
from dylora_moe.serving.commands import Work, command_line, learning, outcome
from dylora_moe.serving.jobs import Job, Jobs
from dylora_moe.serving.processes import Group, Holders, Mark, dylora, send
from dylora_moe.serving.progress import read_progress
from dylora_moe.storage.runs import RunFolder, RunFolders

DONE = 'print(\'{"revision": 4, "before": 3, "experts": [], "pool": "/srv/secret"}\')'
SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
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


def until(law: Callable[[], bool], seconds: float = 240.0) -> None:
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
    with pytest.raises(UnavailableError, match="being stopped"):
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
    monkeypatch.setattr(job_book, "KEPT", 1)
    newest = ended(later, later.submit(WORK))
    until(lambda: len(later.list()) == 1)
    assert later.list() == [newest]
    assert not (store._root / done.id).exists()


def test_a_full_disk_ends_neither_the_queue_nor_what_is_known(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageFullError("the disk is full")

    jobs = make(DONE)
    with monkeypatch.context() as disk:
        disk.setattr(RunFolder, "save", full)
        first = jobs.submit(WORK)
        assert ended(jobs, first).state == "done"
        disk.setattr(job_book, "OUTPUT", "none/output.json")
        disk.setattr(running, "OUTPUT", "none/output.json")
        assert ended(jobs, jobs.submit(WORK)).state == "failed"
    with monkeypatch.context() as broken:
        broken.setattr(running, "command_line", lambda *_: 1 / 0)
        found = ended(jobs, jobs.submit(WORK))
        assert (found.state, "its log says" in found.message) == ("failed", True)
    assert ended(jobs, jobs.submit(WORK)).state == "done"
    assert jobs.get(first.id).state == "done"


def with_rows(folder: Path) -> Work:
    rows = folder / "rows.jsonl"
    rows.write_text("{}\n", encoding="utf-8")
    return learning(rows)


def test_rows_that_were_sent_go_once_they_are_learned_or_with_their_job(
    make: Make, store: RunFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    def left() -> list[Path]:
        return list(store._root.glob("*/*.jsonl"))

    jobs = make(DONE)
    assert ended(jobs, jobs.submit_made(with_rows)).kind == "learn"
    assert left() == []
    monkeypatch.setattr(job_book, "KEPT", 2)
    jobs = make(BROKEN)
    for _ in range(3):
        ended(jobs, jobs.submit_made(with_rows))
    assert len(left()) == 2
    for file in left():
        file.unlink()
    jobs = make(SLOW, most_waiting=1)
    first = jobs.submit_made(with_rows)
    until(lambda: jobs.get(first.id).stage != "")
    second = jobs.submit_made(with_rows)
    # The same rows again are a file of their own.
    assert len(left()) == 2
    folders = set(store._root.iterdir())
    with pytest.raises(QueueFullError):
        jobs.submit_made(with_rows)
    assert set(store._root.iterdir()) == folders
    jobs.cancel(second.id)
    jobs.stop()
    assert {file.parent.name for file in left()} == {first.id, second.id}


def sleeping() -> subprocess.Popen[bytes]:
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_DFL); time.sleep(600)"
    return subprocess.Popen([sys.executable, "-S", "-c", code], start_new_session=True)


GONE = Mark(2**22 - 3, 1.0)


def of_another(store: RunFolders, name: str, state: str, holders: Holders) -> Path:
    """A job that another server took on."""
    job = Job(name, "learn", "x", state, "2026")  # type: ignore[arg-type]
    folder = store.create({}, name)
    folder.save({field: getattr(job, field) for field in job.__slots__})
    holders.save(folder.path)
    (folder.path / "rows.jsonl").write_text("{}\n", encoding="utf-8")
    return folder.path


def test_what_outlived_its_server_runs_until_it_ends(make: Make, store: RunFolders) -> None:
    with sleeping() as process, sleeping() as other:
        orphan = of_another(store, "orphan", "running", Holders(GONE, Mark.of(process.pid)))
        of_another(store, "done", "running", Holders(GONE, Mark.of(other.pid)))
        of_another(store, "reused", "running", Holders(GONE, Mark(process.pid, 1.0)))
        of_another(store, "waiting", "queued", Holders(GONE))
        jobs = make(DONE)
        assert {job.id: job.state for job in jobs.list()} == {
            "orphan": "running", "done": "running", "reused": "cancelled", "waiting": "cancelled",
        }  # fmt: skip
        assert (orphan / "rows.jsonl").exists()
        # It can be told to end, and ends.
        jobs.cancel("orphan")
        assert process.wait(60) != 0
        found = jobs.get("orphan")
        assert (found.state, "goes on where it was" in found.message) == ("cancelled", True)
        # Nobody has learned them yet.
        assert (orphan / "rows.jsonl").exists()
        # What it printed says that it had come to its end.
        (store._root / "done" / job_book.OUTPUT).write_text('{"results": []}', encoding="utf-8")
        other.kill()
        other.wait()
        assert jobs.get("done").state == "done"


def test_a_second_server_leaves_the_jobs_of_the_first_alone(make: Make) -> None:
    first = make(SLOW)
    job = first.submit(WORK)
    until(lambda: first.get(job.id).stage != "")
    second = make(DONE)
    assert second.get(job.id).state == "running"
    second.stop()
    assert first.get(job.id).state == "running"
    first.cancel(job.id)
    found = ended(first, job)
    assert second.get(job.id) == found


PARENT = """
import subprocess, sys
code = (
    "import signal, time; signal.signal(2, signal.SIG_IGN); print('up', flush=True); "
    "time.sleep(600)"
)
child = subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE)
child.stdout.readline()
print("    child %d: 0/1 " % child.pid, file=sys.stderr, flush=True)
child.wait()
"""


@pytest.mark.parametrize("at_once", [False, True])
def test_a_job_ends_with_all_that_it_started(make: Make, at_once: bool) -> None:
    jobs = make(PARENT)
    job = jobs.submit(WORK)
    until(lambda: jobs.get(job.id).stage != "")
    child = Mark.of(int(jobs.get(job.id).stage.split()[1]))
    assert child.alive
    if at_once:
        jobs.kill()
    else:
        jobs.cancel(job.id)
    assert ended(jobs, job).state == ("failed" if at_once else "cancelled")
    until(lambda: not child.alive)


def test_commands_are_those_of_the_command_line(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    work = learning(rows, name="x", as_new=True, settings=["expert.rank=2"])
    assert command_line(work, Path("pool")) == [
        "learn", "pool", str(rows), "--name=x", "--as-new", "--set=expert.rank=2", "--json",
    ]  # fmt: skip
    assert command_line(work, Path("pool"), ["--dtype=fp32"])[-2:] == ["--dtype=fp32", "--json"]
    assert learning(rows, into="y").arguments == ("--into=y",)
    assert learning(rows, mixed=True).subject == "rows"
    retire = Work("retire", "x", ("expert_1",))
    assert command_line(retire, Path("pool"))[:4] == ["experts", "remove", "pool", "expert_1"]
    assert dylora(["--version"])[-1] == "--version"


def test_a_job_is_the_ordinary_command_on_the_pool(taught: Pool) -> None:
    jobs = Jobs(taught.jobs, taught.path)
    found = ended(jobs, jobs.submit(Work("retire", "letters", ("expert_1",))))
    log = (taught.path / "jobs" / found.id / job_book.LOG).read_text()
    assert found.state == "done", log
    assert [expert.alias for expert in taught.experts()] == ["digits"]
    assert found.result["revision"] == taught.revision.number
    # What cannot be done says why, as the command does.
    found = ended(jobs, jobs.submit(Work("promote", "digits", ("expert_2", "7"))))
    assert (found.state, found.message) == ("failed", "digits has no v7; there are: v1")
    jobs.stop()


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


def test_a_job_of_a_server_in_the_background_ends_like_ctrl_c(tmp_path: Path) -> None:
    *python, code = dylora([])
    begin = code.split(" from dylora_moe")[0]
    wait = f"{begin} import time; print('there', flush=True); time.sleep(60)"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with (tmp_path / "out").open("wb") as out:
            group = Group([*python, wait], out, out)
    finally:
        signal.signal(signal.SIGINT, before)
    until(lambda: (tmp_path / "out").read_bytes() != b"")
    send(group.pid, signal.SIGINT)
    until(lambda: group.ended() is not None)
    assert b"KeyboardInterrupt" in (tmp_path / "out").read_bytes()
