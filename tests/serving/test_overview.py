"""What the page reads: facts of a pool as they are stored, and where prompts would go."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from starlette.testclient import TestClient

from dylora_moe.build.pool import Pool
from dylora_moe.lifecycle.answering import route
from dylora_moe.serving.http.app import create_app
from dylora_moe.serving.served import Served
from dylora_moe.serving.settings import ServeSettings
from tests import pools
from tests.pools import learn, rows
from tests.serving.live_engine import LiveEngine

HOST = "http://127.0.0.1:8000"


def app_of(pool: Pool) -> FastAPI:
    return create_app(Served(pool, LiveEngine(pool), "tiny"), ServeSettings())


@pytest.fixture(scope="module")
def shared(taught_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """A pool that no test of this file changes."""
    with pools.copied(taught_folder, tmp_path_factory.mktemp("shared") / "pool") as pool:
        yield pool


@pytest.fixture(scope="module")
def app(shared: Pool) -> FastAPI:
    return app_of(shared)


@pytest.fixture(scope="module")
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, base_url=HOST) as opened:
        yield opened


def got(client: TestClient, path: str, status: int = 200) -> Any:
    response = client.get(path)
    assert response.status_code == status, response.text
    return response.json()


def routed(client: TestClient, **body: Any) -> Any:
    response = client.post("/v1/route", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_the_overview_says_what_the_registry_says(client: TestClient, shared: Pool) -> None:
    found, revision = got(client, "/v1/pool"), shared.revision
    assert (found["name"], found["revision"], found["format"]) == ("tiny", 2, "plain")
    assert found["tap"] == shared.meta["tap"]
    for told, expert, skill in zip(
        found["experts"], revision.experts, revision.skills, strict=True
    ):
        assert (told["id"], told["alias"]) == (expert.expert_id, expert.alias)
        assert (told["maturity"], told["state"]) == (expert.maturity, expert.maturity_state)
        assert (told["skills"], told["count"]) == ([skill.name], skill.count)
        assert told["rank"] == expert.lora_config["r"]
        assert told["born"] == expert.created_at
        assert [one["version"] for one in told["versions"]] == [1]


def test_where_a_base_lies_is_not_told(client: TestClient, shared: Pool) -> None:
    assert Path(shared.meta["base"]).is_absolute()
    assert got(client, "/v1/pool")["base"] == Path(shared.meta["base"]).name
    for path in ("/v1/pool", "/v1/pool/now", "/v1/pool/runs", "/v1/pool/events"):
        assert str(shared.path) not in client.get(path).text


def test_scores_are_those_of_each_revision_in_order(client: TestClient) -> None:
    found = got(client, "/v1/pool/scores")
    assert found["skills"] == ["letters", "digits"]
    assert [change["revision"] for change in found["changes"]] == [1, 2]
    assert [[value is None for value in row] for row in found["loss"]] == [
        [False, True], [False, False],
    ]  # fmt: skip
    last = found["accuracy"][-1]
    assert found["average_accuracy"] == pytest.approx(sum(last) / 2)
    assert not found["more"]


def test_a_new_version_is_seen_and_a_rollback_leaves_the_line(taught: Pool) -> None:
    with TestClient(app_of(taught), base_url=HOST) as client:
        assert len(got(client, "/v1/pool")["experts"]) == 2
        learned = learn(taught, "signs", rows(pools.SIGNS, 110, 6))
        assert learned.action == "created"
        assert [one["alias"] for one in got(client, "/v1/pool")["experts"]][2] == "signs"
        assert [one["revision"] for one in got(client, "/v1/pool/scores")["changes"]] == [1, 2, 3]
        taught.rollback()
        assert len(got(client, "/v1/pool")["experts"]) == 2
        assert [one["revision"] for one in got(client, "/v1/pool/scores")["changes"]] == [1, 2]
        assert "rolled back" in got(client, "/v1/pool/events?limit=1")[0]["message"]


def test_an_empty_pool_has_an_overview_too(empty: Pool) -> None:
    with TestClient(app_of(empty), base_url=HOST) as client:
        assert got(client, "/v1/pool")["experts"] == []
        scores = got(client, "/v1/pool/scores")
        assert (scores["changes"], scores["skills"], scores["average_accuracy"]) == ([], [], None)
        assert got(client, "/v1/pool/map")["points"] == []
        assert got(client, "/v1/pool/runs") == []
        found = routed(client, prompt="anything")
        assert (found["weights"], found["to_none"], found["nearest"]) == ([], True, None)


def test_every_skill_is_on_the_map(client: TestClient) -> None:
    found = got(client, "/v1/pool/map")
    assert [(one["skill"], one["expert"]) for one in found["points"]] == [
        ("letters", "letters"), ("digits", "digits"),
    ]  # fmt: skip
    # Two skills and what is foreign lie in a plane.
    assert sum(found["shares"]) == pytest.approx(1.0)


def test_a_prompt_is_routed_as_the_pool_routes_it(client: TestClient, shared: Pool) -> None:
    prompts = ("abcdef", "654321", "Who are you?")
    expected = route(shared.live, prompts)
    for index, prompt in enumerate(prompts):
        found = routed(client, prompt=prompt)
        names = {expert.expert_id: expert.alias for expert in shared.revision.experts}
        given = {one["expert"]: one["weight"] for one in found["weights"]}
        for name, weight in zip(expected.experts, expected.weights[index].tolist(), strict=True):
            assert given.get(names[name], 0.0) == pytest.approx(weight, abs=2e-3)
        assert found["none"] == pytest.approx(float(expected.none[index]), abs=1e-5)
        assert found["entropy"] == pytest.approx(float(expected.entropy[index]), abs=1e-5)
        assert found["to_none"] == bool(expected.to_none[index])
        assert found["strange"] == (found["strangeness"] > found["threshold"])


def test_prompts_of_a_skill_lie_near_its_point(client: TestClient) -> None:
    points = {one["skill"]: (one["x"], one["y"]) for one in got(client, "/v1/pool/map")["points"]}
    for skill, prompt in (("letters", "abcdefa"), ("digits", "1234561")):
        found = routed(client, prompt=prompt)
        assert found["nearest"] == skill
        x, y = found["place"]
        distances = {name: math.dist(point, (x, y)) for name, point in points.items()}
        nearest = min(distances, key=lambda name: distances[name])
        assert nearest == skill


def test_a_conversation_is_routed_whole(client: TestClient) -> None:
    turns = [{"role": "user", "content": "abcdef"}]
    assert routed(client, messages=turns) == routed(client, prompt="abcdef")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": ""},
        {"messages": []},
        {"prompt": "a", "messages": [{"role": "user", "content": "a"}]},
        {"prompt": 1},
        {"prompt": "a", "path": "/etc/passwd"},
        {"messages": [{"role": "tool", "content": "a"}]},
        {"prompt": "a" * 5000},
    ],
)
def test_what_cannot_be_routed_is_refused(client: TestClient, body: Any) -> None:
    response = client.post("/v1/route", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_runs_come_newest_first_under_their_arrivals_names_with_curves(client: TestClient) -> None:
    runs = got(client, "/v1/pool/runs")
    assert [(run["name"], run["finished"]) for run in runs] == [("digits", True), ("letters", True)]
    found = got(client, f"/v1/pool/runs/{runs[0]['id']}")
    assert [phase["name"] for phase in found["phases"]] == ["seeding", "consolidation"]
    updates = [point[0] for point in found["curves"]["loss"]]
    assert updates == sorted(updates)
    assert len(updates) > 3


@pytest.mark.parametrize("run", ["%2e%2e", "%2e%2e%2fdylora.db", "nothing", "a" * 101])
def test_a_run_is_an_id_and_never_a_path(client: TestClient, run: str) -> None:
    assert client.get(f"/v1/pool/runs/{run}").status_code in (400, 404)


def test_answers_count_as_traffic_of_their_expert(shared: Pool) -> None:
    with TestClient(app_of(shared), base_url=HOST) as client:
        before = got(client, "/v1/pool/now")
        assert before["traffic"] == []
        for model in ("tiny", "tiny", "digits", "base"):
            body = {"model": model, "messages": [{"role": "user", "content": "strange one"}]}
            assert client.post("/v1/chat/completions", json=body).status_code == 200
        found = got(client, "/v1/pool/now")
    counted = {one["expert"]: one["requests"] for one in found["traffic"]}
    assert counted == {"letters": 2, "digits": 1, "base": 1}
    assert {one["expert"]: one["weight"] for one in found["traffic"]}["digits"] == 1.0
    assert (found["screened"], found["novel"]) == (2, 2)
    assert (found["ready"], found["running"], found["revision"]) == (True, 0, 2)


def test_only_what_is_said_in_words_is_an_event(client: TestClient, shared: Pool) -> None:
    told = got(client, "/v1/pool/events?limit=200")
    words = [event.message for event in shared.events() if event.message]
    assert [event["message"] for event in told] == words[::-1]
    assert len(got(client, "/v1/pool/events?limit=2")) == 2
    assert got(client, "/v1/pool/events?limit=0", 400)["error"]["param"] == "limit"


def test_no_request_for_the_model_is_the_server_s_fault(app: FastAPI) -> None:
    found = schemathesis.openapi.from_asgi("/openapi.json", app, headers={"host": "localhost"})
    operations = list(found.include(path=["/v1/pool/map", "/v1/route"]).get_all_operations())
    assert len(operations) == 2
    for operation in operations:

        @settings(
            max_examples=25,
            deadline=None,
            derandomize=True,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.ok().as_strategy())
        def law(case: Any) -> None:
            response = case.call(headers={"host": "localhost"})
            case.validate_response(response, checks=[schemathesis.checks.not_a_server_error])

        law()
