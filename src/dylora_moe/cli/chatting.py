"""`dylora chat`: a conversation at the terminal, or with what is piped in."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout, suppress
from typing import TYPE_CHECKING, Any

from dylora_moe.cli import opening
from dylora_moe.cli.answering import (
    Expert,
    Explain,
    NewTokens,
    SampleSeed,
    Stop,
    Temperature,
    TopK,
    TopP,
    explanation,
)
from dylora_moe.cli.options import AsJson, Device, Dtype, PoolFolder
from dylora_moe.cli.output import Output, command
from dylora_moe.errors import ConfigError, DyLoRAError
from dylora_moe.records import BASE_NAME, Turn

if TYPE_CHECKING:
    from dylora_moe.build.pool import Pool
    from dylora_moe.lifecycle.results import Answer

HELP = """\
/expert NAME  answer with this expert (or base); /expert alone lets the router choose again
/explain      show each expert's weight after every answer, or no longer
/reset        forget the conversation
/quit         leave (as does the end of input)"""


def chat(
    pool: PoolFolder,
    expert: Expert = None,
    max_new_tokens: NewTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    seed: SampleSeed = None,
    stop: Stop = None,
    explain: Explain = False,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Talk to the pool; every answer says which expert gave it."""
    with (
        command(as_json) as output,
        opening.open_pool(pool, device=device, dtype=dtype) as opened,
    ):
        options = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "seed": seed,
            "stop": tuple(stop or ()),
        }
        conversation = Conversation(opened, output, options, explain)
        conversation.choose(expert or "")
        conversation.run(interactive=sys.stdin.isatty())
        if as_json:
            output.show({"turns": conversation.said}, lambda console: None)


class Conversation:
    """The state of a chat: the turns, which expert is pinned, what is shown.

    Attributes:
        said: every question and answer so far, of resets too, as JSON values.
    """

    def __init__(
        self, pool: Pool, output: Output, options: dict[str, Any], explain: bool = False
    ) -> None:
        self._pool, self._output, self._options = pool, output, options
        self._explain = explain
        self._expert: str | None = None
        self._turns: list[Turn] = []
        self.said: list[dict[str, Any]] = []

    def run(self, *, interactive: bool) -> None:
        """Reads lines until the end of input or `/quit`.

        Raises:
            DyLoRAError: an error where nobody sits at the terminal; else it is shown.
        """
        if interactive:
            with suppress(ImportError):
                # Imported for its effect: lines can be edited and called back.
                import readline  # noqa: F401
            self._tell("An empty pool answers as its base. /help lists the commands.\n")
        while True:
            line = self._read(interactive)
            if line is None:
                return
            try:
                if not self.take(line):
                    return
            except DyLoRAError as error:
                if not interactive:
                    raise
                self._tell(f"error: {error}\n")

    def take(self, line: str) -> bool:
        """Takes one line: a command or a question. False when the conversation is over.

        Raises:
            ConfigError: an unknown command, or no such expert.
        """
        text = line.strip()
        word, _, rest = text.partition(" ")
        if not text:
            return True
        if word == "/quit":
            return False
        if word == "/reset":
            self._turns.clear()
            self._tell("[forgotten]\n")
        elif word == "/explain":
            self._explain = not self._explain
            self._tell(f"[explanations {'on' if self._explain else 'off'}]\n")
        elif word == "/expert":
            self.choose(rest.strip())
            self._tell(f"[{self._expert or 'the router chooses'}]\n")
        elif word == "/help":
            self._tell(HELP + "\n")
        elif word.startswith("/"):
            raise ConfigError(f"no command {word}; /help lists them")
        else:
            self._answer(text)
        return True

    def choose(self, name: str) -> None:
        """Pins an expert or the base; an empty name lets the router choose.

        Raises:
            ConfigError: the pool has no such expert.
        """
        known = [BASE_NAME, *(expert.alias for expert in self._pool.experts())]
        if name and name not in known:
            raise ConfigError(f"no expert '{name}'; there are: {', '.join(known)}")
        self._expert = name or None

    def _answer(self, text: str) -> None:
        asked = [*self._turns, Turn("user", text)]
        stream = self._pool.stream(asked, expert=self._expert, **self._options)
        out, spoken = self._output, ""
        try:
            for piece in stream:
                spoken += piece
                self._write(piece)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            # The person has read enough of this answer; the conversation goes on without it.
            self._write("\n")
            self._tell("[stopped]\n")
            return
        answer: Answer = stream.answer
        self._write("" if spoken.endswith("\n") else "\n")
        version = "" if answer.version is None else f" v{answer.version}"
        told = explanation(answer) if self._explain else f"{answer.expert}{version}"
        self._write(f"[{told}]\n")
        self._turns = [*asked, Turn("assistant", answer.text)]
        if out.as_json:
            from dylora_moe.cli.output import plain

            self.said += [{"role": "user", "text": text}, {"role": "assistant", **plain(answer)}]

    def _read(self, interactive: bool) -> str | None:
        if not interactive:
            line = sys.stdin.readline()
            return line or None
        try:
            # On the real stdout: elsewhere `input` reads without history and editing.
            with redirect_stdout(self._output.stream):
                return input("> ")
        except EOFError:
            self._write("\n")
            return None

    def _write(self, text: str) -> None:
        """To stdout as it comes, unless a document will be printed there."""
        if not self._output.as_json:
            self._output.stream.write(text)
            self._output.stream.flush()

    def _tell(self, text: str) -> None:
        """To stderr: what is no part of the conversation."""
        sys.stderr.write(text)
        sys.stderr.flush()
