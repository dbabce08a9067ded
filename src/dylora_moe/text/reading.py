"""Reads data files into examples; every error says file and line.

Knows files and encodings; what a row means is `formats`' business. Rows are read one at a time
where the file allows it, so `max_examples` of a large file is quick.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from dylora_moe.errors import DataError, MissingExtraError
from dylora_moe.records import Example
from dylora_moe.text.formats import recognise, to_example

_log = logging.getLogger(__name__)

Numbered = Iterator[tuple[int, dict[str, Any]]]
"""Rows with the line they begin at, counted from 1 (in a Parquet file: the row's number)."""


def read_examples(path: Path, max_examples: int | None = None, *, skip: int = 0) -> list[Example]:
    """Reads the rows of one file in their order, each distinct row once.

    Args:
        path: .jsonl (also .ndjson), .jsonl.gz, .json, .csv, .parquet or .txt (one row a paragraph).
        max_examples: stop after this many distinct rows; later rows are not looked at.
        skip: leave out this many distinct rows first, so that slices of a file never overlap.

    Raises:
        DataError: the file is missing, empty, corrupt or not UTF-8, a row is malformed, its format
            differs from the first row's, or `skip` leaves nothing. One line, `file:line` first.
    """
    if skip < 0 or (max_examples is not None and max_examples < 1):
        raise DataError(f"{path}: max_examples must be at least 1 and skip at least 0")
    wanted = None if max_examples is None else skip + max_examples
    found: dict[str, Example] = {}
    repeated = 0
    for example in _examples(path):
        if example.key in found:
            repeated += 1
            continue
        found[example.key] = example
        if len(found) == wanted:
            break
    if not found:
        raise DataError(f"{path}: the file holds no rows; write at least one")
    if repeated:
        _log.info("%s: %d repeated rows kept once", path, repeated)
    rows = list(found.values())[skip:]
    if not rows:
        raise DataError(f"{path}: skip={skip} leaves none of its {len(found)} rows; lower it")
    return rows


def _examples(path: Path) -> Iterator[Example]:
    kind, first_line = None, 0
    try:
        for line, row in _rows(path):
            origin = f"{path}:{line}"
            try:
                found = recognise(row)
            except DataError as error:
                raise DataError(f"{origin}: {error}") from None
            kind, first_line = kind or found, first_line or line
            if found != kind:
                raise DataError(
                    f"{origin}: mixed formats: this row is {found}, line {first_line} is {kind}; "
                    "put them into separate files"
                )
            yield to_example(row, kind, origin)
    except OSError as error:
        # BadGzipFile is one of these, and so is a file that vanishes while it is read.
        reason = error.strerror or str(error)
        raise DataError(f"{path}: cannot be read: {reason}; check path and rights") from None


def _rows(path: Path) -> Numbered:
    if not path.exists():
        raise DataError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise DataError(f"{path}: is a folder; name the files in it")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; write at least one row")
    name = path.name.lower()
    for ending, reader in _READERS.items():
        if name.endswith(ending):
            return reader(path)
    raise DataError(f"{path}: unknown kind of file; use one of {', '.join(_READERS)}")


def _jsonl(path: Path) -> Numbered:
    with path.open("rb") as file:
        yield from _json_lines(path, file)


def _jsonl_gz(path: Path) -> Numbered:
    with gzip.open(path, "rb") as file:
        try:
            yield from _json_lines(path, file)
        except (EOFError, zlib.error) as error:
            raise DataError(f"{path}: damaged gzip file ({error}); fetch it again") from None


def _json_lines(path: Path, lines: Iterable[bytes]) -> Numbered:
    for number, raw in enumerate(lines, start=1):
        line = _decode(raw, path, number).strip()
        if not line:
            continue
        try:
            yield number, _object(json.loads(line), path, number)
        except json.JSONDecodeError as error:
            raise _corrupt(path, number, error) from None
        except RecursionError:
            raise _too_deep(path, number) from None


def _json(path: Path) -> Numbered:
    body = _decode(path.read_bytes(), path, 1)
    start = _skip_space(body, 0)
    if not body.startswith("[", start):
        # Many a file called .json holds one object a line.
        return _json_lines(path, (line.encode() for line in body.split("\n")))
    return _json_list(body, start + 1, path)


def _json_list(body: str, position: int, path: Path) -> Numbered:
    """Walks a list object by object, so that a row's error can name its line."""
    decoder = json.JSONDecoder()
    line, counted, first = 1, 0, True
    while True:
        position = _skip_space(body, position)
        if body.startswith("]", position):
            break
        if not first:
            if not body.startswith(",", position):
                error = json.JSONDecodeError("expected ',' or ']'", body, position)
                raise _corrupt(path, error.lineno, error)
            position = _skip_space(body, position + 1)
        line, counted = line + body.count("\n", counted, position), position
        try:
            value, position = decoder.raw_decode(body, position)
        except json.JSONDecodeError as error:
            raise _corrupt(path, error.lineno, error) from None
        except RecursionError:
            raise _too_deep(path, line) from None
        first = False
        yield line, _object(value, path, line)


def _csv(path: Path) -> Numbered:
    body = _decode(path.read_bytes(), path, 1)
    reader = csv.DictReader(io.StringIO(body, newline=""), strict=True)
    start = 2
    try:
        for row in reader:
            if None in row or None in row.values():
                raise DataError(
                    f"{path}:{start}: the row's cells do not match the header; quote cells that "
                    "hold commas or line breaks"
                )
            yield start, row
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{start}: corrupt CSV ({error}); mend the row") from None


def _parquet(path: Path) -> Numbered:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtraError(f"{path}: Parquet needs pyarrow; pip install pyarrow") from None
    try:
        number = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: corrupt Parquet file ({reason}); write it again") from None


def _txt(path: Path) -> Numbered:
    body = _decode(path.read_bytes(), path, 1)
    for match in re.finditer(r"\S.*?(?=\r?\n[ \t]*\r?\n|\s*\Z)", body, re.DOTALL):
        yield body.count("\n", 0, match.start()) + 1, {"text": match.group().strip()}


_READERS: dict[str, Callable[[Path], Numbered]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".jsonl.gz": _jsonl_gz,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
    ".txt": _txt,
}


def _decode(raw: bytes, path: Path, line: int) -> str:
    try:
        return raw.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        raise DataError(
            f"{path}:{line}: not UTF-8 (byte 0x{raw[error.start]:02x}); save the file as UTF-8"
        ) from None


def _object(value: Any, path: Path, line: int) -> dict[str, Any]:
    if not isinstance(value, dict):
        found = type(value).__name__
        raise DataError(
            f'{path}:{line}: a row must be an object like {{"prompt": ...}}, not {found}'
        )
    return value


def _corrupt(path: Path, line: int, error: json.JSONDecodeError) -> DataError:
    return DataError(
        f"{path}:{line}: corrupt JSON ({error.msg} at column {error.colno}); mend or remove the row"
    )


def _too_deep(path: Path, line: int) -> DataError:
    return DataError(f"{path}:{line}: the JSON is nested too deeply; mend or remove the row")


def _skip_space(body: str, position: int) -> int:
    while position < len(body) and body[position] in " \t\r\n":
        position += 1
    return position
