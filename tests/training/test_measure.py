from __future__ import annotations

from typing import Any

import pytest
import torch

from dylora_moe.errors import DataError, RoutingError
from dylora_moe.experts.gates import Gates
from dylora_moe.foundation.trunk_cache import TrunkCache
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.model.generation import generate
from dylora_moe.records import Example, Turn
from dylora_moe.text.batching import collate
from dylora_moe.text.template import Encoded, encode, encode_prompt
from dylora_moe.training.measure import answer_losses
from dylora_moe.training.rows import Rows
from tests.training.setting import OTHER, OWN, make_model


def test_the_base_is_measured_as_a_whole_forward_pass_would() -> None:
    model, rows, _, _ = make_model()
    found = answer_losses(model, rows, expert="base", batch_tokens=50)
    for index in (0, 7, 23):
        batch = collate([rows.encoded[index]], 0)
        logits = model.model(input_ids=batch["input_ids"]).logits[0, :-1].detach()
        labels = batch["labels"][0, 1:]
        kept = labels != -100
        total = torch.nn.functional.cross_entropy(logits[kept], labels[kept], reduction="sum")
        assert found.total[index] == pytest.approx(float(total), abs=1e-4)
        assert found.tokens[index] == int(kept.sum()) == rows.targets[index]
    assert found.mean == pytest.approx(float(found.total.sum() / found.tokens.sum()))
    assert torch.allclose(found.per_row, found.total / found.tokens)


def test_rows_count_their_tokens_once() -> None:
    # Whoever asks for each row's count in turn would else go through all rows each time.
    _, rows, _, _ = make_model()
    assert rows.targets is rows.targets
    assert rows.lengths is rows.lengths


def test_batches_do_not_matter() -> None:
    model, rows, _, _ = make_model()
    a = answer_losses(model, rows, expert=OTHER, batch_tokens=1)
    b = answer_losses(model, rows, expert=OTHER, batch_tokens=4096)
    assert torch.allclose(a.total, b.total, atol=1e-4)
    limited = answer_losses(model, rows, expert=OTHER, limit=5)
    assert torch.allclose(limited.total, a.total[:5], atol=1e-4)


def test_given_gates_are_those_of_the_same_row() -> None:
    model, rows, _, _ = make_model()
    weights = torch.zeros(len(rows), 2)
    weights[::2, 0] = 1.0
    mixed = answer_losses(model, rows, gates=Gates((OTHER, OWN), weights), batch_tokens=60)
    other = answer_losses(model, rows, expert=OTHER)
    base = answer_losses(model, rows, expert="base")
    assert torch.allclose(mixed.total[::2], other.total[::2], atol=1e-4)
    assert torch.allclose(mixed.total[1::2], base.total[1::2], atol=1e-4)
    assert not torch.allclose(other.total, base.total, atol=1e-2)


def test_some_rows_alone_have_the_losses_they_have_among_all() -> None:
    model, rows, _, _ = make_model()
    weights = torch.rand(len(rows), 2, generator=torch.Generator().manual_seed(0))
    gates = Gates((OTHER, OWN), weights)
    only = [7, 0, 5, 2]
    among_all = answer_losses(model, rows, gates=gates)
    alone = answer_losses(model, rows, gates=gates, only=only, batch_tokens=60)
    assert torch.allclose(alone.total, among_all.total[only], atol=1e-4)
    assert torch.equal(alone.tokens, among_all.tokens[only])


def test_routed_means_the_router_even_where_an_expert_is_pinned() -> None:
    model, rows, _, _ = make_model()
    routed = answer_losses(model, rows)
    model.experts.set_active_expert(OTHER, trainable=False)
    again = answer_losses(model, rows)
    assert torch.allclose(routed.total, again.total, atol=1e-4)
    gates = model.router(rows.features)
    assert torch.allclose(answer_losses(model, rows, gates=gates).total, routed.total, atol=1e-4)


