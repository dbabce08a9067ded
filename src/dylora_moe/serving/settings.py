"""Settings of a server as people write them: what there is to set, its bounds and its defaults.

Lives at the door only, as `config` does for learning: `dylora serve` turns them into plain
arguments.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, field_validator, model_validator

from dylora_moe.errors import ConfigError
from dylora_moe.parsing import Settings, parse
from dylora_moe.records import BASE_NAME

KEY_VARIABLE = "DYLORA_API_KEY"
ADMIN_KEY_VARIABLE = "DYLORA_ADMIN_KEY"
KEY_LENGTH = 16
"""Characters that a key must have at least."""


class LimitSettings(Settings):
    """What one client, and all together, may ask for."""

    body_bytes: int = Field(default=1 << 20, ge=1024, description="of one request")
    header_bytes: int = Field(default=1 << 14, ge=1024)
    nesting: int = Field(default=32, ge=4, description="depth of a request's JSON")
    requests: int = Field(default=256, ge=1, description="open at once, those that wait too")
    connections: int = Field(default=512, ge=1, description="open at once, idle ones too")
    stall_seconds: float = Field(default=20.0, gt=0, description="a body may take; a read too")
    max_tokens: int = Field(default=1024, ge=1, description="of one answer")
    choices: int = Field(default=16, ge=1, description="answers of one request")
    messages: int = Field(default=256, ge=1)
    stop: int = Field(default=8, ge=0, description="texts that end an answer")
    top_logprobs: int = Field(default=20, ge=0)
    seconds: float = Field(default=120.0, gt=0, description="until an answer is given up")


class EngineSettings(Settings):
    """How many requests are answered at once."""

    rows: int = Field(default=16, ge=1, description="answers that are written at once")
    tokens: int = Field(default=32768, ge=64, description="of all of them, in the KV cache")
    prompt_tokens: int = Field(default=2048, ge=1, description="read between two steps")
    queue: int = Field(default=256, ge=1, description="answers that may wait for their turn")


class InboxSettings(Settings):
    """Whether inputs that no skill claims are kept for a person to look at."""

    enabled: bool = False
    entries: int = Field(default=1000, ge=1, description="inputs; the oldest go first")
    bytes: int = Field(default=8 << 20, ge=1024, description="of all of them")
    redact: tuple[str, ...] = Field(
        default=(), description="regular expressions; what they match is never stored"
    )

    @field_validator("redact")
    @classmethod
    def _expressions(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"'{pattern}' is no regular expression ({error})") from None
        return value


class CanarySettings(Settings):
    """How a new version is tried on a part of the traffic before it gets all of it."""

    share: float = Field(default=0.0, ge=0, lt=1, description="0: a new version serves at once")
    answers: int = Field(default=50, ge=1, description="of it, from which on it passes")
    tolerance: float = Field(default=0.02, ge=0, description="relative rise of the skill's loss")
    errors: int = Field(default=3, ge=1, description="from which on it may fail")


class LogSettings(Settings):
    """What goes into the log."""

    prompts: bool = Field(default=False, description="prompts and answers too")
    file: Path | None = None


class ServeSettings(Settings):
    """Everything `dylora serve` may be told."""

    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8000, ge=0, le=65535, description="0: any that is free")
    hosts: tuple[str, ...] = Field(default=(), description="names it is reached by besides")
    name: str | None = Field(default=None, description="of the pool, as `model`; else its folder's")
    api_key_file: Path | None = None
    admin_key_file: Path | None = None
    manage: bool = Field(default=False, description="without an admin key, on loopback")
    temperature: float = Field(default=0.0, ge=0, le=2, description="where a request says none")
    screen: bool = Field(default=True, description="whether prompts are held against the skills")
    drain_seconds: float = Field(default=30.0, ge=0, description="for what runs at the end")
    run_tests: bool = Field(default=False, description="Python in rows that are sent")
    limits: LimitSettings = LimitSettings()
    engine: EngineSettings = EngineSettings()
    inbox: InboxSettings = InboxSettings()
    canary: CanarySettings = CanarySettings()
    log: LogSettings = LogSettings()

    @field_validator("name")
    @classmethod
    def _names_the_router(cls, value: str | None) -> str | None:
        if value is not None and (value == BASE_NAME or not re.fullmatch(r"[\w][\w.-]*", value)):
            raise ValueError(f"'{value}' cannot name a pool; use letters, digits, '-', '_' and '.'")
        return value

    @model_validator(mode="after")
    def _inbox_is_screened(self) -> ServeSettings:
        if self.inbox.enabled and not self.screen:
            raise ValueError("inbox.enabled keeps what the screen finds; leave screen true")
        return self

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def read_settings(file: Path | None, **options: Any) -> ServeSettings:
    """Settings of a YAML file, and over them those that were given as options (None: not given).

    Raises:
        ConfigError: missing file, invalid YAML, unknown or invalid key; the message names the file.
    """
    values: Any = {}
    if file is not None:
        try:
            values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except FileNotFoundError:
            raise ConfigError(f"{file}: no such file of settings; check the path") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"{file}: not valid YAML ({reason}); mend it") from None
        if not isinstance(values, Mapping):
            raise ConfigError(f"{file}: expected keys, found {type(values).__name__}")
    given = {key: value for key, value in options.items() if value is not None}
    where = "dylora serve POOL" if file is None else str(file)
    settings = parse(ServeSettings, {**values, **given}, where)
    for name in ("api_key_file", "admin_key_file"):
        key_file = getattr(settings, name)
        if file is not None and key_file is not None and name not in given:
            # As the paths of a stream file: relative to the file that names them.
            settings = settings.model_copy(update={name: file.parent / key_file})
    return settings


def read_keys(settings: ServeSettings, environment: Mapping[str, str] = os.environ) -> list[str]:
    """The keys of which a client needs one: the file's lines, or the environment's one; none are
    needed where there are none.

    Raises:
        ConfigError: a key that is too short or no plain text; none, where others could reach the
            server.
    """
    keys = _keys_of(settings.api_key_file, KEY_VARIABLE, environment)
    if not keys and not settings.loopback:
        raise ConfigError(
            f"other machines can reach {settings.host}, and there is no API key; give "
            f"--api-key-file or {KEY_VARIABLE}, or serve on 127.0.0.1"
        )
    return keys


def read_admin_keys(
    settings: ServeSettings, keys: Sequence[str], environment: Mapping[str, str] = os.environ
) -> list[str]:
    """The keys of which one is needed to change something: the file's lines, or the environment's
    one; where there are none, nothing is changed, unless `manage` is set.

    Args:
        keys: of those who only ask.

    Raises:
        ConfigError: as `read_keys`; a key of both kinds; `manage` where others could reach the
            server, or with an admin key.
    """
    found = _keys_of(settings.admin_key_file, ADMIN_KEY_VARIABLE, environment)
    if set(found) & set(keys):
        raise ConfigError(
            "a key is both an API key and an admin key, so that whoever asks could change the "
            "pool; give each its own: openssl rand -hex 32"
        )
    if settings.manage and found:
        raise ConfigError("manage needs no admin key, and there is one; leave one of them out")
    if settings.manage and (settings.hosts or not settings.loopback):
        raise ConfigError(
            "manage lets whoever reaches the server change the pool, and others could: serve on "
            f"127.0.0.1 without hosts, or give --admin-key-file or {ADMIN_KEY_VARIABLE} instead"
        )
    return found


def _keys_of(file: Path | None, variable: str, environment: Mapping[str, str]) -> list[str]:
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (FileNotFoundError, UnicodeDecodeError):
            raise ConfigError(f"{file}: no file with an API key") from None
        keys, where = [line.strip() for line in lines if line.strip()], str(file)
        if not keys:
            raise ConfigError(f"{where}: holds no API key; write one a line")
    else:
        keys, where = [environment[variable]] if environment.get(variable) else [], variable
    if any(len(key) < KEY_LENGTH or not re.fullmatch(r"[!-~]+", key) for key in keys):
        raise ConfigError(
            f"{where}: an API key needs at least {KEY_LENGTH} characters, letters, digits and "
            "signs without spaces; make one with: openssl rand -hex 32"
        )
    return keys
