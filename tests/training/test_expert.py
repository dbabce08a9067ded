"""Laws of a whole training, on a tiny model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dylora_moe.errors import TrainingError
from dylora_moe.experts.gates import Gates
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.training.expert import train_expert
from dylora_moe.training.measure import RowLosses, answer_losses
from dylora_moe.training.objective import Rehearsal
from dylora_moe.training.outcome import TrainingOutcome
from dylora_moe.training.phases import Phase
from dylora_moe.training.rows import Rows
from tests.training.setting import OTHER, OWN, Memory, make_model, two_phases, weights_of

Parts = tuple[DyLoRAMoE, Rows, Rows, Rehearsal]


def train(parts: Parts, folder: Path, **changes: Any) -> tuple[TrainingOutcome, Memory]:
    model, rows, valid, rehearsal = parts
    memory = Memory()
    arguments: dict[str, Any] = {
        "train": rows,
        "evaluation": {"own": valid, "seen": rows},
        "target": "own",
        "phases": two_phases(),
        "neighbours": [OTHER],
        "rehearsal": rehearsal,
        "folder": folder,
        "reporter": memory,
    }
    return train_expert(model, OWN, **(arguments | changes)), memory


def test_training_lowers_the_loss_and_moves_nothing_but_expert_and_gate(tmp_path: Path) -> None:
    parts = make_model()
    model = parts[0]
    before = weights_of(model)
    outcome, _ = train(parts, tmp_path)
    after = weights_of(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert outcome.best_loss < 0.9 * outcome.start_loss
    gate = {name for name in moved if name.startswith("router.")}
    assert {name for name in moved if OWN in name} | gate == moved
    assert any(name.startswith("router.correction") for name in gate)
    assert sum(OWN in name for name in moved) == len(model.experts.parameters_of(OWN))
    assert not any(p.requires_grad for p in model.model.parameters())
    assert not model.training


def test_the_reported_best_is_the_loss_of_the_weights_that_stay(tmp_path: Path) -> None:
    parts = make_model()
    outcome, _ = train(parts, tmp_path)
    assert answer_losses(parts[0], parts[2], expert=OWN).mean == pytest.approx(
        outcome.best_loss, abs=1e-6
    )
    assert outcome.evaluation["own"] == outcome.best_loss
    assert outcome.evaluation["seen"] == pytest.approx(
        answer_losses(parts[0], parts[1], expert=OWN).mean, abs=1e-6
    )


def scripted(monkeypatch: pytest.MonkeyPatch, losses: dict[int, list[float]]) -> None:
    """Evaluations that say what is written, by the number of rows in the set."""

    def measure(model: DyLoRAMoE, rows: Rows, **_: Any) -> RowLosses:
        return RowLosses(torch.tensor([losses[len(rows)].pop(0)]), torch.tensor([1]))

    monkeypatch.setattr("dylora_moe.training.evaluations.answer_losses", measure)


def test_the_best_weights_count_and_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phase = Phase(
        "one", epochs=1.0, batch_size=4, collaboration=(0.0, 0.0), scheduler="constant",
        warmup_ratio=0.0, patience=5,
    )  # fmt: skip
    longer = replace(phase, epochs=3.0)
    short, long = make_model(), make_model()
    scripted(monkeypatch, {10: [5.0, 4.0], 24: [1.0, 2.0]})
    train(short, tmp_path / "a", phases=[phase])
    scripted(monkeypatch, {10: [5.0, 4.0, 4.5, 4.2], 24: [1.0, 2.0, 0.0, 0.0]})
    outcome, _ = train(long, tmp_path / "b", phases=[longer])
    assert (outcome.best_loss, outcome.evaluation["seen"]) == (4.0, 2.0)
    assert outcome.phases[0].best_step == outcome.steps // 3
    assert not outcome.phases[0].stopped_early
    for name, value in short[0].experts.state(OWN).items():
        assert torch.equal(value, long[0].experts.state(OWN)[name])


def test_weights_that_training_only_harms_stay_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = make_model()
    before = weights_of(parts[0])
    scripted(monkeypatch, {10: [5.0, 6.0, 7.0, 8.0], 24: [1.0] * 4})
    outcome, _ = train(parts, tmp_path)
    assert outcome.best_loss == outcome.start_loss == 5.0
    after = weights_of(parts[0])
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_training_stops_early_on_the_target_and_no_other_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phase = Phase("long", epochs=9.0, patience=2, collaboration=(0.0, 0.0))
    script = {10: [5.0, 4.0, 4.1, 4.2, 0.0], 24: [9.0, 8.0, 7.0, 6.0, 5.0]}
    scripted(monkeypatch, script)
    outcome, memory = train(make_model(), tmp_path, phases=[phase])
    assert outcome.phases[0].stopped_early
    assert memory.series("eval_own_loss") == pytest.approx([5.0, 4.0, 4.1, 4.2])
    assert outcome.phases[0].epochs == 3.0


def test_the_gate_learns_only_where_the_phase_says_so(tmp_path: Path) -> None:
    parts = make_model()
    before = {name: p.detach().clone() for name, p in parts[0].router.named_parameters()}
    alone = two_phases()[0]
    _, memory = train(parts, tmp_path, phases=[alone])
    after = dict(parts[0].router.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "grad_norm/router" not in memory.names()

    _, memory = train(parts, tmp_path / "b", phases=[two_phases()[1]])
    assert any(not torch.equal(before[name], p) for name, p in parts[0].router.named_parameters())
    assert all(norm > 0 for norm in memory.series("grad_norm/router"))


def test_the_weights_go_from_dense_to_exactly_one_hot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Gates] = []
    original = DyLoRAMoE.forward

    def forward(self: DyLoRAMoE, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            seen.append(kwargs["gates"])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(DyLoRAMoE, "forward", forward)
    train(make_model(), tmp_path, phases=[two_phases()[1]])
    first, last = seen[0], seen[-1]
    assert first.experts == (OWN, OTHER)
    assert first.weights.requires_grad
    assert torch.allclose(first.weights.sum(-1), torch.ones(len(first.weights)))
    assert last.experts == (OWN,)
    assert torch.equal(last.weights, torch.ones_like(last.weights))


def test_the_keys_people_know_are_logged(tmp_path: Path) -> None:
    outcome, memory = train(make_model(), tmp_path)
    assert memory.names() >= {
        "phase", "epoch", "loss", "learning_rate", "eval_own_loss", "eval_seen_loss",
        "grad_norm/router", f"grad_norm/{OWN}", f"expert_usage/{OWN}", f"expert_usage/{OTHER}",
        "routing_entropy", "balance_loss", "z_loss", "rehearsal_loss", "padding_fraction",
        "tokens_per_second", "total_flos", "peak_memory_bytes", "trainable_share",
        f"expert_bytes/{OWN}",
    }  # fmt: skip
    assert max(memory.series("padding_fraction")) < 0.1
    steps = [step for values, step in memory.logs if "loss" in values]
    assert steps == list(range(1, outcome.steps + 1))
    assert memory.series("total_flos") == sorted(memory.series("total_flos"))
    assert memory.series("epoch")[-1] == 2.0
    assert 0 < outcome.trainable_share < 1
    gate = sum(p.numel() for p in make_model()[0].router.parameters())
    assert outcome.bytes == 4 * (outcome.trainable_parameters - gate)
    assert outcome.numbers()["phases"][0]["name"] == "seeding"


def test_packed_rows_train_and_their_lengths_are_logged(tmp_path: Path) -> None:
    phase = replace(two_phases()[1], packing=True)
    packed, memory = train(make_model(), tmp_path, phases=[phase])
    assert packed.best_loss < packed.start_loss
    (histogram,) = memory.series("packed_sequence_length_histogram")
    assert len(histogram["edges"]) == len(histogram["counts"]) + 1
    assert sum(histogram["counts"]) > 2
    assert packed.padding_fraction == 0.0


def test_gradient_checkpointing_gives_the_same_result(tmp_path: Path) -> None:
    plain, remade = make_model(), make_model()
    a, _ = train(plain, tmp_path / "a")
    b, _ = train(remade, tmp_path / "b", gradient_checkpointing=True)
    assert b.best_loss == pytest.approx(a.best_loss, abs=1e-5)
    assert not remade[0].is_gradient_checkpointing
    for name, value in plain[0].experts.state(OWN).items():
        assert torch.allclose(value, remade[0].experts.state(OWN)[name], atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "gpt_neox", "mpt", "mistral"])
def test_every_family_trains(family: str, tmp_path: Path) -> None:
    outcome, _ = train(make_model(family=family), tmp_path, phases=[two_phases()[1]])
    assert outcome.best_loss < outcome.start_loss


def test_a_bf16_base_trains_with_fp32_masters(tmp_path: Path) -> None:
    parts = make_model(dtype=torch.bfloat16)
    phase = replace(two_phases()[1], epochs=4.0)
    outcome, memory = train(parts, tmp_path, phases=[phase])
    # Every evaluation sees the weights as they are then, and not a copy cast to bf16 before.
    assert len(set(memory.series("eval_own_loss"))) == 5
    assert outcome.best_loss < 0.9 * outcome.start_loss
    fresh = make_model(dtype=torch.bfloat16)
    fresh[0].experts.restore(OWN, parts[0].experts.state(OWN))
    assert answer_losses(fresh[0], fresh[2], expert=OWN).mean == pytest.approx(outcome.best_loss)
    assert {p.dtype for p in parts[0].experts.parameters_of(OWN).values()} == {torch.float32}


def test_nothing_below_the_tap_runs_in_training(tmp_path: Path) -> None:
    parts = make_model()
    calls: list[bool] = []
    assert parts[0]._ends_at_head, "asked before, since asking runs the base once"
    block = parts[0].model.model.layers[0]
    block.mlp.register_forward_hook(lambda *_: calls.append(True))
    train(parts, tmp_path)
    assert calls == []


def test_the_caches_flag_of_the_base_stays(tmp_path: Path) -> None:
    parts = make_model()
    before = parts[0].config.use_cache
    train(parts, tmp_path)
    assert parts[0].config.use_cache == before


def test_a_failure_takes_expert_and_gate_back(tmp_path: Path) -> None:
    parts = make_model()
    before = weights_of(parts[0])

    def fail(done: int, total: int, values: Any) -> None:
        if done == 4 and total > 3:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        train(parts, tmp_path, on_progress=fail)
    after = weights_of(parts[0])
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(p.requires_grad for p in parts[0].model.parameters())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": "nowhere"}, "target 'nowhere'"),
        ({"neighbours": [OWN]}, "cannot take part"),
        ({"neighbours": ["expert_9"]}, "expert_9"),
        ({"phases": []}, "at least one"),
        ({"phases": [Phase("a"), Phase("a")]}, "name of its own"),
    ],
)
def test_arguments_that_do_not_go_together_are_told(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(TrainingError, match=words):
        train(make_model(), tmp_path, **changes)


def test_the_largest_seed_there_is_trains_in_every_phase(tmp_path: Path) -> None:
    outcome, _ = train(make_model(), tmp_path, seed=2**32 - 1)
    assert len(outcome.phases) == 2


def test_a_gate_without_a_row_for_the_expert_is_told(tmp_path: Path) -> None:
    parts = make_model()
    parts[0].experts.create_expert("expert_3")
    with pytest.raises(TrainingError, match="no row for expert_3"):
        train_expert(
            parts[0], "expert_3", train=parts[1], evaluation={"own": parts[2]}, target="own",
            phases=two_phases(), neighbours=[OTHER], folder=tmp_path, reporter=Memory(),
        )  # fmt: skip
