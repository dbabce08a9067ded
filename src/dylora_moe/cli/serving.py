"""`dylora serve`: a pool as a service, until a signal ends it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dylora_moe.cli import opening
from dylora_moe.cli.options import Device, Dtype, PoolFolder
from dylora_moe.cli.output import command
from dylora_moe.errors import ConfigError, DyLoRAError, UnavailableError
from dylora_moe.records import BASE_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dylora_moe.serving.engine.notes import Note
    from dylora_moe.serving.http.server import Server
    from dylora_moe.serving.inbox import InboxWriter
    from dylora_moe.serving.served import Served
    from dylora_moe.serving.settings import ServeSettings
    from dylora_moe.serving.taking_back import Failed, TakingBack

LOOK = 0.1
"""Seconds between two looks at the engine."""


def serve(
    pool: PoolFolder,
    host: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Where to listen; 127.0.0.1, this machine alone."),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="8000 by itself; 0: any that is free.")
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keys, one a line; clients need one of them."),
    ] = None,
    admin_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keys, one a line; who has one may change the pool."),
    ] = None,
    manage: Annotated[
        bool, typer.Option("--manage", help="Let it be changed without a key, on 127.0.0.1 alone.")
    ] = False,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML with every setting there is.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Serve the pool with OpenAI's API, metrics and a log; Ctrl-C ends it in good order.

    What another process learns into the pool is picked up while it is served.
    """
    with command(False) as output:
        from dylora_moe.serving.settings import read_admin_keys, read_keys, read_settings

        settings = read_settings(
            config,
            host=host,
            port=port,
            api_key_file=api_key_file,
            admin_key_file=admin_key_file,
            manage=manage or None,
        )
        keys = read_keys(settings)
        admin_keys = read_admin_keys(settings, keys)
        if (settings.name or pool.resolve().name) == BASE_NAME:
            raise ConfigError(
                f"a pool called {BASE_NAME} cannot be told from its base; give it a name in the "
                "settings: dylora serve POOL --config FILE with name: my-pool"
            )

        def say(line: str) -> None:
            print(line, file=output.stream, flush=True)

        _serve(Asked(pool, device, dtype), settings, Keys(keys, admin_keys), say)


@dataclass(frozen=True)
class Asked:
    """Which pool is to be served, and on what."""

    pool: Path
    device: str | None
    dtype: str | None


@dataclass(frozen=True)
class Keys:
    """Of those who ask, and of those who may change the pool."""

    clients: list[str]
    admins: list[str]


def _serve(asked: Asked, settings: ServeSettings, keys: Keys, say: Callable[[str], None]) -> None:
    """Serves until a signal comes, or the engine breaks down.

    Raises:
        ConfigError: the address is taken.
        PoolError: no pool there.
        UnavailableError: the engine broke down, or could not finish what ran.
    """
    from dylora_moe.serving.http import managing
    from dylora_moe.serving.http.app import Stopping, create_app
    from dylora_moe.serving.http.logs import log_event, log_note, write_logs
    from dylora_moe.serving.http.server import Server, bound, url_of

    write_logs(settings.log.file)
    # The last one alone: it is what a server that ends by itself ends with.
    errors: deque[str] = deque(maxlen=1)
    writers: list[InboxWriter] = []
    taking: list[TakingBack] = []

    def noted(note: Note) -> None:
        if note.kind == "error":
            errors.append(note.message)
        if note.kind == "strange" and writers:
            writers[0].offer(note.turns)
        log_note(note)
        if note.kind == "canary rolled back" and taking:
            take_back(taking[0], note)

    with bound(settings.host, settings.port) as listening:
        served = opening.open_served(
            asked.pool, settings, device=asked.device, dtype=asked.dtype, on_note=noted
        )
        writers += _writers(served, settings)
        taking += _taking_back(served)
        stopping, url = Stopping(), url_of(listening)
        groups = managing.routers(served, settings.run_tests)
        app = create_app(
            served, settings, keys.clients, keys.admins, stopping=stopping, groups=groups
        )
        say(f"serving {served.name} at {url}; loading the pool (Ctrl-C ends it)")
        log_event("started", pool=served.name, url=url, keys=len(keys.clients))

        def started() -> None:
            lines = hints(served.name, url, bool(keys.clients))
            watch = (served, server, errors, lambda: say("\n".join(lines)))
            threading.Thread(target=_watch_engine, args=watch, daemon=True).start()

        server = Server(
            app,
            served.engine,
            stopping,
            settings,
            started,
            on_stopping=lambda: _end_jobs(served, taking),
            on_killed=served.jobs.kill if served.jobs is not None else lambda: None,
        )
        server.run(sockets=[listening])
        _put_away(served, writers, taking)
    if not stopping.begun:
        raise UnavailableError(errors[-1] if errors else "the server could not begin")
    if not server.finished:
        raise UnavailableError(
            f"some answers were not finished within {settings.drain_seconds:g} s and were broken "
            "off; drain_seconds in the settings gives them longer"
        )
    say("stopped; everything that ran was finished")


