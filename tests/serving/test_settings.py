from __future__ import annotations

from pathlib import Path

import pytest

from dylora_moe.errors import ConfigError
from dylora_moe.parsing import parse
from dylora_moe.serving import settings as module
from dylora_moe.serving.settings import (
    ADMIN_KEY_VARIABLE,
    KEY_VARIABLE,
    ServeSettings,
    read_admin_keys,
    read_keys,
    read_settings,
)

KEY = "k" * 32


def written(folder: Path, body: str) -> Path:
    file = folder / "serve.yaml"
    file.write_text(body, encoding="utf-8")
    return file


def test_every_class_is_frozen_and_refuses_unknown_keys() -> None:
    classes = [
        found
        for found in vars(module).values()
        if isinstance(found, type) and issubclass(found, module.Settings)
    ]
    assert len(classes) == 7
    for found in classes:
        assert found.model_config.get("frozen")
        assert found.model_config.get("extra") == "forbid"


def test_options_count_more_than_the_file_and_the_file_more_than_defaults(tmp_path: Path) -> None:
    file = written(tmp_path, "port: 9000\nhost: localhost\nlimits: {max_tokens: 5}\n")
    found = read_settings(file, port=9001, host=None)
    assert (found.port, found.host, found.limits.max_tokens) == (9001, "localhost", 5)
    assert found.engine == ServeSettings().engine
    assert read_settings(None) == ServeSettings()


def test_the_file_of_keys_is_relative_to_the_settings_and_not_if_it_was_typed(
    tmp_path: Path,
) -> None:
    file = written(tmp_path, "api_key_file: keys\n")
    assert read_settings(file).api_key_file == tmp_path / "keys"
    assert read_settings(file, api_key_file=Path("typed")).api_key_file == Path("typed")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("prot: 1", "did you mean 'port'?"),
        ("limits: {max_token: 1}", "did you mean 'max_tokens'?"),
        ("port: 70000", "port: input should be less than or equal to 65535"),
        ("name: base", "name: value error, 'base' cannot name a pool"),
        ("name: a b", "cannot name a pool"),
        ("inbox: {redact: ['[']}", "is no regular expression"),
        ("{screen: false, inbox: {enabled: true}}", "leave screen true"),
        ("- a", "expected keys, found list"),
        ("a: [", "not valid YAML"),
        ("api_key: secret", "unknown key 'api_key'"),
    ],
)
def test_bad_settings_are_one_line_that_names_the_file(
    body: str, told: str, tmp_path: Path
) -> None:
    file = written(tmp_path, body)
    with pytest.raises(ConfigError) as caught:
        read_settings(file)
    assert str(caught.value).startswith(str(file))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file of settings"):
        read_settings(tmp_path / "missing.yaml")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "::1"])
def test_loopback_needs_no_key(host: str) -> None:
    assert read_keys(parse(ServeSettings, {"host": host}, "t"), {}) == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "pool.example", "localhost.evil"])
def test_any_other_address_needs_one(host: str) -> None:
    settings = parse(ServeSettings, {"host": host}, "t")
    with pytest.raises(ConfigError, match="there is no API key"):
        read_keys(settings, {})
    assert read_keys(settings, {KEY_VARIABLE: KEY}) == [KEY]


def test_a_file_holds_keys_a_line_and_counts_more_than_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{KEY}\n\n  {KEY}2\n", encoding="utf-8")
    settings = ServeSettings(api_key_file=file)
    assert read_keys(settings, {KEY_VARIABLE: "x" * 20}) == [KEY, f"{KEY}2"]


def test_admin_keys_are_of_their_own_kind(tmp_path: Path) -> None:
    file = tmp_path / "admins"
    file.write_text(f"{KEY}1\n{KEY}2\n", encoding="utf-8")
    settings = parse(ServeSettings, {"admin_key_file": file}, "t")
    assert read_admin_keys(settings, [KEY], {}) == [f"{KEY}1", f"{KEY}2"]
    assert read_admin_keys(ServeSettings(), [], {}) == []
    assert read_admin_keys(ServeSettings(), [], {ADMIN_KEY_VARIABLE: KEY}) == [KEY]
    with pytest.raises(ConfigError, match="both an API key and an admin key"):
        read_admin_keys(settings, [f"{KEY}2"], {})
    # Not a client's key: nobody is let in by it who only asks.
    assert read_keys(settings, {ADMIN_KEY_VARIABLE: KEY}) == []


@pytest.mark.parametrize(
    ("values", "environment"),
    [
        ({"host": "0.0.0.0"}, {}),
        ({"hosts": ["pool.example"]}, {}),
        ({}, {ADMIN_KEY_VARIABLE: KEY}),
    ],
)
def test_managing_without_a_key_is_for_a_machine_of_one_s_own(
    values: dict[str, object], environment: dict[str, str]
) -> None:
    assert read_admin_keys(parse(ServeSettings, {"manage": True}, "t"), [], {}) == []
    settings = parse(ServeSettings, {"manage": True, **values}, "t")
    with pytest.raises(ConfigError, match="manage"):
        read_admin_keys(settings, [KEY + "0"], environment)


@pytest.mark.parametrize("body", ["", "\n", "short", "with a space in it", "ü" * 20])
def test_a_file_without_a_usable_key_is_refused_and_not_quoted(body: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(body, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_keys(ServeSettings(api_key_file=file), {})
    assert body.strip() == "" or body not in str(caught.value)
    with pytest.raises(ConfigError, match="no file with an API key"):
        read_keys(ServeSettings(api_key_file=tmp_path / "missing"), {})
