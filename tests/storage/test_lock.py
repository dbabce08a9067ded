from __future__ import annotations

import os
import socket
import threading

import pytest

from dylora_moe.errors import PoolError, PoolLockedError
from dylora_moe.storage.lock import FileLock
from tests.storage.processes import ended, start

_HOLDS = """
import sys
from pathlib import Path
from dylora_moe.storage.lock import FileLock
with FileLock(Path(sys.argv[1])).hold("learning cats.jsonl"):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_second_process_is_told_who_holds_the_pool_and_for_what(tmp_path):
    worker = start(_HOLDS, tmp_path)
    assert worker.stdout.readline() == "held\n"
    with pytest.raises(PoolLockedError) as caught, FileLock(tmp_path).hold("second"):
        pass
    assert ended(worker, "go\n") == (0, "")
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(tmp_path), f"process {worker.pid}", "learning cats.jsonl", "since 20"):
        assert part in message
    with FileLock(tmp_path).hold("second"):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    worker = start(_HOLDS, tmp_path)
    assert worker.stdout.readline() == "held\n"
    worker.kill()
    ended(worker)
    with FileLock(tmp_path).hold("second"):
        pass


def test_a_second_hold_in_one_process_is_refused_on_any_thread(tmp_path):
    caught = []

    def second():
        try:
            with FileLock(tmp_path).hold("second"):
                pass
        except PoolLockedError as error:
            caught.append(str(error))

    lock = FileLock(tmp_path)
    with lock.hold("first"):
        with pytest.raises(PoolLockedError), lock.hold("second"):
            pass
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert f"process {os.getpid()} has" in caught[0]
    second()
    assert len(caught) == 1


def test_the_lock_is_free_after_an_error_inside(tmp_path):
    lock = FileLock(tmp_path)
    with pytest.raises(ValueError), lock.hold("first"):
        raise ValueError
    with lock.hold("second"):
        pass


def test_a_forked_child_does_not_keep_the_lock_once_its_parent_let_go(tmp_path):
    held, done = os.pipe(), os.pipe()
    with FileLock(tmp_path).hold("first"):
        child = os.fork()
        if child == 0:
            os.read(held[0], 1)
            os._exit(0)
    try:
        with FileLock(tmp_path).hold("second"):
            pass
    finally:
        os.write(held[1], b"x")
        os.waitpid(child, 0)
        for end in (*held, *done):
            os.close(end)


def test_the_holder_on_another_machine_is_named_with_it(tmp_path, monkeypatch):
    lock = FileLock(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "far-away")
        hold = lock.hold("first")
        hold.__enter__()
    with pytest.raises(PoolLockedError, match="on far-away"), lock.hold("second"):
        pass
    hold.__exit__(None, None, None)


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(PoolError, match="cannot be locked"), FileLock(tmp_path / "no").hold("x"):
        pass
