"""Laws of the inbox: each prompt once, bounded, redacted, whole, for two processes at once."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from dylora_moe.errors import ArtifactError, ConfigError, PoolError
from dylora_moe.records import Turn, pair, turns_key
from dylora_moe.storage.inbox import REDACTED, FileInbox
from dylora_moe.storage.pool_folder import Storage
from dylora_moe.text.reading import read_examples
from tests.storage import processes

ROOM = {"entries": 100, "size": 1 << 20}


def ask(inbox: FileInbox, *prompts: str, **options) -> list[bool]:
    return [inbox.put([Turn("user", one)], **{**ROOM, **options}) for one in prompts]


def prompts(inbox: FileInbox) -> list[str]:
    return [entry.prompt for entry in inbox.entries()]


@pytest.fixture
def inbox(pool: Storage) -> FileInbox:
    ticks = itertools.count()
    return FileInbox(pool.artifacts, lambda: f"2026-01-01T00:00:{next(ticks):05d}")


def test_a_prompt_is_kept_once_with_its_count_and_times(inbox: FileInbox) -> None:
    assert ask(inbox, "a", "b", "a", "a") == [True] * 4
    first, second = inbox.entries()
    assert (first.prompt, first.count, second.prompt, second.count) == ("a", 3, "b", 1)
    assert (first.first[-1], first.last[-1]) == ("0", "3")


def test_a_conversation_is_another_prompt_than_its_last_turn(inbox: FileInbox) -> None:
    talk = [Turn("user", "hi"), Turn("assistant", "hello"), Turn("user", "a")]
    inbox.put(talk, **ROOM)
    ask(inbox, "a")
    assert [entry.turns for entry in inbox.entries()] == [tuple(talk), (Turn("user", "a"),)]


def test_what_it_holds_survives_the_process(inbox: FileInbox, pool: Storage) -> None:
    ask(inbox, "a", "ü\u2028x")
    assert FileInbox(pool.artifacts).entries() == inbox.entries()


def test_those_not_asked_for_longest_leave_first(inbox: FileInbox) -> None:
    ask(inbox, "a", "b", "c", "a")
    ask(inbox, "d", entries=3)
    assert prompts(inbox) == ["a", "c", "d"]


def test_it_never_takes_more_bytes_than_it_may(inbox: FileInbox, pool: Storage) -> None:
    for number in range(40):
        assert ask(inbox, f"{number:03d}" * 20, size=2000) == [True]
        files = list((pool.root / "inbox").glob("*.json"))
        assert sum(file.stat().st_size for file in files) <= 2000
    assert len(files) > 5
    assert prompts(inbox)[-1] == "039" * 20


def test_a_prompt_larger_than_the_inbox_drives_nobody_out(inbox: FileInbox) -> None:
    ask(inbox, "a", "b")
    assert ask(inbox, "x" * 5000, size=2000) == [False]
    assert prompts(inbox) == ["a", "b"]


def test_what_is_redacted_is_written_nowhere(inbox: FileInbox, pool: Storage) -> None:
    ask(inbox, "call 0171-234 now", "call 0172-999 now", redact=[r"\d[\d-]+"])
    (entry,) = inbox.entries()
    assert (entry.prompt, entry.count) == (f"call {REDACTED} now", 2)
    for file in (pool.root / "inbox").rglob("*"):
        assert file.is_dir() or b"234" not in file.read_bytes()
    with pytest.raises(ConfigError, match="no regular expression"):
        ask(inbox, "a", redact=["("])


def test_half_a_character_is_not_kept(inbox: FileInbox) -> None:
    assert ask(inbox, "\ud83d") == [False]
    assert not inbox.put([], **ROOM)
    with pytest.raises(ConfigError, match="holds none"):
        ask(inbox, "a", entries=0)


def test_a_damaged_file_is_told_of_and_does_not_stop_the_writer(
    inbox: FileInbox, pool: Storage
) -> None:
    ask(inbox, "a", "b")
    file = pool.root / "inbox" / f"{turns_key([Turn('user', 'a')])}.json"
    file.write_text(file.read_text().replace('"a"', '"c"'))
    with pytest.raises(ArtifactError, match="do not match its name"):
        inbox.entries()
    assert ask(inbox, "a") == [True]
    assert sorted(prompts(inbox)) == ["a", "b"]
    file.write_text("{")
    with pytest.raises(ArtifactError, match="no prompt of an inbox"):
        FileInbox(pool.artifacts).entries()


def test_removing_takes_out_what_is_there_and_nothing_else(inbox: FileInbox, pool: Storage) -> None:
    assert inbox.remove(["0" * 64]) == 0
    ask(inbox, "a", "b")
    key = inbox.entries()[0].key
    assert inbox.remove([key, "0" * 64, "../../pool", f"../inbox/{key}"]) == 1
    assert prompts(inbox) == ["b"]
    assert (pool.root / "pool.json").exists()


def test_confirmed_rows_are_a_file_that_learning_reads(inbox: FileInbox) -> None:
    rows = [pair("a", "1", "number"), pair("b", "2")]
    file = inbox.confirm("my cluster/..", rows)
    assert file == inbox.confirm("my cluster/..", rows)
    assert file.parent.name == "confirmed"
    read = read_examples(file)
    assert [row.key for row in read] == [row.key for row in rows]
    assert [row.check for row in read] == ["number", "exact"]
    with pytest.raises(PoolError, match="no prompt was answered"):
        inbox.confirm("none", [])


def test_what_is_learned_leaves_with_its_file_once_all_of_it_is(inbox: FileInbox) -> None:
    ask(inbox, "a", "b", "c")
    rows = [pair("a", "1"), pair("b", "2")]
    file = inbox.confirm("both", rows)
    assert inbox.learned(rows[:1]) == 1
    assert (prompts(inbox), file.exists()) == (["b", "c"], True)
    assert inbox.learned(rows) == 1
    assert (prompts(inbox), file.exists()) == (["c"], False)


WRITER = """
import sys
from pathlib import Path
from dylora_moe.records import Turn
from dylora_moe.storage.artifacts import FileArtifacts
from dylora_moe.storage.inbox import FileInbox
inbox = FileInbox(FileArtifacts(Path(sys.argv[1])))
for number in range(60):
    inbox.put([Turn("user", f"prompt {number % 20}")], entries=100, size=1 << 20)
"""


def test_one_process_writes_while_another_reads_and_takes_out(pool: Storage) -> None:
    writers = [processes.start(WRITER, pool.root) for _ in range(2)]
    taken = 0
    while any(process.poll() is None for process in writers):
        found = pool.inbox.entries()
        if found:
            taken += found[0].count * pool.inbox.remove([found[0].key])
    for process in writers:
        assert processes.ended(process) == (0, "")
    left = pool.inbox.entries()
    # A count that was read before it went up may be one behind; none is ever lost or doubled.
    assert len(left) <= 20
    assert sum(entry.count for entry in left) + taken <= 120
    assert not [file for file in Path(pool.root, "inbox").iterdir() if file.suffix == ".new"]


def test_two_writers_count_every_time_it_was_asked(pool: Storage) -> None:
    writers = [processes.start(WRITER, pool.root) for _ in range(2)]
    for process in writers:
        assert processes.ended(process) == (0, "")
    assert [entry.count for entry in pool.inbox.entries()] == [6] * 20
    assert json.loads(next(Path(pool.root, "inbox").glob("*.json")).read_bytes())["count"] == 6
