from __future__ import annotations

from collections.abc import Callable
from threading import Thread

import httpx
import pytest
from starlette.testclient import TestClient

from dylora_moe import __version__
from dylora_moe.errors import (
    ArtifactError,
    DatabaseUnavailableError,
    PoolError,
    StorageFullError,
)
from dylora_moe.serving.http import overview
from dylora_moe.serving.http.app import Stopping, create_app
from dylora_moe.serving.served import Served
from tests.serving import doubles
from tests.serving.http.conftest import Ask, Live, error_of, eventually, settings


def test_it_lives_and_is_ready_and_says_its_version(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready", "revision": 3}
    assert client.get("/version").json() == {"version": __version__}


def test_an_engine_that_takes_nothing_is_alive_and_not_ready(
    client: TestClient, found: Served
) -> None:
    found.engine.drain(1)
    response = client.get("/ready")
    assert response.status_code == 503
    assert response.json() == {"status": "not_ready", "code": "engine_unavailable"}
    assert doubles.SECRET not in response.text
    assert client.get("/health").status_code == 200


def test_what_is_being_stopped_is_not_ready(found: Served) -> None:
    stopping = Stopping()
    client = TestClient(
        create_app(found, settings(), stopping=stopping), base_url="http://localhost"
    )
    stopping.begun = True
    assert client.get("/ready").json() == {"status": "not_ready", "code": "stopping"}
    assert client.get("/ready").status_code == 503


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 403, "managing_off"),
        ("GET", "/v1/models/nobody", 404, "model_not_found"),
    ],
)
def test_every_error_has_openai_s_form(
    method: str, path: str, status: int, code: str, client: TestClient
) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    assert error_of(response)["code"] == code


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b"[]", b'"text"', b"\xff\xfe", b'{"model": "\\ud800", "prompt": "a"}',
     b'{"model": "a", "prompt": "\\udfff"}', b'{"model": "a", "prompt": "a", "top_p": NaN}',
     b'{"model": "a", "prompt": "a", "seed": ' + b"1" * 5000 + b"}", b'{"model": "a", "mod',
     b'{"\\ud800": 1, "model": "base", "prompt": 1}'],
)  # fmt: skip
def test_a_body_that_is_none_is_the_client_s_fault(body: bytes, client: TestClient) -> None:
    headers = {"content-type": "application/json"}
    response = client.post("/v1/completions", content=body, headers=headers)
    assert response.status_code == 400
    error_of(response)


def test_a_body_must_say_that_it_is_json(client: TestClient) -> None:
    # What a form of another site can send without asking first.
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        body = b'{"model": "base", "prompt": "a"}'
        response = client.post("/v1/completions", content=body, headers={"content-type": kind})
        assert error_of(response)["code"] == "invalid_json"


def test_what_is_unexpected_is_logged_under_the_id_that_is_told(
    chat: Ask, found: Served, caplog: pytest.LogCaptureFixture
) -> None:
    engine = found.engine
    assert isinstance(engine, doubles.DoubleEngine)
    engine.refuse = ZeroDivisionError(doubles.SECRET)
    response = chat()
    assert response.status_code == 500
    message = error_of(response)["message"]
    assert doubles.SECRET not in message
    number = message.rpartition(" ")[2]
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [record.fields["id"] for record in errors] == [number]  # type: ignore[attr-defined]
    assert errors[0].exc_info is not None


@pytest.mark.parametrize("error", [TimeoutError("late"), BrokenPipeError("gone"), OSError(28, "x")])
def test_an_error_of_the_system_is_no_client_that_hung_up(
    error: OSError, chat: Ask, found: Served, caplog: pytest.LogCaptureFixture
) -> None:
    engine = found.engine
    assert isinstance(engine, doubles.DoubleEngine)
    engine.refuse = error
    response = chat()
    late = isinstance(error, TimeoutError)
    assert response.status_code == (503 if late else 500)
    assert error_of(response)["code"] == ("unavailable" if late else "internal_error")
    told = [record for record in caplog.records if record.levelname == "ERROR"]
    assert late or told[0].exc_info is not None


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (DatabaseUnavailableError(f"{doubles.SECRET} is busy"), 503, "unavailable"),
        (StorageFullError(f"{doubles.SECRET} is full"), 503, "unavailable"),
        (ArtifactError(f"{doubles.SECRET} is damaged"), 500, "internal_error"),
        (PoolError("nobody"), 404, "model_not_found"),
    ],
)
def test_a_pool_that_cannot_be_asked_is_no_model_that_is_not_there(
    error: PoolError, status: int, code: str, chat: Ask, found: Served
) -> None:
    engine = found.engine
    assert isinstance(engine, doubles.DoubleEngine)
    engine.refuse = error
    response = chat()
    assert (response.status_code, error_of(response)["code"]) == (status, code)
    assert doubles.SECRET not in response.text


def test_a_database_that_is_busy_is_no_run_that_is_not_there(
    client: TestClient, found: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object) -> None:
        raise DatabaseUnavailableError("busy")

    assert client.get("/v1/pool/runs/none").status_code == 404
    monkeypatch.setattr(overview, "run_curves", busy)
    assert client.get("/v1/pool/runs/none").status_code == 503


ASKED = {"model": "base", "prompt": "a"}


def test_an_engine_that_hangs_holds_up_only_who_asks_it(live: Callable[..., Live]) -> None:
    server = live()
    server.engine.hung.set()
    paths = ["/v1/completions"] * 60 + ["/v1/route"] * 20
    threads = [
        Thread(target=httpx.post, args=(server.url + path,),
               kwargs={"json": {"prompt": "a"} if "route" in path else ASKED, "timeout": 60})
        for path in paths
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    try:
        # Neither waits for the other: so many of each are asked at a time, and no more.
        eventually(lambda: server.engine.asked >= 8 + 4)
        for path in ("/ready", "/health", "/metrics", "/v1/models", "/v1/pool/now"):
            assert httpx.get(server.url + path, timeout=10).status_code == 200
        assert server.engine.asked == 8 + 4
    finally:
        server.engine.hung.clear()
        for thread in threads:
            thread.join()


def test_every_response_carries_an_id(client: TestClient) -> None:
    seen = {client.get("/health").headers["x-request-id"] for _ in range(3)}
    assert len(seen) == 3
