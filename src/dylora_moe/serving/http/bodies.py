"""What clients send, in OpenAI's form: which fields there are and what they may hold.

Fields that are not here are ignored where that is harmless; those that would change the answer are
refused (`check_supported`). Knows no engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from dylora_moe.serving.http.errors import ApiError

UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "ignore_eos": (False,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "min_p": (0,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "prediction": (),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "stop_token_ids": ([],),
    "structured_outputs": (),
    "suffix": ("",),
    "tool_choice": ("none",),
    "tools": ([],),
    "use_beam_search": (False,),
    "web_search_options": (),
}
"""Fields of OpenAI's API and of vLLM's that would change the answer, with the values that would
not."""

ModelName = Annotated[str, Field(min_length=1, max_length=200)]
Weight = Annotated[float, Field(gt=0, le=1)]
StopText = Annotated[str, Field(min_length=1, max_length=200)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]
Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[list[Text], Field(min_length=1)]


class _Body(BaseModel):
    # As JSON has it: a text is no number. Further fields are looked at by `check_supported`.
    model_config = ConfigDict(extra="allow", strict=True)


class StreamOptions(_Body):
    """Of a stream: whether a last chunk says the usage."""

    include_usage: bool | None = False


class SampledBody(_Body):
    """What both ways of asking have in common."""

    model: ModelName
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=2**31 - 1)
    n: int | None = Field(default=None, ge=1)
    stop: StopText | list[StopText] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    max_tokens: int | None = Field(default=None, ge=1)
    weights: Annotated[dict[ModelName, Weight], Field(min_length=1, max_length=64)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class Part(_Body):
    """A piece of a message."""

    type: str = Field(max_length=100)
    text: str | None = None


class Message(_Body):
    """One turn of a conversation; `developer` is OpenAI's newer word for `system`."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None


class ChatBody(SampledBody):
    """The body of `/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(default=None, ge=0)


class CompletionBody(SampledBody):
    """The body of `/v1/completions`."""

    prompt: Text | Texts | TokenIds | Annotated[list[TokenIds], Field(min_length=1)]
    logprobs: int | None = Field(default=None, ge=0)
    echo: bool | None = False


def unsupported(name: str, why: str = "is not supported") -> ApiError:
    """A field that would change the answer in a way that there is not."""
    return ApiError(400, f"{name} {why}; leave it out", "unsupported_parameter", name)


def check_supported(body: SampledBody) -> None:
    """Refuses fields that would change the answer.

    Raises:
        ApiError: with code `unsupported_parameter`, for the first one.
    """
    for name, value in (body.model_extra or {}).items():
        harmless = UNSUPPORTED.get(name)
        if harmless is not None and value is not None and value not in harmless:
            raise unsupported(name)
