"""Laws of a whole training, on a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dylora_moe.errors import TrainingError
from dylora_moe.experts.gates import Gates
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.training.expert import train_expert
from dylora_moe.training.measure import answer_losses
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


def test_the_best_weights_count_and_not_the_last(tmp_path: Path) -> None:
    parts = make_model()
    # A rate at which training only breaks things: what it began with stays the best.
    phase = Phase("wild", epochs=2.0, learning_rate=3.0, patience=5, collaboration=(0.0, 0.0))
    before = parts[0].experts.state(OWN)
    outcome, memory = train(parts, tmp_path, phases=[phase])
    measured = memory.series("eval_own_loss")
    assert measured[-1] > measured[0]
    assert outcome.phases[0].best_step == 0
    assert outcome.best_loss == measured[0]
    after = parts[0].experts.state(OWN)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_training_stops_early_on_the_target_set(tmp_path: Path) -> None:
    wild = Phase("wild", epochs=9.0, learning_rate=3.0, patience=2, collaboration=(0.0, 0.0))
    outcome, memory = train(make_model(), tmp_path, phases=[wild])
    assert outcome.phases[0].stopped_early
    assert len(memory.series("eval_own_loss")) == 3

    parts = make_model()
    own = Phase("own", epochs=4.0, learning_rate=5e-3, patience=1, collaboration=(0.0, 0.0))
    # The other set is of the other skill: training on ours only harms it.
    outcome, memory = train(
        parts, tmp_path / "b", phases=[own], evaluation={"own": parts[2], "seen": parts[1]},
        target="seen",
    )  # fmt: skip
    assert outcome.best_loss == min(memory.series("eval_seen_loss"))


def test_the_gate_learns_only_where_the_phase_says_so(tmp_path: Path) -> None:
    parts = make_model()
    before = {name: p.detach().clone() for name, p in parts[0].router.named_parameters()}
    alone = two_phases()[0]
    _, memory = train(parts, tmp_path, phases=[alone])
    after = dict(parts[0].router.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "grad_norm/router" not in memory.keys()

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
    assert memory.keys() >= {
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
    assert outcome.bytes == parts_bytes(outcome)
    assert outcome.numbers()["phases"][0]["name"] == "seeding"


def parts_bytes(outcome: TrainingOutcome) -> int:
    return 4 * (outcome.trainable_parameters - gate_parameters())


def gate_parameters() -> int:
    return sum(p.numel() for p in make_model()[0].router.parameters())


def test_packing_gives_the_same_loss_and_logs_its_lengths(tmp_path: Path) -> None:
    whole = Phase("whole", epochs=1.0, batch_size=24, collaboration=(0.25, 0.25), train_gate=True)
    padded, _ = train(make_model(), tmp_path / "a", phases=[whole])
    packed_phase = Phase(
        "whole", epochs=1.0, batch_size=24, collaboration=(0.25, 0.25), train_gate=True,
        packing=True,
    )  # fmt: skip
    packed, memory = train(make_model(), tmp_path / "b", phases=[packed_phase])
    assert packed.phases[0].first_loss == pytest.approx(padded.phases[0].first_loss, abs=1e-4)
    (histogram,) = memory.series("packed_sequence_length_histogram")
    assert sum(histogram["counts"]) == packed.steps
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
    outcome, _ = train(parts, tmp_path)
    assert outcome.best_loss < outcome.start_loss
    assert {p.dtype for p in parts[0].experts.parameters_of(OWN).values()} == {torch.float32}


def test_nothing_below_the_tap_runs_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = make_model()
    calls: list[bool] = []
    block = parts[0].model.model.layers[0]
    block.mlp.register_forward_hook(lambda *_: calls.append(True))
    train(parts, tmp_path)
    assert calls == []


def test_the_caches_flag_of_the_base_stays(tmp_path: Path) -> None:
    parts = make_model()
    before = parts[0].config.use_cache
    train(parts, tmp_path)
    assert parts[0].config.use_cache == before


def test_a_failure_takes_expert_and_gate_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_a_gate_without_a_row_for_the_expert_is_told(tmp_path: Path) -> None:
    parts = make_model()
    parts[0].experts.create_expert("expert_3")
    with pytest.raises(TrainingError, match="no row for expert_3"):
        train_expert(
            parts[0], "expert_3", train=parts[1], evaluation={"own": parts[2]}, target="own",
            phases=two_phases(), neighbours=[OTHER], folder=tmp_path, reporter=Memory(),
        )  # fmt: skip
