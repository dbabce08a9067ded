from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from dylora_moe.errors import DataError
from dylora_moe.foundation.tap import Hiddens, TapReader, pool_features, running_features
from dylora_moe.foundation.trunk import replay, trunk_states
from tests.foundation.batches import model_inputs, padded, rows
from tests.models import FAMILIES, tiny_base


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reader_hears_what_enters_each_feature_block(family: str) -> None:
    base = tiny_base(family, layers=6, tap=4)
    batch = padded(rows(), "left")
    heard: list[Hiddens] = []
    with TapReader(base.model, base.anatomy).listening(heard.append):
        out = base.model(**model_inputs(batch), output_hidden_states=True)
    assert base.anatomy.feature_blocks == (1, 2, 3, 4)
    (hiddens,) = heard
    for index, hidden in zip(base.anatomy.feature_blocks, hiddens, strict=True):
        assert torch.equal(hidden, out.hidden_states[index])


def test_the_reader_calls_back_before_the_blocks_above_the_tap_run() -> None:
    base = tiny_base()
    order: list[str] = []
    above = base.model.model.layers[2]
    handle = above.register_forward_pre_hook(lambda *_: order.append("above"))
    with TapReader(base.model, base.anatomy).listening(lambda _: order.append("heard")):
        base.model(input_ids=torch.tensor([[5, 6, 7]]))
    handle.remove()
    assert order == ["heard", "above"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cached_generation_is_heard_step_by_step(family: str) -> None:
    base = tiny_base(family)
    lengths: list[int] = []
    reader = TapReader(base.model, base.anatomy)
    with reader.listening(lambda hiddens: lengths.append(hiddens[-1].shape[1])):
        base.model.generate(
            input_ids=torch.tensor([[5, 6, 7]]),
            attention_mask=torch.ones(1, 3, dtype=torch.long),
            max_new_tokens=3,
            min_new_tokens=3,
            do_sample=False,
        )
    assert lengths == [3, 1, 1]


def test_the_reader_stops_listening_even_after_an_error() -> None:
    base = tiny_base()
    reader = TapReader(base.model, base.anatomy)
    heard: list[Hiddens] = []
    with pytest.raises(RuntimeError, match="stop"), reader.listening(heard.append):
        raise RuntimeError("stop")
    base.model(input_ids=torch.tensor([[5, 6]]))
    assert heard == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_replayed_pass_is_not_heard(family: str) -> None:
    base = tiny_base(family)
    batch = padded(rows())
    trunk = trunk_states(base, batch)
    heard: list[Hiddens] = []
    with (
        TapReader(base.model, base.anatomy).listening(heard.append),
        replay(base, trunk.hidden),
    ):
        base.model(**model_inputs(batch), use_cache=False)
    assert heard == []


def test_compile_takes_the_hook_without_a_graph_break() -> None:
    base = tiny_base()
    batch = padded(rows())

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        heard: list[Hiddens] = []
        with TapReader(base.model, base.anatomy).listening(heard.append):
            logits = compiled(**model_inputs(batch), use_cache=False).logits
        return logits, heard[0][-1]

    compiled = base.model
    logits, tap = step()
    compiled = torch.compile(base.model, fullgraph=True, backend="eager")
    logits_c, tap_c = step()
    torch.testing.assert_close((logits_c, tap_c), (logits, tap), atol=1e-4, rtol=0)


def test_pooling_is_the_mean_over_the_prompt_in_fp32() -> None:
    hidden = torch.randn(2, 5, 4).to(torch.bfloat16)
    mask = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 1, 1, 1]]).bool()
    pooled = pool_features([hidden, hidden * 2], mask)
    assert pooled.dtype == torch.float32
    means = torch.stack([hidden[0, :2].float().mean(0), hidden[1, 2:].float().mean(0)])
    torch.testing.assert_close(pooled, torch.cat([means, means * 2], 1))


def test_pooling_of_segments_is_that_of_the_rows() -> None:
    first, second = torch.randn(1, 3, 4), torch.randn(1, 2, 4)
    masks = torch.tensor([[True, True, False]]), torch.tensor([[False, True]])
    together = pool_features(
        [torch.cat([first, second], 1)], torch.cat(masks, 1), torch.tensor([[0, 0, 0, 1, 1]])
    )
    apart = [pool_features([h], m) for h, m in zip((first, second), masks, strict=True)]
    torch.testing.assert_close(together, torch.cat(apart))


def test_what_is_not_prompt_cannot_reach_the_features_not_even_as_nan() -> None:
    hidden = torch.randn(1, 4, 3)
    mask = torch.tensor([[True, True, False, False]])
    clean = pool_features([hidden], mask)
    hidden[:, 2:] = float("nan")
    assert torch.equal(pool_features([hidden], mask), clean)


def test_shapes_are_checked_in_the_tests() -> None:
    with pytest.raises(TypeCheckError):
        pool_features([torch.randn(2, 2, 3)], torch.ones(2, 5, dtype=torch.bool))


def test_a_row_without_a_prompt_is_named() -> None:
    mask = torch.tensor([[True, False], [False, False]])
    with pytest.raises(DataError, match="row 1 of the batch has no prompt token"):
        pool_features([torch.randn(2, 2, 3)], mask)


def test_running_features_are_those_of_every_prefix_and_go_on_where_they_were_left() -> None:
    hiddens = tuple(torch.randn(2, 7, 4) for _ in range(3))
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, :2] = False
    whole = running_features(hiddens, mask)
    for end in range(3, 8):
        there = mask & (torch.arange(7) < end)
        expected = pool_features(hiddens, there)
        torch.testing.assert_close(whole.features[:, end - 1], expected)
    assert whole.prefix.count.flatten().tolist() == [5.0, 7.0]
    first = running_features([h[:, :4] for h in hiddens], mask[:, :4])
    rest = running_features([h[:, 4:] for h in hiddens], mask[:, 4:], prefix=first.prefix)
    torch.testing.assert_close(torch.cat([first.features, rest.features], 1), whole.features)


def test_running_features_of_packed_rows_are_those_of_each_alone() -> None:
    hiddens = (torch.randn(1, 9, 4) * 1e3, torch.randn(1, 9, 4))
    mask = torch.ones(1, 9, dtype=torch.bool)
    segments = torch.tensor([[0, 0, 0, 0, 1, 2, 2, 2, 2]])
    packed = running_features(hiddens, mask, segments).features
    for start, end in ((0, 4), (4, 5), (5, 9)):
        alone = running_features([h[:, start:end] for h in hiddens], mask[:, start:end]).features
        assert torch.equal(packed[:, start:end], alone)


def test_what_padding_holds_counts_for_no_running_mean() -> None:
    hidden = torch.randn(1, 4, 3)
    hidden[0, 0] = float("nan")
    mask = torch.tensor([[False, True, True, True]])
    found = running_features((hidden,), mask).features[0, 1:]
    torch.testing.assert_close(found, running_features((hidden[:, 1:],), mask[:, 1:]).features[0])
