"""A router that was stored answers as before, a trained one too."""

from __future__ import annotations

import pytest
import torch

from dylora_moe.errors import ArtifactError
from dylora_moe.foundation import tensor_bytes
from dylora_moe.foundation.statistics import FeatureStatistics
from dylora_moe.routing import state
from dylora_moe.routing.router import DynamicHybridRouter

from .builders import D, build, cluster, features, none_rows, train_a_step


@pytest.mark.parametrize("gate", ["linear", "mlp"])
def test_a_trained_router_is_stored_and_read_bit_for_bit(gate: str) -> None:
    router = build(
        gate=gate, temperature=4.0, mix_temperature=2.0, top_k=3, none_bias=0.5, none_share=0.1
    )
    train_a_step(router)
    router.set_maturity({"expert_sql": 0.9, "expert_json": 0.4})
    router.calibrate_none(features(), none_rows())
    router.anneal(0.5)
    again = state.from_bytes(state.to_bytes(router))
    x = torch.cat([cluster(i, 5, seed=2) for i in range(5)] + [none_rows(5, seed=2)])
    before, after = router(x), again(x)
    for name in ("weights", "none", "probabilities", "logits", "entropy", "load", "sparse"):
        assert torch.equal(getattr(before, name), getattr(after, name)), name
    assert router.correction.delta_W.any()
    assert before.experts == after.experts
    assert again.rows == router.rows
    assert again.maturity == router.maturity
    assert again.rule == router.rule
    assert again.none_threshold == router.none_threshold
    assert again.none_share == 0.1
    assert state.to_bytes(again) == state.to_bytes(router)


def test_a_router_that_was_read_goes_on_as_the_stored_one() -> None:
    router = build()
    train_a_step(router)
    again = state.from_bytes(state.to_bytes(router))
    for one in (router, again):
        one.add_expert("new", "expert_new", FeatureStatistics.from_features(cluster(4)))
        one.remove("sql", FeatureStatistics.from_features(features()["sql"]))
    x = cluster(4, 5, seed=2)
    assert torch.equal(router(x).weights, again(x).weights)


@pytest.mark.parametrize("none", [True, False])
def test_an_empty_router_is_stored_and_read(none: bool) -> None:
    router = DynamicHybridRouter(D)
    if none:
        router.set_none(FeatureStatistics.from_features(none_rows()))
    again = state.from_bytes(state.to_bytes(router))
    assert again.table.has_none is none
    assert again(cluster(0)).weights.shape == (40, 0)


def test_a_router_stored_before_it_knew_a_setting_has_the_default() -> None:
    known = state.to_bytes(build(none_share=0.1, granularity="token"))
    tensors, header = tensor_bytes.from_bytes(known, "router")
    del header["settings"]["none_share"], header["settings"]["granularity"]
    again = state.from_bytes(tensor_bytes.to_bytes(tensors, header))
    assert (again.none_share, again.granularity) == (0.002, "sequence")
    assert state.from_bytes(known).granularity == "token"


def test_damaged_bytes_are_refused() -> None:
    body = state.to_bytes(build())
    with pytest.raises(ArtifactError):
        state.from_bytes(body[: len(body) // 2])
