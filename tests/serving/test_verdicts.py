"""What a verdict costs those who wait for it is bounded."""

from __future__ import annotations

from typing import Any, cast

import pytest

from dylora_moe.build.pool import Pool
from dylora_moe.errors import DataError
from dylora_moe.serving import verdicts
from dylora_moe.serving.verdicts import skill_verdict
from tests.pools import LETTERS, rows


def test_a_verdict_s_tokens_are_bounded_before_the_model_sees_one(
    taught: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(*_: object, **__: object) -> None:
        raise AssertionError("a pass through the trunk")

    monkeypatch.setattr(taught.live, "encode", encode)
    monkeypatch.setattr(verdicts, "MOST_TOKENS", 50)
    with pytest.raises(DataError, match="given on 50 at most; send fewer or shorter ones"):
        skill_verdict(taught.live, cast("Any", None), rows(LETTERS, 40, 3))
    with pytest.raises(AssertionError, match="trunk"):
        skill_verdict(taught.live, cast("Any", None), rows(LETTERS, 2, 3))
