"""Examples in the body of a request: rows of any format that training data has.

Knows what may be sent; rows are never read from a file that a request names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from dylora_moe.errors import DataError
from dylora_moe.records import Example
from dylora_moe.serving.http.errors import ApiError, bad
from dylora_moe.text.formats import recognise, to_example

MOST = 4096
"""Rows of one request; its bytes are bounded for all requests."""

Rows = Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MOST)]
ExpertName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")]
ShortId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,100}$")]


class Strict(BaseModel):
    """A body whose every field is known, each of just its type."""

    model_config = ConfigDict(extra="forbid", strict=True)


def examples_of(
    rows: Sequence[dict[str, Any]], param: str = "examples", run_tests: bool = False
) -> list[Example]:
    """The rows, each distinct one once.

    Args:
        run_tests: whether they may carry tests, which are Python that is run on this machine.

    Raises:
        ApiError: one is malformed, of another format than the first, or carries tests that it may
            not.
    """
    found: dict[str, Example] = {}
    kind = None
    for number, row in enumerate(rows):
        place = f"{param}.{number}"
        try:
            own = recognise(row)
            kind = kind or own
            if own != kind:
                raise DataError(f"the row is {own} and the first is {kind}; send one format")
            example = to_example(row, own)
        except DataError as error:
            raise bad(f"{place}: {error}", place) from None
        except (TypeError, ValueError, AttributeError):
            raise bad(f"{place}: the row is malformed", place) from None
        if example.tests and not run_tests:
            message = (
                f"{place}: tests are Python that the server would run, which it does not; leave "
                "them out, or have run_tests set in its settings"
            )
            raise bad(message, place)
        found.setdefault(example.key, example)
    return list(found.values())


def missing(what: str) -> ApiError:
    """There is nothing of that id."""
    return ApiError(404, f"there is no such {what}; list them to see those there are")
