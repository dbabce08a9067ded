from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from starlette.routing import Route
from starlette.testclient import TestClient

from dylora_moe.serving.http import managing
from dylora_moe.serving.http.app import create_app
from dylora_moe.serving.http.guard import ASKING, PUBLIC, host_name
from dylora_moe.serving.http.page import page_paths
from dylora_moe.serving.served import Served
from tests.serving.http.conftest import KEY, error_of, settings

BEARER = {"authorization": f"Bearer {KEY}"}


@pytest.fixture
def keyed(found: Served) -> FastAPI:
    return create_app(found, settings(), [KEY, "another-key-of-enough-characters"])


@pytest.fixture
def outside(keyed: FastAPI) -> Iterator[TestClient]:
    with TestClient(keyed, base_url="http://pool.example") as client:
        yield client


def routes_of(app: FastAPI) -> list[tuple[str, str]]:
    """Every method and path that the application knows, mounted ones too."""
    found, todo = [], list(app.routes)
    while todo:
        route = todo.pop()
        todo += getattr(route, "routes", [])
        context = getattr(route, "effective_route_contexts", None)
        todo += list(context()) if context is not None else []
        path, methods = getattr(route, "path", None), getattr(route, "methods", None)
        if path and methods:
            found += [(method, path) for method in methods]
        elif isinstance(route, Route):
            raise AssertionError(f"a route that is not looked at: {route}")
    return found


def test_every_route_is_public_or_needs_a_key(keyed: FastAPI, outside: TestClient) -> None:
    routes = routes_of(keyed)
    paths = {path for _, path in routes}
    assert paths >= {*PUBLIC, "/openapi.json", "/metrics", "/v1/models", "/v1/models/{model}",
                     "/v1/chat/completions", "/v1/completions"}  # fmt: skip
    public = PUBLIC | page_paths()
    for method, path in routes:
        status = outside.request(method, path.replace("{model}", "letters")).status_code
        assert (status == 401) == (path not in public), (method, path, status)


@pytest.mark.parametrize(
    "path", ["/nothing", "/v1/", "//v1/models", "/health/", "/HEALTH", "/page/", "/page//style.css"]
)
def test_what_is_no_route_needs_a_key_too(path: str, outside: TestClient) -> None:
    response = outside.get(path, follow_redirects=False)
    assert response.status_code == 401
    assert error_of(response)["code"] == "invalid_api_key"
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "header",
    ["", KEY, "Bearer", "Bearer ", f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}",
     "Bearer \xe9", f"Bearer {KEY} {KEY}"],
)  # fmt: skip
def test_a_wrong_key_is_none(header: str, outside: TestClient) -> None:
    response = outside.get("/v1/models", headers={"authorization": header.encode("latin-1")})
    assert response.status_code == 401


def test_each_of_the_keys_opens(outside: TestClient) -> None:
    for key in (KEY, "another-key-of-enough-characters"):
        response = outside.get("/v1/models", headers={"authorization": f"Bearer {key}"})
        assert response.status_code == 200


def test_two_keys_at_once_are_none(outside: TestClient) -> None:
    headers = [("authorization", f"Bearer {KEY}"), ("authorization", "Bearer wrong")]
    assert outside.get("/v1/models", headers=headers).status_code == 401


def test_nothing_is_read_of_a_request_without_a_key(outside: TestClient) -> None:
    response = outside.post("/v1/completions", content=b"x" * (2 << 20))
    assert response.status_code == 401


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[::2]:8000"])
def test_without_a_key_only_this_machine_s_names_are_answered(
    host: str, client: TestClient
) -> None:
    response = client.get("/v1/models", headers={"host": host})
    assert response.status_code == 403
    assert error_of(response)["code"] == "host_not_allowed"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:8000"])
def test_this_machine_s_names_are_answered(host: str, client: TestClient) -> None:
    assert client.get("/v1/models", headers={"host": host}).status_code == 200


def test_further_names_are_a_setting(found: Served) -> None:
    client = TestClient(create_app(found, settings(hosts=["pool.local"])))
    assert client.get("/v1/models", headers={"host": "pool.local"}).status_code == 200
    assert client.get("/v1/models", headers={"host": "other.local"}).status_code == 403


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:9999"])
def test_pages_of_other_sites_may_not_ask(origin: str, client: TestClient) -> None:
    response = client.get("/v1/models", headers={"origin": origin})
    assert response.status_code == 403
    assert error_of(response)["code"] == "origin_not_allowed"
    assert "access-control-allow-origin" not in response.headers


