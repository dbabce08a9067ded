from __future__ import annotations

import io
import sys

import pytest

from dylora_moe.records import Turn
from tests.cli.conftest import Cli
from tests.cli.fakes import FakePool


def piped(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))


def test_a_piped_chat_answers_line_by_line_and_says_which_expert(
    cli: Cli, pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(monkeypatch, "hello", "", "more")
    ran = cli("chat", "pool")
    assert ran.code == 0
    assert ran.out == "answer to hello \n[orders v1]\nanswer to more \n[orders v1]\n"


def test_the_conversation_is_handed_on_and_reset_forgets_it(
    cli: Cli, pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(monkeypatch, "one", "two", "/reset", "three", "/quit", "four")
    cli("chat", "pool", "--temperature", 0.5, "--stop", "END")
    asked = [call["turns"] for call in pool.called("stream")]
    assert asked == [
        [Turn("user", "one")],
        [Turn("user", "one"), Turn("assistant", "answer to one"), Turn("user", "two")],
        [Turn("user", "three")],
    ]
    assert pool.called("stream")[0]["temperature"] == 0.5
    assert pool.called("stream")[0]["stop"] == ("END",)


def test_expert_pins_and_lets_go(cli: Cli, pool: FakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    piped(monkeypatch, "/expert base", "one", "/expert", "two")
    ran = cli("chat", "pool", "--expert", "orders")
    assert [call["expert"] for call in pool.called("stream")] == ["base", None]
    assert "[base]" in ran.out


def test_explain_shows_weights_and_the_probability_of_none(
    cli: Cli, pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(monkeypatch, "/explain", "one", "/explain", "two")
    out = cli("chat", "pool").out
    assert "[orders v1 · orders 0.97 · none 0.02]" in out
    assert out.endswith("[orders v1]\n")


@pytest.mark.parametrize("line", ["/expert nobody", "/nonsense"])
def test_a_mistake_in_a_script_is_an_error(
    line: str, cli: Cli, pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(monkeypatch, line, "one")
    ran = cli("chat", "pool")
    assert ran.code == 2
    assert ran.err.splitlines()[-1].startswith("error: no ")
    assert not pool.called("stream")


def test_a_mistake_at_the_terminal_is_told_and_the_chat_goes_on(
    cli: Cli, pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(["/expert nobody", "one"])

    def typed(prompt: str) -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", typed)
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdin", terminal)
    ran = cli("chat", "pool")
    assert ran.code == 0
    assert "error: no expert 'nobody'; there are: base, orders" in ran.err
    assert "answer to one" in ran.out


def test_chat_with_json_is_one_document(
    cli: Cli, pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(monkeypatch, "/help", "one", "/reset")
    turns = cli("chat", "pool", "--json").document["turns"]
    assert [turn["role"] for turn in turns] == ["user", "assistant"]
    assert turns[1]["expert"] == "orders"
