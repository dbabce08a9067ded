"""Laws of a training whose rank grows or whose blocks freeze, on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dylora_moe.errors import ExpertError
from dylora_moe.experts.gates import Gates
from dylora_moe.training.between import BetweenEpochs
from dylora_moe.training.kept import Kept
from dylora_moe.training.measure import answer_losses
from dylora_moe.training.outcome import Freeze, Growth, PhaseOutcome
from dylora_moe.training.phases import Phase
from dylora_moe.training.trainer import ExpertTrainer
from tests.training.setting import OTHER, OWN, make_model, two_phases
from tests.training.test_expert import Parts, scripted, train
from tests.training.test_resume import Interrupt, checkpoint_names

GROWING = Phase(
    "grow", epochs=4.0, learning_rate=5e-3, batch_size=4, collaboration=(0.0, 0.0), patience=2,
    max_rank=16, grow_below=0.01,
)  # fmt: skip
# Every epoch stalls.
ALWAYS = replace(GROWING, grow_below=0.99)
FREEZING = replace(GROWING, max_rank=None, freeze_below=0.99)


def same(left: Parts, right: Parts) -> bool:
    mine, other = left[0].experts.state(OWN), right[0].experts.state(OWN)
    return all(torch.equal(value, other[name]) for name, value in mine.items())


def test_a_stalled_epoch_doubles_the_rank_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, {10: [5.0, 4.0, 3.99, 3.5, 3.0], 24: [1.0] * 5})
    parts = make_model()
    outcome, memory = train(parts, tmp_path, phases=[GROWING])
    (phase,) = outcome.phases
    per_epoch = phase.steps // 4
    assert phase.growths == (Growth(2 * per_epoch, 4, 8),)
    assert phase.steps == phase.planned_steps
    assert outcome.rank == parts[0].experts.config(OWN)["r"] == 8
    assert outcome.trainable_parameters == parts[0].experts.parameter_count(OWN)
    assert memory.series("rank") == [4, 8]
    assert outcome.numbers()["phases"][0]["growths"] == (
        {"step": 2 * per_epoch, "before": 4, "after": 8},
    )


def test_a_growth_begins_the_patience_anew_and_the_cap_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phase = replace(GROWING, epochs=9.0, max_rank=8)
    # Stalls at once and grows; then as vain as before, with nowhere to grow to.
    scripted(monkeypatch, {10: [5.0, 6.0, 6.0, 6.0, 6.0], 24: [1.0] * 5})
    outcome, memory = train(make_model(), tmp_path, phases=[phase])
    assert [one.after for one in outcome.phases[0].growths] == [8]
    assert outcome.phases[0].epochs == 3.0
    assert outcome.phases[0].stopped_early
    assert len(memory.series("eval_own_loss")) == 4


def test_the_last_epoch_of_a_phase_grows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, {10: [5.0, 4.0, 4.0], 24: [1.0] * 3})
    outcome, _ = train(make_model(), tmp_path, phases=[replace(GROWING, epochs=2.0)])
    assert outcome.phases[0].growths == ()


def test_an_expert_that_was_best_before_it_grew_is_what_it_was_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, once = make_model(), make_model()
    scripted(monkeypatch, {10: [5.0, 4.0, 4.5, 4.5, 4.5], 24: [1.0] * 5})
    outcome, _ = train(parts, tmp_path / "a", phases=[replace(GROWING, scheduler="constant")])
    assert [one.after for one in outcome.phases[0].growths] == [8, 16]
    assert (outcome.best_loss, outcome.rank) == (4.0, 4)
    scripted(monkeypatch, {10: [5.0, 4.0], 24: [1.0] * 2})
    alone = replace(GROWING, epochs=1.0, scheduler="constant", warmup_ratio=0.4)
    train(once, tmp_path / "b", phases=[alone])
    assert same(parts, once)
    assert parts[0].experts.config(OWN) == once[0].experts.config(OWN)


def test_growing_changes_nothing_that_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = make_model()
    found: list[tuple[float, float]] = []
    original = BetweenEpochs._grow

    def grow(self: BetweenEpochs, *args: Any) -> dict[str, Any]:
        before = answer_losses(parts[0], parts[1], expert=OWN).mean
        numbers = original(self, *args)
        found.append((before, answer_losses(parts[0], parts[1], expert=OWN).mean))
        return numbers

    monkeypatch.setattr(BetweenEpochs, "_grow", grow)
    outcome, _ = train(parts, tmp_path, phases=[ALWAYS])
    assert len(found) == 2
    assert all(before == pytest.approx(after, abs=1e-6) for before, after in found)
    assert outcome.best_loss < 0.9 * outcome.start_loss
    state = parts[0].experts.state(OWN)
    # What came has learned: its rows of A alone, as they came, would do nothing.
    assert all(value[:, 8:].any() for name, value in state.items() if "lora_B" in name)


def test_a_version_of_the_grown_rank_is_a_plain_adapter(tmp_path: Path) -> None:
    parts = make_model()
    outcome, _ = train(parts, tmp_path / "run", phases=[ALWAYS])
    parts[0].experts.save(OWN, tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (16, 64.0, {})
    fresh = make_model()
    fresh[0].experts.remove(OWN)
    fresh[0].experts.load(OWN, tmp_path / "saved")
    loss = answer_losses(fresh[0], fresh[2], expert=OWN).mean
    assert loss == pytest.approx(outcome.best_loss, abs=1e-6)


@pytest.mark.parametrize("phase", [ALWAYS, FREEZING], ids=["growing", "freezing"])
@pytest.mark.parametrize("at", [4, 6, 9, 12, 17])
def test_a_resumed_run_comes_to_the_same(tmp_path: Path, phase: Phase, at: int) -> None:
    whole = make_model(dropout=0.2)
    expected, _ = train(whole, tmp_path / "whole", phases=[phase])
    with pytest.raises(KeyboardInterrupt):
        train(
            make_model(dropout=0.2), tmp_path / "parts", phases=[phase], on_progress=Interrupt(at)
        )
    again = make_model(dropout=0.2)
    torch.manual_seed(99)
    outcome, _ = train(again, tmp_path / "parts", phases=[phase])
    assert outcome.resumed
    assert outcome.best_loss == expected.best_loss
    assert outcome.phases[0].growths == expected.phases[0].growths
    assert outcome.phases[0].freezes == expected.phases[0].freezes
    assert same(whole, again)


def test_a_growth_that_an_interruption_kept_from_being_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_model()
    expected, _ = train(whole, tmp_path / "whole", phases=[ALWAYS])
    calls = 0
    original = ExpertTrainer.evaluate

    def evaluate(self: ExpertTrainer, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(ExpertTrainer, "evaluate", evaluate)
    with pytest.raises(KeyboardInterrupt):
        train(make_model(), tmp_path / "parts", phases=[ALWAYS])
    again = make_model()
    outcome, _ = train(again, tmp_path / "parts", phases=[ALWAYS])
    assert outcome.phases[0].growths == expected.phases[0].growths
    assert same(whole, again)


def test_a_finished_phase_hands_its_rank_to_the_next_resumed_or_not(tmp_path: Path) -> None:
    phases = [
        replace(phase, name=name, epochs=3.0, max_rank=most, grow_below=0.99)
        for phase, name, most in zip(two_phases(), ("one", "two"), (8, 16), strict=True)
    ]
    whole = make_model()
    expected, _ = train(whole, tmp_path / "whole", phases=phases)
    assert [one.after for phase in expected.phases for one in phase.growths] == [8, 16]
    with pytest.raises(KeyboardInterrupt):
        train(
            make_model(), tmp_path / "parts", phases=phases,
            on_progress=Interrupt(expected.phases[0].steps + 1),
        )  # fmt: skip
    assert "00-one-done" in checkpoint_names(tmp_path / "parts")
    again = make_model()
    outcome, _ = train(again, tmp_path / "parts", phases=phases)
    assert [phase.growths for phase in outcome.phases] == [p.growths for p in expected.phases]
    assert same(whole, again)


def test_a_failure_takes_the_rank_back(tmp_path: Path) -> None:
    parts = make_model()
    before = parts[0].experts.state(OWN)

    def fail(done: int, total: int, values: Mapping[str, Any]) -> None:
        if parts[0].experts.rank(OWN) > 8:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        train(parts, tmp_path, phases=[ALWAYS], on_progress=fail)
    after = parts[0].experts.state(OWN)
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_an_expert_of_several_ranks_stays_as_it_is(tmp_path: Path) -> None:
    parts = make_model()
    parts[0].experts.save(OWN, tmp_path / "own")
    config = json.loads((tmp_path / "own" / "adapter_config.json").read_text())
    state = parts[0].experts.state(OWN)
    path = sorted(state)[0].removesuffix(".lora_A.weight")
    config["rank_pattern"] = {path.removeprefix("base_model.model."): 2}
    (tmp_path / "own" / "adapter_config.json").write_text(json.dumps(config))
    from safetensors.torch import save_file

    state[f"{path}.lora_A.weight"] = state[f"{path}.lora_A.weight"][:2].contiguous()
    state[f"{path}.lora_B.weight"] = state[f"{path}.lora_B.weight"][:, :2].contiguous()
    save_file(state, tmp_path / "own" / "adapter_model.safetensors")
    parts[0].experts.remove(OWN)
    parts[0].experts.load(OWN, tmp_path / "own")
    outcome, _ = train(parts, tmp_path / "run", phases=[ALWAYS])
    assert outcome.phases[0].growths == ()
    with pytest.raises(ExpertError, match="or several"):
        parts[0].experts.cut_rank(OWN, 1)


def outputs_with_gradient(parts: Parts, seen: list[list[bool]]) -> None:
    """Notes for each training pass which blocks from the tap up are in the graph."""
    model = parts[0]
    layers = model.model.model.layers[model.base.anatomy.tap_layer :]

    def note(index: int) -> Any:
        def hook(module: Any, arguments: Any, output: Any) -> None:
            if torch.is_grad_enabled():
                if index == 0:
                    seen.append([])
                found = output if isinstance(output, torch.Tensor) else output[0]
                seen[-1].append(found.requires_grad)

        return hook

    for index, layer in enumerate(layers):
        layer.register_forward_hook(note(index))


@pytest.mark.parametrize("gate", [False, True], ids=["alone", "in a mixture whose gate learns"])
def test_no_gradient_is_computed_below_the_first_block_that_learns(
    tmp_path: Path, gate: bool
) -> None:
    parts, seen = make_model(), list[list[bool]]()
    outputs_with_gradient(parts, seen)
    share = (0.5, 0.5) if gate else (0.0, 0.0)
    phase = replace(FREEZING, train_gate=gate, collaboration=share)
    outcome, memory = train(parts, tmp_path, phases=[phase])
    (freeze,) = outcome.phases[0].freezes[:1]
    tap = parts[0].base.anatomy.tap_layer
    blocks = parts[0].base.anatomy.n_blocks
    assert freeze.block == blocks - 1
    assert all(seen[0])
    assert seen[-1] == [block >= freeze.block for block in range(tap, blocks)]
    assert {f"block_change/{tap}", "learns_from_block"} <= memory.names()
    flops = memory.series("total_flos")
    assert flops[-1] - flops[-2] < flops[freeze.step - 1] - flops[freeze.step - 2]


def test_a_frozen_block_stays_and_those_above_it_learn_on(tmp_path: Path) -> None:
    parts = make_model()
    states: list[dict[str, torch.Tensor]] = []
    outcome, _ = train(
        parts, tmp_path, phases=[replace(FREEZING, weight_decay=0.1)], neighbours=[OTHER],
        on_progress=lambda *_: states.append(parts[0].experts.state(OWN)),
    )  # fmt: skip
    freeze = outcome.phases[0].freezes[0]
    before, after = states[freeze.step - 1], states[-1]
    for name, value in before.items():
        block = int(name.split(".layers.")[1].split(".")[0])
        assert torch.equal(value, after[name]) == (block < freeze.block), name
    assert parts[0].experts.learns_from == 0


def test_a_growth_lets_every_block_learn_again() -> None:
    kept = Kept(best=None, meter=None, micro=None)  # type: ignore[arg-type]
    kept.freezes.append(Freeze(6, 3))
    assert kept.learns_from == 3
    kept.growths.append(Growth(12, 4, 8))
    assert kept.learns_from == 0
    kept.freezes.append(Freeze(18, 2))
    assert kept.learns_from == 2


def test_a_phase_s_outcome_comes_back_from_json(tmp_path: Path) -> None:
    both = replace(GROWING, freeze_below=0.99, grow_below=0.3)
    outcome, _ = train(make_model(), tmp_path, phases=[both])
    told = json.loads(json.dumps(outcome.phases[0].to_json()))
    assert PhaseOutcome.from_json(told) == outcome.phases[0]


def test_by_default_nothing_grows_or_freezes(tmp_path: Path) -> None:
    outcome, memory = train(make_model(), tmp_path)
    assert all(phase.growths == phase.freezes == () for phase in outcome.phases)
    assert not any("block_change" in name for name in memory.names())
    assert Gates.only(OWN, 2).detached().uniform
