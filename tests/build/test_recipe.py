from __future__ import annotations

from dylora_moe.build.recipe import make_recipe
from dylora_moe.config import LearnSettings, learn_settings


def test_every_setting_reaches_the_recipe() -> None:
    settings = learn_settings(
        [
            "seed=7", "expert.rank=3", "expert.targets=attention", "router.gate=mlp",
            "router.none_share=0.1", "gate.tolerance=0.3", "generate_scores=5",
            "novelty.max_experts=4", "novelty.cooldown=2", "consolidation.epochs=9",
            "more_data.epochs=8", "gradient_checkpointing=true", "max_length=99",
            "expert.max_rank=12", "expert.grow_below=0.2", "expert.freeze_below=0.1",
        ]
    )  # fmt: skip
    recipe = make_recipe(settings)
    assert (recipe.seed, recipe.shape.rank, recipe.shape.targets) == (7, 3, "attention")
    assert (recipe.gate, recipe.none_share, recipe.tolerance) == ("mlp", 0.1, 0.3)
    assert (recipe.generate, recipe.growth.max_experts, recipe.growth.cooldown) == (5, 4, 2)
    assert [phase.name for phase in recipe.new_expert] == ["seeding", "consolidation"]
    assert (recipe.new_expert[1].epochs, recipe.more_data[0].epochs) == (9, 8)
    assert (recipe.gradient_checkpointing, recipe.max_length) == (True, 99)
    grows = [(phase.max_rank, phase.grow_below, phase.freeze_below) for phase in recipe.new_expert]
    assert grows == [(12, 0.2, 0.1)] * 2
    # What has learned a skill keeps its rank, and its blocks may freeze all the same.
    assert (recipe.more_data[0].max_rank, recipe.more_data[0].freeze_below) == (None, 0.1)


def test_the_shape_of_an_expert_says_what_it_may_grow_to() -> None:
    def most(*settings: str) -> int:
        return make_recipe(learn_settings(settings)).shape.max_rank

    assert (most(), most("expert.max_rank=32"), most("expert.max_rank=4")) == (8, 32, 8)


def test_without_seeding_a_new_expert_is_consolidated_alone() -> None:
    recipe = make_recipe(LearnSettings(seeding=None))
    assert [phase.name for phase in recipe.new_expert] == ["consolidation"]


def test_runs_are_resumed_under_other_reporters_and_under_no_other_settings() -> None:
    def of(*settings: str) -> str:
        return make_recipe(learn_settings(settings)).fingerprint

    assert of() == of("report_to=[tensorboard]")
    assert len({of(), of("seed=1"), of("more_data.epochs=2"), of("router.top_k=1")}) == 4


def test_a_phase_may_distil_at_the_settings_temperature() -> None:
    recipe = make_recipe(learn_settings(["more_data.distillation=0.5"]))
    assert [phase.distillation for phase in recipe.new_expert] == [0.0, 0.0]
    assert (recipe.more_data[0].distillation, recipe.temperature) == (0.5, 2.0)
    assert make_recipe(learn_settings(["distillation_temperature=3"])).temperature == 3.0
