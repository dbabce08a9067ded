"""The clients that people have: OpenAI's own, and LangChain's, over a real connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator

import openai
import pytest
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from tests.serving import doubles
from tests.serving.http.conftest import KEY, Live

USER = {"role": "user", "content": "one two three"}


@pytest.fixture
def server(live: Callable[..., Live]) -> Live:
    return live(keys=[KEY])


@pytest.fixture
def client(server: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


def test_openai_s_client_is_answered_whole(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="pool", messages=[USER], n=2, seed=3, temperature=0.5  # type: ignore[list-item]
    )  # fmt: skip
    answer = raw.parse()
    assert [choice.message.content for choice in answer.choices] == ["one two three"] * 2
    assert answer.usage is not None
    assert answer.usage.total_tokens == 3 + 8
    found = json.loads(raw.headers["x-dylora-provenance"])
    assert [each["expert"] for each in found] == ["letters", "letters"]
    assert answer.usage.to_dict()["dylora"] == found


def test_openai_s_client_is_answered_in_pieces(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="digits",
        messages=[USER],  # type: ignore[list-item]
        stream=True,
        stream_options={"include_usage": True},
        logprobs=True,
    )
    chunks = list(stream)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == "one two three"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None
    tokens = [
        each.token
        for chunk in chunks
        for choice in chunk.choices
        for each in (choice.logprobs.content or [] if choice.logprobs else [])
    ]
    assert "".join(tokens) == text


def test_openai_s_client_completes_texts(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="base", prompt=["a b", "c"], logprobs=2, echo=False)
    assert [choice.text for choice in answer.choices] == ["a b", "c"]
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.tokens == ["a", " b"]
    pieces = client.completions.create(model="base", prompt="a b", stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == "a b"


def test_openai_s_client_lists_who_may_be_asked(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names == ["pool", "base", "letters", "letters@1", "digits", "digits@1"]
    assert client.models.retrieve("letters@1").owned_by == "dylora"


def test_openai_s_client_raises_what_it_raises_elsewhere(
    client: openai.OpenAI, server: Live
) -> None:
    def ask(text: str = "x", **fields: object) -> object:
        asked = {"model": "pool", "messages": [{"role": "user", "content": text}], **fields}
        return client.chat.completions.create(**asked)  # type: ignore[call-overload]

    with pytest.raises(openai.NotFoundError) as missing:
        ask(model="nobody")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        ask(temperature=9)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        ask(doubles.LONG)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.InternalServerError):
        ask(doubles.BROKEN)
    with pytest.raises(openai.APIError, match="something went wrong"):
        list(ask(doubles.BROKEN, stream=True))  # type: ignore[call-overload]
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    server.engine.refuse = doubles.QueueFullError("as many wait as may", 1)
    with pytest.raises(openai.RateLimitError):
        ask()


def test_openai_s_client_may_be_asynchronous(server: Live) -> None:
    async def ask() -> tuple[list[str | None], str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:

            async def one(text: str) -> str | None:
                answer = await client.chat.completions.create(
                    model="pool", messages=[{"role": "user", "content": text}]
                )
                return answer.choices[0].message.content

            texts = await asyncio.gather(*(one(f"text {index}") for index in range(12)))
            stream = await client.chat.completions.create(
                model="pool", messages=[{"role": "user", "content": "a b c"}], stream=True
            )
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return list(texts), "".join(pieces)

    texts, streamed = asyncio.run(ask())
    assert texts == [f"text {index}" for index in range(12)]
    assert streamed == "a b c"


def test_langchain_s_client_is_answered(server: Live) -> None:
    model = ChatOpenAI(model="pool", base_url=f"{server.url}/v1", api_key=SecretStr(KEY), seed=1)
    answer = model.invoke("one two three")
    assert answer.content == "one two three"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["total_tokens"] == 7
    assert "".join(str(piece.content) for piece in model.stream("a b c")) == "a b c"
    assert [each.content for each in model.batch(["a", "b"])] == ["a", "b"]
    shown = model.bind(logprobs=True).invoke("a b").response_metadata["logprobs"]
    assert [each["token"] for each in shown["content"]] == ["a", " b"]
