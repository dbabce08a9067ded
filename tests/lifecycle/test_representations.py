"""What the novelty tests compare, in every representation."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dylora_moe.build.pool import Pool
from dylora_moe.lifecycle.answer_gradients import answer_gradients
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.lifecycle.observation import observe
from dylora_moe.lifecycle.recipe import Representation
from dylora_moe.lifecycle.representations import compared
from dylora_moe.records import Arrival
from dylora_moe.skills.mahalanobis import Mahalanobis
from dylora_moe.text.template import Encoded
from tests.pools import LETTERS, SIGNS, doubled, rows, shouted


def written_out(live: LivePool, row: Encoded) -> Tensor:
    """The gradient of a row's mean answer loss, from the whole base and all its logits."""
    tokens = torch.tensor([row.input_ids])
    with torch.no_grad(), live.model.passes.bound(None):
        hidden = live.base.model.base_model(input_ids=tokens, use_cache=False)[0][0]
    hidden = hidden.detach().requires_grad_()
    head = live.base.model.get_submodule(live.base.anatomy.head_name)
    trained = torch.tensor(row.trained)[1:]
    loss = functional.cross_entropy(head(hidden)[:-1][trained], tokens[0, 1:][trained])
    (gradient,) = torch.autograd.grad(loss, hidden)
    return gradient.sum(0)


def test_a_gradient_is_that_of_the_base_alone_for_each_row_of_a_batch(taught: Pool) -> None:
    live = taught.live
    live.experts.set_active_expert("expert_1", trainable=False)
    encoded = live.encode(rows(LETTERS, 9, 21) + rows(SIGNS, 4, 22, shouted))
    found = answer_gradients(live, encoded)
    live.experts.activate_all_experts()
    for row, gradient in zip(encoded.encoded, found, strict=True):
        torch.testing.assert_close(gradient, written_out(live, row), atol=1e-5, rtol=1e-4)


def test_no_parameter_gets_a_gradient(taught: Pool) -> None:
    live = taught.live
    answer_gradients(live, live.encode(rows(LETTERS, 3, 21)))
    assert all(p.grad is None for p in live.model.parameters())


@pytest.mark.parametrize("representation", get_args(Representation))
def test_an_arrival_and_the_skills_are_seen_alike(
    representation: Representation, taught: Pool
) -> None:
    """All rows of the arrival; of a skill the rows it was trained on, in their own numbers."""
    live = taught.live
    observation = observe(live, Arrival("signs", rows(SIGNS, 30, 5)), fraction=0.3)
    assert observation.validation is not None
    seen = compared(live, observation, representation)
    assert seen.features.shape[0] == 30
    assert [s.skill_id for s in seen.library.skills] == [s.skill_id for s in live.library.skills]
    for ours, theirs in zip(seen.library.skills, live.library.skills, strict=True):
        assert ours.expert_id == theirs.expert_id
        assert ours.features.shape == (len(theirs.keys), seen.features.shape[1])
    stored = live.read(live.revision.skills[0].examples)
    again = observe(live, Arrival("again", stored), fraction=0.3)
    own = compared(live, again, representation).features
    distances = torch.cdist(own.float(), seen.library.skills[0].features.float()).amin(1)
    assert float(distances.max()) < 1e-2 * float(own.norm(dim=1).mean())


def test_gradients_tell_other_answers_to_the_same_inputs_and_tap_features_do_not(
    taught: Pool,
) -> None:
    live, values = taught.live, {}
    for answer in (doubled, shouted):
        observation = observe(live, Arrival("x", rows(LETTERS, 64, 13, answer)), fraction=0.15)
        for representation in ("tap", "gradient"):
            seen = compared(live, observation, representation)
            measured = Mahalanobis().measure(seen.features, seen.library)
            values[representation, answer] = dict(measured.nearest)[
                live.revision.skills[0].skill_id
            ]
    assert values["gradient", shouted] > 0.9
    assert values["gradient", doubled] < 0.7
    assert values["tap", shouted] == pytest.approx(values["tap", doubled], abs=0.05)
