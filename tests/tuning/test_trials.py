"""A trial is what its settings make of it, whatever was tried before."""

from __future__ import annotations

from dylora_moe.foundation.trunk_cache import TrunkCache
from dylora_moe.text.template import PromptFormat, encode_all
from dylora_moe.training.rows import Rows
from dylora_moe.tuning.material import Skill
from dylora_moe.tuning.trials import Ground
from tests.models import tiny_base
from tests.pools import LETTERS, rows, settings


def test_the_same_settings_come_to_the_same_whenever_they_are_tried() -> None:
    base = tiny_base()
    examples = rows(LETTERS, 40, 21)

    def cached(start: int, end: int) -> Rows:
        found, _ = encode_all(examples[start:end], base.tokenizer, PromptFormat("plain", None))
        return Rows(tuple(found), TrunkCache(base, found))

    skill, ground = Skill("letters", cached(0, 24), cached(24, 32), cached(32, 40)), Ground(base)
    first = ground.train(skill, settings())
    other = ground.train(skill, settings(seed=1))
    again = ground.train(skill, settings())
    assert again.judged == first.judged
    assert other.judged != first.judged
