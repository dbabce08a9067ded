"""`dylora`: the commands in one place, and the process around them.

Importing this and rendering any `--help` loads no model library.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, cast

import typer
from typer.core import TyperGroup
from typer.main import get_command

from dylora_moe import __version__
from dylora_moe.cli import bench, data, experts, inbox
from dylora_moe.cli.answering import generate
from dylora_moe.cli.chatting import chat
from dylora_moe.cli.console import quiet_libraries, tell_warnings
from dylora_moe.cli.doctor import doctor
from dylora_moe.cli.evaluating import evaluate
from dylora_moe.cli.failure import Failure, failure_of
from dylora_moe.cli.learning import learn, plan
from dylora_moe.cli.output import Output
from dylora_moe.cli.pools import init
from dylora_moe.cli.reporting import report
from dylora_moe.cli.serving import serve
from dylora_moe.cli.tuning import tune

app = typer.Typer(
    name="dylora",
    help="One frozen language model, a pool of LoRA experts that grows by itself, and a router "
    "that knows which expert an input needs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command()(init)
app.command()(plan)
app.command()(learn)
app.command()(tune)
app.command("eval")(evaluate)
app.command()(generate)
app.command()(chat)
app.command()(serve)
app.add_typer(experts.app, name="experts")
app.add_typer(inbox.app, name="inbox")
app.command()(report)
app.command()(doctor)
app.add_typer(data.app, name="data")
app.add_typer(bench.app, name="bench")

# Typer exports only this one of its usage errors; its parent is the class of them all, and all say
# what is wrong in the same way.
_UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__bases__[0])


def _version(asked: bool) -> None:
    if asked:
        print(f"dylora {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Holds the options of `dylora` itself; typer takes the help text from the app."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line and returns the exit code; see `failure` for the codes."""
    typed = list(sys.argv[1:] if arguments is None else arguments)
    quiet_libraries()
    tell_warnings()
    try:
        code = app(typed, prog_name="dylora", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError as error:
        code = failure_of(error).code
    except typer.Abort:
        code = _told(failure_of(KeyboardInterrupt()), typed)
    except _UsageError as error:
        code = _told(_usage(error, typed), typed)
    if code == 141:
        _forget_stdout()
    return code if isinstance(code, int) else 0


def _usage(error: typer.BadParameter, typed: Sequence[str]) -> Failure:
    """A usage error, with the help that would have prevented it."""
    fact = " ".join(error.format_message().split())
    if not fact:
        # A group without a command: its help was printed, and that is all there is to say.
        return Failure(2, "UsageError", "a command is missing", "")
    stop = "" if fact.endswith((".", "?", "!")) else "."
    message = f"{fact}{stop} See {' '.join(['dylora', *_path_of(typed)])} --help"
    return Failure(2, "UsageError", message, f"error: {message}")


def _path_of(typed: Sequence[str]) -> list[str]:
    """The words that name a command: `experts show` of `experts show POOL --json`."""
    path: list[str] = []
    here: object = get_command(app)
    for word in typed:
        if not isinstance(here, TyperGroup) or word not in here.commands:
            break
        here = here.commands[word]
        path.append(word)
    return path


def _told(failure: Failure, typed: Sequence[str]) -> int:
    Output("--json" in typed, sys.stdout).fail(failure)
    return failure.code


def _forget_stdout() -> None:
    """The reader went away: what is still buffered has nowhere to go, so that the interpreter does
    not complain about it at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(run())
