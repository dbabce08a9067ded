from __future__ import annotations

from typing import Any

import pytest

from dylora_moe.serving.http.bodies import UNSUPPORTED
from dylora_moe.serving.served import Served
from tests.serving import doubles
from tests.serving.http.conftest import Ask, Json, error_of


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_what_would_change_the_answer_is_refused_and_what_would_not_is_not(
    name: str, chat: Ask
) -> None:
    response = chat(**{name: "something"})
    assert response.status_code == 400
    assert (error_of(response)["code"], error_of(response)["param"]) == (
        "unsupported_parameter", name,
    )  # fmt: skip
    for harmless in (None, *UNSUPPORTED[name]):
        assert chat(**{name: harmless}).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"temperature": "0"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": 1025}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"stop": ["x"] * 9}, "stop"),
        ({"stop": [""]}, "stop.0"),
        ({"seed": 2**63}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"model": ""}, "model"),
        ({"weights": {"letters": 0.5}}, "weights"),
        ({"weights": {"base@1": 0.5}}, "weights"),
        ({"weights": {}}, "weights"),
        ({"weights": {"letters@1": 0.7, "digits@1": 0.7}}, "weights"),
        ({"weights": {"letters@1": 0}}, "weights"),
        ({"weights": {"letters@1": 0.5}, "model": "digits"}, "weights"),
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "judge", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "x"}] * 257}, "messages"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_field(
    fields: Json, param: str, chat: Ask
) -> None:
    response = chat(**fields)
    assert response.status_code == 400
    assert error_of(response)["param"] == param


@pytest.mark.parametrize("prompt", ["", [], [""], [[]], [[5], []], [-1], ["a", 5], 5, {"a": 1}])
def test_a_prompt_that_is_none_is_refused(prompt: Any, complete: Ask) -> None:
    response = complete(prompt)
    assert response.status_code == 400
    assert str(error_of(response)["param"]).startswith("prompt")


@pytest.mark.parametrize(
    ("prompt", "screened"), [("a", [True, False, False]), (["a", "b"], [True, False, False] * 2)]
)
def test_a_prompt_is_screened_once_however_many_answers_are_asked_for(
    prompt: Any, screened: list[bool], complete: Ask, found: Served
) -> None:
    assert complete(prompt, n=3).status_code == 200
    engine = found.engine
    assert isinstance(engine, doubles.DoubleEngine)
    assert [request.screened for request in engine.requests] == screened


def test_a_prompt_that_is_too_long_has_openai_s_code(complete: Ask) -> None:
    response = complete(doubles.LONG)
    assert response.status_code == 400
    assert error_of(response)["code"] == "context_length_exceeded"


def test_weights_take_the_place_of_the_router_s(chat: Ask, found: Served) -> None:
    assert chat(weights={"letters@1": 0.6, "digits@1": 0.3}).status_code == 200
    engine = found.engine
    assert isinstance(engine, doubles.DoubleEngine)
    (request,) = engine.requests
    assert request.choice.expert is None
    assert request.choice.weights == {("letters", 1): 0.6, ("digits", 1): 0.3}
