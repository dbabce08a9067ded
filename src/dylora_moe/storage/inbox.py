"""The inbox: prompts that no skill claimed, in files, until a person says what to answer.

    inbox/<SHA-256 of the turns>.json   one prompt: its turns, how often and when it was asked
    inbox/confirmed/<name>-<hash>.jsonl prompts with their answers, for `learn` to read

A file's name is the hash of what it says was asked, so a damaged one is noticed. One process may
write while another reads and takes out: changes go one after the other under a lock of the system,
and files appear and vanish whole. Knows no database: the folder is all there is.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from dylora_moe.errors import ArtifactError, ConfigError, DataError, PoolError
from dylora_moe.records import Example, InboxEntry, Turn, turns_key
from dylora_moe.storage.artifacts import FileArtifacts
from dylora_moe.storage.clock import Clock, now
from dylora_moe.storage.durable import folders_made, replace_file

_FOLDER = "inbox"
_CONFIRMED = "confirmed"
_LOCK = ".lock"
REDACTED = "[redacted]"


class _Kept(NamedTuple):
    entry: InboxEntry
    size: int
    seen: tuple[int, int, int]


class FileInbox:
    """Implements `ports.Inbox` in a pool's folder."""

    def __init__(self, artifacts: FileArtifacts, clock: Clock = now) -> None:
        self._artifacts = artifacts
        self._clock = clock
        self._folder = artifacts.root / _FOLDER
        self._known: dict[str, _Kept] = {}

    def put(
        self, turns: Sequence[Turn], *, entries: int, size: int, redact: Sequence[str] = ()
    ) -> bool:
        """Keeps a prompt; the same one again counts up.

        Args:
            turns: what was asked.
            entries: prompts that are kept at the most.
            size: bytes of their files at the most.
            redact: regular expressions; what they match is replaced before anything is written.

        Returns:
            Whether it is kept: not if it alone is larger than `size`, or is no valid Unicode.

        Raises:
            ConfigError: room for nothing, or what is no regular expression.
            StorageFullError: if the disk is full; what was kept is.
        """
        if entries < 1 or size < 1:
            raise ConfigError(f"an inbox of {entries} prompts and {size} bytes holds none")
        shown = tuple(Turn(turn.role, _redacted(turn.content, redact)) for turn in turns)
        if not shown or not _is_text(shown):
            return False
        moment = self._clock()
        with self._held():
            kept = self._read(damaged=False)
            key = turns_key(shown)
            old = kept.get(key)
            entry = InboxEntry(
                shown,
                1 if old is None else old.entry.count + 1,
                moment if old is None else old.entry.first,
                moment,
            )
            body = _body(entry)
            if len(body) > size:
                return False
            replace_file(self._folder / f"{key}.json", body)
            others = {name: one for name, one in kept.items() if name != key}
            for name in _leaving(others, entries - 1, size - len(body)):
                (self._folder / f"{name}.json").unlink(missing_ok=True)
        return True

    def entries(self) -> list[InboxEntry]:
        """Every prompt, the one first asked first.

        Raises:
            ArtifactError: a file is damaged.
        """
        found = [one.entry for one in self._read().values()]
        return sorted(found, key=lambda entry: (entry.first, entry.key))

    def remove(self, keys: Collection[str]) -> int:
        """Takes prompts out; one that is not there (any more) is no error."""
        if not self._folder.is_dir():
            return 0
        gone = 0
        with self._held():
            for key in set(keys):
                file = self._folder / f"{key}.json"
                if re.fullmatch(r"[0-9a-f]{64}", key) and file.exists():
                    file.unlink()
                    gone += 1
        return gone

    def confirm(self, name: str, examples: Sequence[Example], folder: Path | None = None) -> Path:
        """Writes prompts with their answers to a file; the same rows give the same name.

        Args:
            folder: of the pool, whose owner removes the file; `inbox/confirmed/` where None.

        Raises:
            PoolError: no rows.
            DataError: text that is not valid Unicode.
            StorageFullError: if the disk is full; nothing changed.
        """
        if not examples:
            raise PoolError("no prompt was answered; give at least one answer")
        body = b"".join(_row(example) for example in examples)
        plain = re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")[:60] or _FOLDER
        file = f"{plain}-{hashlib.sha256(body).hexdigest()[:8]}.jsonl"
        if folder is not None:
            replace_file(folder / file, body)
            return folder / file
        path = f"{_FOLDER}/{_CONFIRMED}/{file}"
        return self._artifacts.root / self._artifacts.put_bytes(path, body).path

    def learned(self, examples: Sequence[Example]) -> int:
        """Takes out the prompts of rows that a skill has now, and the files of `confirm` that
        hold no other rows.

        Returns:
            How many prompts left.
        """
        keys = {example.key for example in examples}
        folder = self._folder / _CONFIRMED
        for file in sorted(folder.glob("*.jsonl")) if folder.is_dir() else ():
            if _keys_of(file.read_bytes()) <= keys:
                file.unlink(missing_ok=True)
        return self.remove([turns_key(example.turns[:-1]) for example in examples])

    def _read(self, damaged: bool = True) -> dict[str, _Kept]:
        """What is kept, by key; a file that did not change is read once.

        Args:
            damaged: whether a damaged file is told of; else it is as if it were not there.
        """
        found = {}
        for file in self._folder.glob("*.json") if self._folder.is_dir() else ():
            try:
                status = file.stat()
                seen = (status.st_ino, status.st_size, status.st_mtime_ns)
                known = self._known.get(file.stem)
                if known is None or known.seen != seen:
                    known = _Kept(_entry(file), status.st_size, seen)
            except FileNotFoundError:
                # Another process took it out meanwhile.
                continue
            except ArtifactError:
                if damaged:
                    raise
                continue
            found[file.stem] = known
        self._known = found
        return found

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Changes by several processes go one after the other; each is short."""
        with folders_made(self._folder):
            descriptor = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _leaving(kept: dict[str, _Kept], entries: int, size: int) -> list[str]:
    """Those that were not asked for longest, until the others are few and small enough."""
    gone: list[str] = []
    bytes_left = sum(one.size for one in kept.values())
    for name in sorted(kept, key=lambda name: (kept[name].entry.last, name)):
        if len(kept) - len(gone) <= entries and bytes_left <= size:
            break
        gone.append(name)
        bytes_left -= kept[name].size
    return gone


def _redacted(text: str, patterns: Sequence[str]) -> str:
    for pattern in patterns:
        try:
            text = re.sub(pattern, REDACTED, text)
        except re.error as error:
            raise ConfigError(f"'{pattern}' is no regular expression ({error}); mend it") from None
    return text


def _is_text(turns: Sequence[Turn]) -> bool:
    try:
        "".join(turn.content for turn in turns).encode()
    except UnicodeEncodeError:
        return False
    return True


def _turns(turns: Sequence[Turn]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def _body(entry: InboxEntry) -> bytes:
    values = {
        "turns": _turns(entry.turns),
        "count": entry.count,
        "first": entry.first,
        "last": entry.last,
    }
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _entry(file: Path) -> InboxEntry:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        turns = tuple(Turn(each["role"], each["content"]) for each in values["turns"])
        entry = InboxEntry(turns, int(values["count"]), values["first"], values["last"])
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{file} is no prompt of an inbox; remove it") from error
    if entry.key != file.stem:
        raise ArtifactError(f"{file} is damaged: its contents do not match its name; remove it")
    return entry


def _row(example: Example) -> bytes:
    """A row as `text.formats` reads it."""
    values: dict[str, Any] = {"messages": _turns(example.turns), "check": example.check}
    if example.tests:
        values["tests"] = list(example.tests)
    try:
        return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    except UnicodeEncodeError as error:
        raise DataError(
            f"{example.origin or 'a row'} holds text that is not valid Unicode ({error.reason}); "
            "mend or remove the row"
        ) from error


def _keys_of(body: bytes) -> set[str]:
    rows = (json.loads(line)["messages"] for line in body.split(b"\n")[:-1])
    return {turns_key([Turn(each["role"], each["content"]) for each in row]) for row in rows}
