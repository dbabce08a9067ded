"""A student's pull towards a teacher: the gradient taken in pieces is that of the full logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dylora_moe.errors import RoutingError
from dylora_moe.model import distillation, head
from dylora_moe.model.distillation import Distillation, TeacherTargets, joined, targets_of
from dylora_moe.model.head import answer_losses_of, losses_of_logits, teacher_targets_of
from tests.model.builders import model_of, packed, padded
from tests.models import FAMILIES

VOCABULARY, POSITIONS, WIDTH = 104, 7, 8


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain(student: Tensor, teacher: Tensor, heat: float) -> Tensor:
    """The divergence written down from full distributions, all but the likeliest tokens as one."""
    p, q = (torch.softmax(logits / heat, -1) for logits in (teacher, student))
    kept = p.topk(distillation.TOP, -1).indices
    p, q = (
        torch.cat([each.gather(1, kept), 1 - each.gather(1, kept).sum(1, keepdim=True)], 1)
        for each in (p, q)
    )
    return heat**2 * functional.kl_div(q.log(), p, reduction="none").sum(1)


@pytest.mark.parametrize("at_a_time", [1 << 24, VOCABULARY * 2])
@pytest.mark.parametrize("heat", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("coefficient", [0.5, 3.0])
def test_the_gradient_in_pieces_is_autograd_s_on_full_logits(
    at_a_time: int, heat: float, coefficient: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "_LOGITS", at_a_time)
    layer = nn.Linear(WIDTH, VOCABULARY).requires_grad_(False)
    targets, weights = torch.randint(VOCABULARY, (POSITIONS,)), torch.rand(POSITIONS)
    teacher = 2 * drawn(POSITIONS, VOCABULARY, seed=1)
    term = Distillation(targets_of(teacher, heat), coefficient)
    found = []
    for form in ("pieces", "logits", "plain"):
        hidden = drawn(POSITIONS, WIDTH).requires_grad_()
        logits = layer(hidden)
        if form == "pieces":
            losses = answer_losses_of(hidden, layer, targets, distillation=term).losses
        elif form == "logits":
            losses = losses_of_logits(logits, targets, distillation=term).losses
        else:
            losses = functional.cross_entropy(logits, targets, reduction="none")
            losses = losses + coefficient * plain(logits, teacher, heat)
        (losses * weights).sum().backward()
        found.append((losses.detach(), hidden.grad))
    for ours, logits_made, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4, rtol=1e-5)
        assert torch.allclose(logits_made, theirs, atol=1e-4, rtol=1e-5)


def test_where_all_tokens_are_kept_but_one_it_is_the_divergence_of_the_whole_vocabulary() -> None:
    student, teacher = drawn(POSITIONS, 12), drawn(POSITIONS, 12, seed=1)
    whole = functional.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="none")
    found = distillation.divergence(student, targets_of(teacher, 1.0))
    assert torch.allclose(found, whole.sum(1), atol=1e-6)


def test_a_student_that_says_the_same_is_not_pulled_and_one_that_is_sure_stays_finite() -> None:
    logits = drawn(POSITIONS, VOCABULARY)
    same = distillation.pull(logits, targets_of(logits, 2.0))
    assert torch.allclose(same.divergence, torch.zeros(POSITIONS), atol=1e-5)
    assert torch.allclose(same.gradient, torch.zeros_like(logits), atol=1e-6)
    sure = 1000.0 * functional.one_hot(torch.arange(POSITIONS), VOCABULARY).float()
    for student, teacher in ((sure, logits), (logits, sure), (sure, sure.flip(0))):
        far = distillation.pull(student, targets_of(teacher, 1.0))
        assert bool(far.divergence.isfinite().all())
        assert bool(far.gradient.isfinite().all())
        assert bool((far.divergence > -1e-5).all())


def test_targets_are_cut_and_joined_again() -> None:
    targets = targets_of(drawn(POSITIONS, VOCABULARY), 2.0)
    assert torch.allclose(targets.probabilities.sum(1) + targets.rest, torch.ones(POSITIONS))
    again = joined(targets.split([2, 4, 1]))
    assert torch.equal(again.tokens, targets.tokens)
    assert torch.equal(again.probabilities, targets.probabilities)
    assert torch.equal(again.rest, targets.rest)


@pytest.mark.parametrize("at_a_time", [1 << 24, VOCABULARY * 2])
def test_a_teacher_s_word_is_that_of_its_logits(
    at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "_LOGITS", at_a_time)
    layer, hidden = nn.Linear(WIDTH, VOCABULARY), drawn(POSITIONS, WIDTH)
    found, expected = teacher_targets_of(hidden, layer, 2.0), targets_of(layer(hidden), 2.0)
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.allclose(found.probabilities, expected.probabilities, atol=1e-6)
    assert torch.allclose(found.rest, expected.rest, atol=1e-6)


def taught(model_said: TeacherTargets | None) -> TeacherTargets:
    assert model_said is not None
    return model_said


@pytest.mark.parametrize("capped", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_with_a_teacher_adds_what_the_teacher_s_pass_said(family: str, capped: bool) -> None:
    model = model_of(family)
    if capped:
        model._ends_at_head = False
    for batch in [padded()] + ([packed()] if model.base.anatomy.packs else []):
        with torch.no_grad():
            output = model(**batch, expert="expert_1", loss_only=True, teaches_at=2.0)
            said = taught(output.taught)
            own = model(**batch, expert="expert_0", trained_logits_only=True)
            logits = model(**batch, expert="expert_1", trained_logits_only=True).logits
        expected = plain(own.logits, logits, 2.0)
        assert len(said.rest) == int(output.n_tokens)
        with torch.no_grad():
            found = model(
                **batch,
                expert="expert_0",
                loss_only=True,
                distillation=Distillation(said, 0.5),
                num_items_in_batch=10,
            )
        apart, answers = float(expected.sum()) / 10, float(own.loss) * int(own.n_tokens) / 10
        assert float(found.divergence) == pytest.approx(apart, rel=1e-3, abs=1e-5)
        assert float(found.loss) == pytest.approx(answers + 0.5 * apart, rel=1e-4)


def test_nothing_is_taught_without_labels() -> None:
    batch = {key: value for key, value in padded().items() if key != "labels"}
    with pytest.raises(RoutingError, match="distillation and teaches_at out"):
        model_of()(**batch, teaches_at=2.0)