def take_back(taking: TakingBack, note: Note) -> None:
    """Has the pool itself put the version before a failed trial into service; the engine answers by
    it already. Neither waits nor raises."""
    from dylora_moe.serving.taking_back import Failed

    told = note.numbers
    taking.add(Failed(told["expert_id"], told["expert"], told["version"], told["back_to"]))


def _taking_back(served: Served) -> list[TakingBack]:
    """What takes failed versions out of the pool: one, or none where nobody may change it."""
    if served.jobs is None:
        return []
    from dylora_moe.serving.http.logs import log_event
    from dylora_moe.serving.taking_back import TakingBack

    def trouble(why: str) -> None:
        log_event("error", logging.ERROR, message=why)

    return [TakingBack(served.pool.registry, served.jobs, trouble)]


def _writers(served: Served, settings: ServeSettings) -> list[InboxWriter]:
    """What writes strange prompts down: one, or none where they are not to be kept."""
    if not settings.inbox.enabled:
        return []
    from dylora_moe.serving.http.logs import log_event
    from dylora_moe.serving.inbox import InboxBounds, InboxWriter

    def lost(why: str) -> None:
        log_event("inbox_lost", logging.WARNING, message=f"prompts are not kept: {why}")

    asked = settings.inbox
    bounds = InboxBounds(asked.entries, asked.bytes, asked.redact)
    return [InboxWriter(served.pool.inbox, bounds, lost)]


def _put_away(served: Served, writers: list[InboxWriter], taking: list[TakingBack]) -> None:
    """Ends everything beside the engine, which is drained by now."""
    from dylora_moe.serving.http.logs import log_event

    with ExitStack() as stack:
        # Whatever goes wrong with one, the others are ended all the same.
        stack.callback(served.pool.close)
        for writer in writers:
            stack.callback(writer.close)
        _end_jobs(served, taking)
        for failed in _left(taking):
            told = (
                f"{failed.alias}@{failed.version} failed its trial and is still in service in the "
                f"pool; take it back: dylora experts promote POOL {failed.alias} {failed.back_to}"
            )
            log_event("error", logging.ERROR, message=told)


def _left(taking: list[TakingBack]) -> list[Failed]:
    """Failed versions that are still in service in the pool."""
    try:
        return [one for each in taking for one in each.left()]
    except DyLoRAError:
        # The pool cannot be asked any more; everything was finished all the same.
        return []


def _end_jobs(served: Served, taking: list[TakingBack]) -> None:
    """Ends what changes the pool; at the second time there is nothing left to do."""
    # First: a job that is cancelled here is one that nobody wanted to be cancelled.
    for each in taking:
        each.stop()
    if served.jobs is not None:
        served.jobs.stop()


def hints(name: str, url: str, keyed: bool) -> list[str]:
    """How to ask, to be copied into a terminal."""
    header = "-H 'Authorization: Bearer '\"$DYLORA_API_KEY\" " if keyed else ""
    return [
        "ready; ask it:",
        f"  curl {url}/v1/chat/completions {header}-H 'content-type: application/json' \\",
        f"""    -d '{{"model": "{name}", "messages": [{{"role": "user", "content": "Hello"}}]}}'""",
        f"  who may be asked: {url}/v1/models   metrics: {url}/metrics",
    ]


def _watch_engine(
    served: Served, server: Server, errors: Sequence[str], on_ready: Callable[[], object]
) -> None:
    """Says when requests are taken; ends the server where the engine has broken down."""
    said = False
    while not server.should_exit:
        ready = served.engine.state().ready
        if ready and not said:
            on_ready()
            said = True
        if errors and not ready and not server.stopping:
            # Nobody would be answered any more; whoever keeps the process running starts it anew.
            server.should_exit = True
        time.sleep(LOOK)
