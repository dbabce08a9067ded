"""From traffic of a skill that the pool lacks to an expert that answers it, without a restart."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from dylora_moe.build.pool import Pool
from dylora_moe.cli import opening
from dylora_moe.parsing import parse
from dylora_moe.serving.http import managing
from dylora_moe.serving.http.app import create_app
from dylora_moe.serving.inbox import InboxBounds, InboxWriter
from dylora_moe.serving.settings import ServeSettings
from tests.pools import DIGITS, LETTERS, SIGNS, rows

OLDER = [row.prompt for row in (*rows(LETTERS, 4, 21), *rows(DIGITS, 4, 22))]
NEW = [row.prompt for row in rows(SIGNS, 48, 23)]


class Client:
    """What a client of the server sees."""

    def __init__(self, http: TestClient, model: str) -> None:
        self.http, self._model = http, model

    def ask(self, prompt: str, model: str | None = None) -> tuple[str, dict[str, Any]]:
        """Text and provenance of a greedy answer."""
        body = {"model": model or self._model, "prompt": prompt, "max_tokens": 6, "temperature": 0}
        found = self.http.post("/v1/completions", json=body)
        assert found.status_code == 200, found.text
        document = found.json()
        return document["choices"][0]["text"], document["usage"]["dylora"][0]

    def wait(self, path: str, state: str) -> dict[str, Any]:
        for _ in range(4800):
            document: dict[str, Any] = self.http.get(path).json()
            if document["state"] in (state, "failed", "cancelled"):
                break
            time.sleep(0.1)
        assert document["state"] == state, document
        return document


@pytest.fixture
def folder(taught: Pool) -> Path:
    return taught.path


@pytest.mark.timeout(900)
def test_unseen_traffic_is_gathered_confirmed_learned_and_answered(folder: Path) -> None:
    settings = parse(ServeSettings, {"inbox": {"enabled": True}, "manage": True}, "tests")
    writers: list[InboxWriter] = []

    def noted(note: Any) -> None:
        if note.kind == "strange":
            writers[0].offer(note.turns)

    served = opening.open_served(folder, settings, device="cpu", dtype="fp32", on_note=noted)
    writers.append(InboxWriter(served.pool.inbox, InboxBounds(), print))
    served.engine.wait_until_ready(120)  # type: ignore[attr-defined]
    app = create_app(served, settings, groups=managing.routers(served))
    with TestClient(app, base_url="http://127.0.0.1:8000") as http:
        client = Client(http, served.name)
        before = {(p, m): client.ask(p, m)[0] for p in OLDER for m in ("letters", "digits", "base")}
        routed = {prompt: client.ask(prompt)[1]["expert"] for prompt in OLDER}
        strange = [client.ask(prompt)[1]["novel"] for prompt in NEW]
        assert strange.count(True) > len(NEW) / 2, "the test needs traffic that is strange"
        kept = 0
        while kept < strange.count(True):
            kept = sum(one["size"] for one in http.get("/v1/inbox").json()["data"])
        clusters = http.get("/v1/inbox").json()["data"]
        cluster = http.get(f"/v1/inbox/{clusters[0]['id']}").json()
        prompts = [one["messages"][-1]["content"] for one in cluster["prompts"]]
        answers = [{"prompt": prompt, "completion": prompt[0] * 3} for prompt in prompts]
        body = {"answers": answers, "name": "signs", "as_new": True}
        job = http.post(f"/v1/inbox/{cluster['id']}/confirm", json=body).json()
        client.wait(f"/v1/jobs/{job['id']}", "done")
        while "signs" not in {one["id"] for one in http.get("/v1/models").json()["data"]}:
            time.sleep(0.1)
        time.sleep(0.5)
        assert client.ask(prompts[0], "signs")[1]["version"] == 1
        asked = Counter(client.ask(prompt)[1]["expert"] for prompt in prompts)
        assert asked["signs"] > len(prompts) / 2, asked
        # Older skills answer to the letter as before, and are still asked.
        assert {(p, m): client.ask(p, m)[0] for p, m in before} == before
        still = {prompt: client.ask(prompt)[1]["expert"] for prompt in OLDER}
        assert sum(still[p] == routed[p] for p in OLDER) >= len(OLDER) - 1
        # What was learned waits no longer.
        left = [one["id"] for one in http.get("/v1/inbox").json()["data"]]
        assert cluster["id"] not in left
    assert served.jobs is not None
    served.jobs.stop()
    writers[0].close()
    assert served.engine.drain(60)
    served.pool.close()
