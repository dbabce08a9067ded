from __future__ import annotations

import errno
from pathlib import Path

import pytest
from safetensors import SafetensorError

from dylora_moe.errors import BaseModelError, StorageFullError
from dylora_moe.foundation import gguf
from dylora_moe.foundation.base import load_base
from dylora_moe.foundation.gguf import cache_folder, converted
from tests.models import tiny, tiny_base, tiny_tokenizer


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.Q4.gguf"
    file.write_bytes(b"GGUF and so on")
    return file


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Counts conversions, each of which gives the tiny model."""
    done: list[Path] = []

    def convert(file: Path, folder: Path) -> None:
        done.append(file)
        tiny().save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)

    monkeypatch.setattr(gguf, "_convert", convert)
    return done


def test_a_file_is_converted_once_and_then_taken_from_the_cache(
    source: Path, tmp_path: Path, conversions: list[Path]
) -> None:
    cache = tmp_path / "cache"
    base = load_base(str(source), device="cpu", dtype="fp32", cache_dir=cache)
    assert base.fingerprint == tiny_base().fingerprint
    assert converted(source, cache) == converted(source, cache)
    assert conversions == [source]
    converted(source, cache, fresh=True)
    assert conversions == [source, source]
    assert [path.name[0] for path in (cache / "bases").iterdir()] == ["t"], "nothing staged is left"


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_a_damaged_copy_is_noticed_and_made_again(
    damage: str, source: Path, tmp_path: Path, conversions: list[Path]
) -> None:
    folder = converted(source, tmp_path / "cache")
    weights = folder / "model.safetensors"
    body = weights.read_bytes()
    if damage == "flip":
        weights.write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
    elif damage == "truncate":
        weights.write_bytes(body[:-1])
    elif damage == "remove":
        weights.unlink()
    else:
        (folder / gguf.MANIFEST).write_text("{}")
    assert converted(source, tmp_path / "cache") == folder
    assert len(conversions) == 2
    assert weights.read_bytes() == body


def test_another_file_of_the_same_name_has_its_own_copy(
    source: Path, tmp_path: Path, conversions: list[Path]
) -> None:
    first = converted(source, tmp_path / "cache")
    source.write_bytes(b"GGUF requantised")
    assert converted(source, tmp_path / "cache") != first
    assert len(conversions) == 2


def test_an_interrupted_conversion_leaves_nothing_that_is_taken_for_a_copy(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conversions: list[Path]
) -> None:
    def interrupt(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gguf, "_seal", interrupt)
        with pytest.raises(KeyboardInterrupt):
            converted(source, tmp_path / "cache")
    assert list((tmp_path / "cache" / "bases").iterdir()) == []
    converted(source, tmp_path / "cache")
    assert len(conversions) == 2


def test_a_file_that_is_not_gguf_is_one_line(source: Path, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="cannot be read as a GGUF model") as caught:
        converted(source, tmp_path / "cache")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left (os error 28)"),
    ],
)
def test_a_full_disk_is_one_clear_error(
    error: Exception, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(gguf, "_convert", full)
    with pytest.raises(StorageFullError, match=r"no room to convert tiny\.Q4\.gguf"):
        converted(source, tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_one_clear_error(source: Path) -> None:
    with pytest.raises(BaseModelError, match="point DYLORA_CACHE to a folder"):
        converted(source, source / "below-a-file")


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYLORA_CACHE", "/own")
    assert cache_folder() == Path("/own")
    monkeypatch.delenv("DYLORA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/dylora")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "dylora"
