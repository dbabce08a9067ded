from __future__ import annotations

import pytest
import torch

from dylora_moe.foundation.anatomy import find_anatomy
from dylora_moe.foundation.fingerprint import fingerprint
from tests.models import FAMILIES, tiny


def _print(model: torch.nn.Module, tap: int | None = None) -> str:
    return fingerprint(model, find_anatomy(model, tap=tap))


@pytest.mark.parametrize("family", FAMILIES)
def test_one_base_has_one_fingerprint_in_any_dtype_and_at_any_tap(family: str) -> None:
    reference = _print(tiny(family))
    for dtype in (torch.float16, torch.bfloat16):
        assert _print(tiny(family, dtype=dtype)) == reference
    assert _print(tiny(family), tap=3) == reference


def test_every_other_base_has_another_fingerprint() -> None:
    prints = [_print(tiny(family)) for family in FAMILIES]
    prints += [_print(tiny(seed=1)), _print(tiny(layers=5))]
    assert len(set(prints)) == len(prints)


def test_a_lightly_tuned_copy_has_another_fingerprint() -> None:
    model = tiny()
    before = _print(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * weight.std() * 0.02)
    assert _print(model) != before
