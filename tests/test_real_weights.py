"""The whole way on SmolLM2-135M, as short as it can be: minutes, not seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dylora_moe import Pool
from dylora_moe.config import learn_settings
from dylora_moe.foundation.base import Base
from dylora_moe.text.synthetic import sample_stream

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]

_SHORT = ("seeding=null", "consolidation.epochs=2", "generate_scores=4", "gate.tolerance=0.1")


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, real_base: Base) -> Path:
    """A pool that learned two skills and met the first one again; `real_base` skips without it."""
    folder = tmp_path_factory.mktemp("real")
    files = {file.stem: file for file in sample_stream(folder / "data", rows=72)}
    with Pool.create(folder / "pool", own_prompts=48) as pool:
        for name in ("1-orders", "2-robot"):
            result = pool.learn(files[name], settings=learn_settings(_SHORT))
            assert (result.verdict.name, result.action) == ("novel", "created"), result
        again = pool.learn(files["5-robot"], settings=learn_settings(_SHORT))
        assert again.verdict.name == "known", again
        assert len(pool.experts()) == 2
    return folder


def test_experts_on_real_weights_beat_the_base_and_are_routed_to(learned: Path) -> None:
    with Pool.open(learned / "pool") as pool:
        for name, found in pool.evaluate(generate=False).items():
            base = pool.evaluate(generate=False, expert="base")[name]
            assert found.loss < 0.5 * base.loss
            assert max(found.to, key=found.to.__getitem__) == name


def test_foreign_input_gets_the_base_bit_for_bit(learned: Path, real_base: Base) -> None:
    text = "The history of the city goes back to the twelfth century, when merchants\n"
    ids = torch.tensor([real_base.tokenizer(text)["input_ids"]])
    with Pool.open(learned / "pool") as pool, torch.no_grad():
        output = pool.live.model(ids, attention_mask=torch.ones_like(ids))
        assert bool(output.routing.to_none.all())
        stock = real_base.model(ids, attention_mask=torch.ones_like(ids))
    assert torch.equal(output.logits, stock.logits)