def test_its_own_page_may_ask(client: TestClient) -> None:
    own = {"origin": "http://127.0.0.1:8000"}
    assert client.get("/v1/models", headers=own).status_code == 200


ADMIN = "an-admin-key-that-nobody-guesses"
CHANGING = [
    ("POST", "/v1/experts"), ("POST", "/v1/experts/letters/retire"), ("DELETE", "/v1/jobs/x"),
    ("GET", "/v1/inbox"), ("GET", "/v1/inbox/x"), ("DELETE", "/v1/inbox/x"),
    ("POST", "/v1/inbox/x/confirm"), ("PUT", "/v1/models"), ("POST", "/v1/nothing"),
    ("ODD", "/v1/models"), ("POST", "/v1/completions/"),
]  # fmt: skip
READ = [("GET", "/v1/jobs"), ("GET", "/v1/models"), ("POST", "/v1/completions"), ("GET", "/v1/no")]


def status(
    client: TestClient, method: str, path: str, key: str | None = None
) -> tuple[int, str | None]:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    response = client.request(method, path, headers=headers)
    refused = response.status_code in (401, 403)
    return response.status_code, error_of(response)["code"] if refused else None


def over(found: Served, keys: list[str], admins: list[str], **values: object) -> TestClient:
    app = create_app(found, settings(**values), keys, admins, groups=managing.routers(found))
    return TestClient(app, base_url="http://localhost")


@pytest.mark.parametrize(("method", "path"), CHANGING)
def test_what_is_not_known_to_change_nothing_needs_an_admin_key(
    method: str, path: str, found: Served
) -> None:
    off = (403, "managing_off")
    assert status(over(found, [], []), method, path) == off
    assert status(over(found, [KEY], []), method, path, KEY) == off
    assert status(over(found, [KEY], [ADMIN]), method, path, KEY) == (403, "admin_key_needed")
    assert status(over(found, [], [ADMIN]), method, path) == (403, "admin_key_needed")
    assert status(over(found, [], [ADMIN]), method, path, "wrong") == (403, "admin_key_needed")
    for keys in ([KEY], []):
        if path != "/v1/inbox":
            assert status(over(found, keys, [ADMIN]), method, path, ADMIN)[0] not in (401,)
    assert status(over(found, [KEY], [ADMIN]), method, path)[0] == 401
    assert status(over(found, [KEY], [ADMIN]), method, path, "wrong")[0] == 401


@pytest.mark.parametrize(("method", "path"), READ)
def test_what_only_asks_needs_no_admin_key_and_an_admin_key_opens_it(
    method: str, path: str, found: Served
) -> None:
    for keys, admins, key in (
        ([], [], None), ([], [ADMIN], None), ([KEY], [ADMIN], KEY), ([KEY], [ADMIN], ADMIN),
    ):  # fmt: skip
        code = status(over(found, keys, admins), method, path, key)[1]
        # The double runs no jobs.
        assert code in (None, "forbidden")


def test_every_route_that_is_no_reading_is_known_to_change_nothing_or_refused(
    found: Served,
) -> None:
    app = create_app(found, settings(), [KEY], groups=managing.routers(found))
    client = TestClient(app, base_url="http://localhost")
    seen = 0
    for method, path in routes_of(app):
        if method in ("GET", "HEAD") or path in ASKING:
            continue
        seen += 1
        assert status(client, method, re.sub(r"{\w+}", "x", path), KEY) == (403, "managing_off")
    assert seen == 7


def test_a_person_alone_may_manage_without_a_key(found: Served) -> None:
    client = over(found, [], [], manage=True)
    assert status(client, "POST", "/v1/experts/letters/retire") == (403, "forbidden")
    assert status(client, "PUT", "/v1/models") == (405, None)


def test_names_of_hosts_are_read_without_their_ports() -> None:
    assert host_name("[::1]:80") == "::1"
    assert host_name("Pool.local:80") == "pool.local"


def test_nothing_joins_the_public_paths_by_the_way() -> None:
    assert {"/health", "/ready", "/version"} == PUBLIC
