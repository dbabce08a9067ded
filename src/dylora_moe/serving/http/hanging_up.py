"""Work that ends when whoever asked for it is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

T = TypeVar("T")


class HungUpError(OSError):
    """The client is gone."""


async def unless_hung_up(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Does the work; cancels it as soon as the client is gone.

    Args:
        receive: the connection, of which the whole body was read.

    Raises:
        HungUpError: the client is gone.
    """
    doing = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_hung_up(receive))
    try:
        await asyncio.wait({doing, watching}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise HungUpError("the client is gone")
    finally:
        for task in (doing, watching):
            task.cancel()
        await asyncio.gather(doing, watching, return_exceptions=True)


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
