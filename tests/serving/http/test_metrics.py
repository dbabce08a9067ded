from __future__ import annotations

import re
from typing import cast

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from dylora_moe.serving.served import Served
from tests.serving import doubles
from tests.serving.double_pool import DoublePool, revision
from tests.serving.http.conftest import Ask


def figures(client: TestClient) -> dict[tuple[str, ...], float]:
    """Samples by name and the values of their labels."""
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, *(value for key, value in sorted(sample.labels.items()) if key != "le")):
            sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
        if sample.labels.get("le", "+Inf") == "+Inf"
    }  # fmt: skip


def test_answers_are_counted_by_expert_reason_and_tokens(client: TestClient, chat: Ask) -> None:
    chat("one two three")
    chat("strange words", n=2, max_tokens=1)
    chat("one", model="base")
    found = figures(client)
    assert found["dylora_request_success_total", "stop"] == 2
    assert found["dylora_request_success_total", "length"] == 2
    assert found["dylora_prompt_tokens_total",] == 3 + 2 * 2 + 1
    assert found["dylora_generation_tokens_total",] == 4 + 2 * 1 + 2
    assert found["dylora_expert_requests_total", "letters"] == 3
    assert found["dylora_expert_requests_total", "base"] == 1
    assert found["dylora_expert_weight_total", "letters"] == pytest.approx(3 * 0.97)
    assert found["dylora_screened_requests_total",] == 3
    assert found["dylora_novel_requests_total",] == 2
    assert found["dylora_routing_entropy_nats_sum",] == pytest.approx(0.3)
    assert found["dylora_time_to_first_token_seconds_count",] == 4
    assert found["dylora_e2e_request_latency_seconds_count",] == 4
    assert found["dylora_inter_token_latency_seconds_count",] == 3 + 1


def test_the_pool_is_looked_up_when_somebody_asks(client: TestClient, found: Served) -> None:
    assert figures(client)["dylora_experts", "mature"] == 2
    doubles.learned(found, "signs")
    seen = figures(client)
    assert (seen["dylora_experts", "mature"], seen["dylora_experts", "young"]) == (2, 1)
    assert (seen["dylora_skills",], seen["dylora_pool_revision",]) == (3, 4)
    assert (seen["dylora_num_requests_running",], seen["dylora_num_requests_waiting",]) == (0, 0)


def test_nothing_that_a_client_writes_becomes_a_label(client: TestClient, chat: Ask) -> None:
    for index in range(5):
        client.get(f"/nothing/{index}")
        client.request(f"ODD{index}", "/health")
        chat(model=f"nobody-{index}")
        chat(user=f"user-{index}")
    text = client.get("/metrics").text
    assert not re.search(r"nothing|ODD|nobody|user-", text)
    assert figures(client)["dylora_http_requests_total", "GET", "other", "404"] == 5


def test_an_expert_that_is_gone_is_counted_no_more(
    client: TestClient, chat: Ask, found: Served
) -> None:
    chat(model="digits")
    assert ("dylora_expert_requests_total", "digits") in figures(client)
    cast("DoublePool", found.pool).registry.known.append(revision(4, "letters"))
    seen = figures(client)
    assert ("dylora_expert_requests_total", "digits") not in seen
    assert ("dylora_expert_weight_total", "digits") not in seen


def test_every_request_is_counted_by_its_route_and_status(client: TestClient, chat: Ask) -> None:
    chat()
    chat(n=0)
    client.get("/v1/models/letters")
    found = figures(client)
    assert found["dylora_http_requests_total", "POST", "/v1/chat/completions", "200"] == 1
    assert found["dylora_http_requests_total", "POST", "/v1/chat/completions", "400"] == 1
    assert found["dylora_http_requests_total", "GET", "/v1/models/{model}", "200"] == 1
