"""What a server says of itself: one JSON object a line, without prompts unless told.

Knows how a line is made; what happened is said by whoever saw it.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from dylora_moe.serving.engine.notes import Note

LOGGER = logging.getLogger("dylora_moe.serving")


class JsonLines(logging.Formatter):
    """A record as one line of JSON: time, level, event, and what belongs to it."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", None)
        if fields is None:
            # A library's, or one of the engine's own.
            fields = {"logger": record.name, "message": record.getMessage()}
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "message"),
            **fields,
        }
        if record.exc_info:
            line["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(line, default=str)


def log_event(name: str, /, level: int = logging.INFO, **fields: Any) -> None:
    """Says that something happened."""
    LOGGER.log(level, name, extra={"event": name, "fields": fields})


def log_failure(error: BaseException | str) -> str:
    """Says that something went wrong here; returns the id under which it stands in the log."""
    number = uuid.uuid4().hex[:12]
    exception = error if isinstance(error, BaseException) else None
    LOGGER.error(
        "error",
        extra={"event": "error", "fields": {"id": number, "message": str(error)}},
        exc_info=exception,
    )
    return number


def log_note(note: Note) -> None:
    """Says what the engine told; of a strange prompt no word, only that there was one."""
    level = logging.ERROR if note.kind == "error" else logging.INFO
    name = f"engine_{note.kind.replace(' ', '_')}"
    log_event(name, level, message=note.message, numbers=dict(note.numbers))


def write_logs(file: Path | None, stream: TextIO | None = None) -> None:
    """Sends the lines to a file, or to stderr; called once by the command.

    Raises:
        OSError: the file cannot be written.
    """
    handler: logging.Handler
    if file is not None:
        handler = logging.FileHandler(file, encoding="utf-8")
    else:
        handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    for logger, level in ((LOGGER, logging.INFO), (logging.getLogger("uvicorn"), logging.WARNING)):
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False
