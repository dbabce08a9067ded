from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from dylora_moe.cli import opening
from dylora_moe.cli.serving import hints, take_back
from dylora_moe.errors import PoolError
from dylora_moe.serving.engine.notes import Note
from dylora_moe.serving.taking_back import Failed
from tests.cli.conftest import Cli
from tests.docs_reading import ROOT
from tests.serving import doubles

SERVE = """
import sys
from dylora_moe.cli import main, opening
from tests.serving import doubles
opening.open_served = lambda *a, **k: doubles.served(pause=0.02)
sys.exit(main.run(["serve", "pool", "--port", "0", *sys.argv[1:]]))
"""


class Process:
    """`dylora serve` over the double, in a process of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, *options],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said: list[str] = []
        self.url = self.read_until(r"at (http://\S+);").group(1)
        self.read_until("ready; ask it:")

    def read_until(self, pattern: str) -> re.Match[str]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            found = re.search(pattern, line)
            if found:
                return found
        raise AssertionError("".join(self.said) + (self.process.stderr or sys.stdin).read())

    def ask(self, into: list[Any], tokens: int) -> threading.Thread:
        """Asks for so many tokens, in a thread."""
        body = {"model": "base", "prompt": doubles.ENDLESS, "max_tokens": tokens, "stream": True}

        def work() -> None:
            try:
                answer = httpx.post(f"{self.url}/v1/completions", json=body, timeout=60)
                into.append(answer.text)
            except httpx.TransportError as error:
                into.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        return thread

    def running(self, number: int) -> None:
        """Waits until so many answers are being written."""
        for _ in range(600):
            text = httpx.get(f"{self.url}/metrics").text
            if f"dylora_num_requests_running {number}.0" in text:
                return
        raise AssertionError(text)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    made = Process(tmp_path)
    yield made
    made.process.kill()
    made.process.communicate()


def test_a_signal_under_load_finishes_what_runs_and_ends_with_0(process: Process) -> None:
    answers: list[Any] = []
    threads = [process.ask(answers, 250) for _ in range(6)]
    process.running(4)
    process.process.send_signal(signal.SIGTERM)
    codes = set()
    for _ in range(200):
        codes.add(httpx.get(f"{process.url}/ready").status_code)
        if codes >= {503}:
            break
    assert httpx.get(f"{process.url}/health").status_code == 200
    refused = httpx.post(f"{process.url}/v1/completions", json={"model": "base", "prompt": "a"})
    assert refused.status_code == 503
    for thread in threads:
        thread.join()
    out, err = process.process.communicate(timeout=60)
    assert process.process.returncode == 0, err
    assert out.endswith("stopped; everything that ran was finished\n")
    assert len(answers) == 6
    assert all("[DONE]" in answer and answer.count('"on "') == 250 for answer in answers)


def test_a_second_signal_ends_at_once(process: Process) -> None:
    answers: list[Any] = []
    thread = process.ask(answers, 1000)
    process.running(1)
    process.process.send_signal(signal.SIGTERM)
    for _ in range(200):
        if httpx.get(f"{process.url}/ready").status_code == 503:
            break
    process.process.send_signal(signal.SIGINT)
    process.process.communicate(timeout=20)
    assert process.process.returncode == 128 + signal.SIGINT
    thread.join()
    assert "[DONE]" not in str(answers)


def test_what_cannot_be_finished_in_time_is_said(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("drain_seconds: 0.2\n", encoding="utf-8")
    process = Process(tmp_path, "--config", str(file))
    answers: list[Any] = []
    thread = process.ask(answers, 1000)
    process.running(1)
    process.process.send_signal(signal.SIGTERM)
    _, err = process.process.communicate(timeout=60)
    thread.join()
    assert process.process.returncode == 2
    assert "some answers were not finished within 0.2 s" in err
    assert "[DONE]" not in str(answers)


def test_a_pool_that_is_not_there_is_one_line(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise PoolError("no pool in x; make one with: dylora init x")

    monkeypatch.setattr(opening, "open_served", missing)
    ran = cli("serve", tmp_path, "--port", 0)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.endswith("error: no pool in x; make one with: dylora init x\n")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--host", "0.0.0.0"], "there is no API key"),
        (["--host", "no.such.host.invalid", "--api-key-file", "KEYS"], "cannot serve at"),
        (["--config", "missing.yaml"], "no such file of settings"),
        (["--api-key-file", "missing"], "no file with an API key"),
    ],
)
def test_a_server_that_may_not_start_says_why(
    options: list[str], told: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DYLORA_API_KEY", raising=False)
    keys = tmp_path / "keys"
    keys.write_text("k" * 32, encoding="utf-8")
    ran = cli("serve", tmp_path, *[str(keys) if each == "KEYS" else each for each in options])
    assert ran.code == 2
    assert told in ran.err


def test_a_pool_called_base_needs_another_name(cli: Cli, tmp_path: Path) -> None:
    ran = cli("serve", tmp_path / "base")
    assert ran.code == 2
    assert "cannot be told from its base" in ran.err


def test_a_port_that_is_taken_is_one_line(cli: Cli, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ran = cli("serve", tmp_path, "--port", taken.getsockname()[1])
    assert ran.code == 2
    assert "choose another with --host or --port" in ran.err


def test_the_hint_shows_the_key_only_where_one_is_needed() -> None:
    assert "Authorization" in "\n".join(hints("pool", "http://x", True))
    assert "Authorization" not in "\n".join(hints("pool", "http://x", False))


def test_a_version_that_failed_its_trial_is_to_be_taken_out_of_the_pool_itself() -> None:
    asked: list[Failed] = []

    class Taking:
        def add(self, failed: Failed) -> None:
            asked.append(failed)

    numbers = {"expert": "letters", "expert_id": "expert_1", "version": 3, "back_to": 2}
    note = Note("canary rolled back", "letters@3 is taken back", numbers)
    take_back(Taking(), note)  # type: ignore[arg-type]
    assert asked == [Failed("expert_1", "letters", version=3, back_to=2)]
