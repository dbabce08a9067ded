"""Requests that a generator makes of the application's own OpenAPI."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error

OWN = {"host": "localhost"}
LABELS = (
    "POST /v1/chat/completions", "POST /v1/completions", "GET /v1/models", "GET /v1/models/{model}",
    "GET /health", "GET /ready", "GET /version", "GET /metrics",
    # The double has no model: what needs one is held to this law with one (`test_overview`).
    "GET /v1/pool", "GET /v1/pool/now", "GET /v1/pool/scores", "GET /v1/pool/runs",
    "GET /v1/pool/runs/{run}", "GET /v1/pool/events",
)  # fmt: skip


def operations_of(app: FastAPI) -> Iterator[Any]:
    """Every operation that the application's schema describes."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=OWN)
    for found in schema.get_all_operations():
        yield found.ok()


def test_the_schema_covers_every_route(app: FastAPI) -> None:
    assert {operation.label for operation in operations_of(app)} >= set(LABELS)


@pytest.mark.parametrize("label", LABELS)
def test_no_request_is_the_server_s_fault(label: str, app: FastAPI) -> None:
    operation = next(each for each in operations_of(app) if each.label == label)
    seen = []

    @given(case=operation.as_strategy())
    @settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Any) -> None:
        response = case.call(headers=OWN)
        case.validate_response(response, checks=[not_a_server_error])
        seen.append(response.status_code)

    ask()
    assert seen
    assert 500 not in seen