def test_an_opening_is_what_greedy_decoding_writes_up_to_its_first_other_token() -> None:
    model, _, _, _ = make_model()
    base, stop = model.base, model.base.tokenizer.eos_token_id
    prompts = ["abcdef", "fedcba", "xyz", "uvwxyz"]
    turns = [(Turn("user", one), Turn("assistant", "ab"), Turn("user", one)) for one in prompts]
    asked = [(Turn("user", one),) for one in prompts] + turns
    encoded, expected = [], []
    for question in asked:
        ids = torch.tensor([encode_prompt(question, base.tokenizer)])
        kept = {"max_new_tokens": 6, "eos_token_id": stop, "do_sample": False}
        written = generate(model, ids, expert=OTHER, **kept).answers[0].tolist()
        assert len(written) == 6
        for right in (0, 2, 5):
            answer = [*written[:right], (written[right] + 1) % 99 + 5, 7, stop]
            row = (*ids[0].tolist(), *answer)
            before = encode(
                Example(
                    (*question, Turn("assistant", "")),
                ),
                base.tokenizer,
            ).trained
            trained = (*before[: ids.shape[1]], *[True] * len(answer))
            encoded.append(Encoded(row, trained, ids.shape[1], str(len(encoded))))
            expected.append(tuple(written[: right + 1]))
    rows = Rows(tuple(encoded), TrunkCache(base, encoded))
    found = answer_losses(model, rows, expert=OTHER, batch_tokens=80, openings=True)
    assert found.openings == tuple(expected)


def test_a_row_that_is_right_to_its_end_is_its_own_opening() -> None:
    model, _, _, _ = make_model()
    ids = encode_prompt("abcdef", model.base.tokenizer)
    answer = generate(
        model, torch.tensor([ids]), expert="base", max_new_tokens=4, do_sample=False
    ).answers[0]
    row = Encoded((*ids, *answer.tolist()), (False,) * len(ids) + (True,) * 4, len(ids), "row")
    rows = Rows((row,), TrunkCache(model.base, [row]))
    found = answer_losses(model, rows, expert="base", openings=True)
    assert found.openings == (tuple(answer.tolist()),)
    unasked = answer_losses(model, rows, expert="base")
    assert unasked.openings == ()
    assert torch.equal(unasked.total, found.total)


@pytest.mark.parametrize("asked", [False, True])
def test_the_largest_logits_are_looked_for_only_where_openings_are_asked_for(
    asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows, _, _ = make_model()
    original, looked = DyLoRAMoE.forward, []

    def forward(self: DyLoRAMoE, *args: Any, **kwargs: Any) -> Any:
        output = original(self, *args, **kwargs)
        looked.append(output.greedy is not None)
        return output

    monkeypatch.setattr(DyLoRAMoE, "forward", forward)
    found = answer_losses(model, rows, expert=OTHER, openings=asked)
    assert set(looked) == {asked}
    assert len(found.openings) == (len(rows) if asked else 0)


def test_the_mode_is_put_back_and_nothing_gets_a_gradient() -> None:
    model, rows, _, _ = make_model(dropout=0.5)
    model.train()
    a = answer_losses(model, rows, expert=OTHER)
    assert model.training
    model.eval()
    assert torch.equal(a.total, answer_losses(model, rows, expert=OTHER).total)
    assert not a.total.requires_grad


def test_memory_that_runs_out_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows, _, _ = make_model()
    expected = answer_losses(model, rows, expert=OTHER)
    original = DyLoRAMoE.forward

    def forward(self: DyLoRAMoE, *args: Any, **kwargs: Any) -> Any:
        if len(kwargs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(DyLoRAMoE, "forward", forward)
    found = answer_losses(model, rows, expert=OTHER)
    assert torch.allclose(found.total, expected.total, atol=1e-4)


def test_contradicting_arguments_and_foreign_rows_are_told() -> None:
    model, rows, valid, _ = make_model()
    with pytest.raises(RoutingError, match="both"):
        answer_losses(model, rows, expert=OWN, gates=model.router(rows.features))
    with pytest.raises(RoutingError, match="one per row"):
        answer_losses(model, rows, gates=model.router(valid.features))
    with pytest.raises(DataError, match="do not go with"):
        Rows(rows.encoded, valid.trunk)
