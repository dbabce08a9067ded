"""The file of an adapter's matrices: its shapes from the header alone, its numbers on demand.

Knows PEFT's names of tensors; knows no configuration and no model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from peft.utils import load_peft_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dylora_moe.errors import ExpertError
from dylora_moe.experts.packed import Layout, Packed

WEIGHTS_NAME = "adapter_model.safetensors"
OLD_WEIGHTS_NAME = "adapter_model.bin"

KEY_PREFIX = "base_model.model."
"""What PEFT puts before a module's path in its files."""

_A, _B = ".lora_A.weight", ".lora_B.weight"

Shape = tuple[int, ...]


def key_a(path: str) -> str:
    """The name of a module's `lora_A` in an adapter file."""
    return f"{KEY_PREFIX}{path}{_A}"


def key_b(path: str) -> str:
    """The name of a module's `lora_B` in an adapter file."""
    return f"{KEY_PREFIX}{path}{_B}"


def weights_file(folder: Path) -> Path:
    """The file of the folder's tensors.

    Raises:
        ExpertError: the folder is not a PEFT adapter.
    """
    for name in (WEIGHTS_NAME, OLD_WEIGHTS_NAME):
        if (folder / name).is_file():
            return folder / name
    raise ExpertError(
        f"{folder} holds no {WEIGHTS_NAME}; give a folder that PEFT's save_pretrained wrote"
    )


def read_shapes(file: Path) -> dict[str, tuple[Shape, Shape]]:
    """The shapes of `lora_A` and `lora_B` of each adapted module, sorted by path.

    Of a safetensors file the header alone is read; an old file has none and is read whole.

    Raises:
        ExpertError: it is damaged or truncated, or holds something else than pairs of matrices.
    """
    with _damage_told(file):
        if file.name == OLD_WEIGHTS_NAME:
            shapes = {key: tuple(value.shape) for key, value in _read_old(file).items()}
        else:
            with safe_open(file, "pt") as stored:
                names = stored.keys()
                shapes = {key: tuple(stored.get_slice(key).get_shape()) for key in names}
    return _paired(shapes, file)


def read_packed(file: Path, layout: Layout) -> Packed:
    """Reads the numbers of a file of this layout, as fp32.

    The file is mapped and copied: what is mapped would change under the model if the file did.

    Raises:
        ExpertError: it is damaged, or holds numbers that are not finite.
    """
    packed = Packed.empty(layout)
    with _damage_told(file):
        if file.name == OLD_WEIGHTS_NAME:
            _fill(packed, _read_old(file).__getitem__, file)
        else:
            with safe_open(file, "pt") as stored:
                _fill(packed, stored.get_tensor, file)
    _check_finite(packed, file)
    return packed


def _fill(packed: Packed, read: Callable[[str], Tensor], file: Path) -> None:
    for path, pair in packed.matrices().items():
        for key, place in zip((key_a(path), key_b(path)), pair, strict=True):
            tensor = read(key)
            # Of another shape it might be broadcast without a word.
            if tensor.shape != place.shape:
                raise ExpertError(
                    f"{file} holds {key} as {list(tensor.shape)} and not {list(place.shape)} any "
                    "more; it was changed after it was looked at: load it again"
                )
            place.copy_(tensor)


def _check_finite(packed: Packed, file: Path) -> None:
    # One sum is a fraction of looking at every number; it may overflow, rarely.
    if torch.isfinite(packed.flat.sum()):
        return
    for path, (down, up) in packed.matrices().items():
        if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
            raise ExpertError(f"{file} holds numbers that are not finite at {path}; copy it again")


def _read_old(file: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = load_peft_weights(str(file.parent), device="cpu")
    return tensors


def _paired(shapes: Mapping[str, Shape], file: Path) -> dict[str, tuple[Shape, Shape]]:
    downs: dict[str, Shape] = {}
    ups: dict[str, Shape] = {}
    for key, shape in shapes.items():
        path = key.removeprefix(KEY_PREFIX)
        if path.endswith(_A):
            downs[path.removesuffix(_A)] = shape
        elif path.endswith(_B):
            ups[path.removesuffix(_B)] = shape
        else:
            raise ExpertError(
                f"{file} holds {key}, which is no LoRA matrix of a linear layer; experts share a "
                "frozen head and embedding: train it again without them"
            )
    if not downs or downs.keys() != ups.keys():
        raise ExpertError(
            f"{file} lacks one of the two LoRA matrices of "
            f"{', '.join(sorted(downs.keys() ^ ups.keys())[:3]) or 'every layer'}; copy it again"
        )
    return {path: (downs[path], ups[path]) for path in sorted(downs)}


@contextlib.contextmanager
def _damage_told(file: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ExpertError(
            f"{file} is damaged or truncated ({error}); copy it again from where it was trained"
        ) from error
