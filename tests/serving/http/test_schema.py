"""The application's own OpenAPI, and requests that a generator makes of it."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, settings

from dylora_moe.serving.http.app import create_app
from tests.serving import doubles
from tests.serving.http.conftest import settings as server_settings

SERVED = doubles.served()
# The double has no model; what needs one is held to this law with one (`test_overview`).
NEEDS_MODEL = ["/v1/pool/map", "/v1/route"]
SCHEMA = schemathesis.openapi.from_asgi(
    "/openapi.json", create_app(SERVED, server_settings()), headers={"host": "localhost"}
).exclude(path=NEEDS_MODEL)


@SCHEMA.parametrize()
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_no_request_is_the_server_s_fault(case: Any) -> None:
    response = case.call(headers={"host": "localhost"})
    case.validate_response(response, checks=[schemathesis.checks.not_a_server_error])


def test_the_schema_covers_every_route() -> None:
    names = {operation.ok().label for operation in SCHEMA.get_all_operations()}
    assert names >= {
        "POST /v1/chat/completions", "POST /v1/completions", "GET /v1/models",
        "GET /v1/models/{model}", "GET /health", "GET /ready", "GET /version", "GET /metrics",
        "GET /v1/pool", "GET /v1/pool/now", "GET /v1/pool/scores", "GET /v1/pool/runs",
        "GET /v1/pool/runs/{run}", "GET /v1/pool/events",
    }  # fmt: skip
