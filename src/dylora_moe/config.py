"""Settings as people write them: what there is to set, its bounds and its defaults.

Lives at the door only: the command line and stream files become these; the parts themselves take
plain arguments. Knows no model library.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationInfo, field_validator

from dylora_moe.errors import ConfigError
from dylora_moe.parsing import Settings, override, parse

_OWN = "own"
"""The evaluation set that every training has: validation rows of the skill itself."""
SIMILARITIES = ("cosine-maximum", "cosine-median", "projection")
"""Novelty tests whose threshold is a bound on a similarity."""
Share = Annotated[float, Field(ge=0, le=1)]


class PhaseSettings(Settings):
    """One phase of an expert's training; see docs/architecture.md for what the phases are for."""

    epochs: float = Field(gt=0)
    learning_rate: float = Field(gt=0)
    gate_learning_rate: float = Field(default=2e-5, ge=0)
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    schedule: Literal["cosine", "warmup_stable_decay", "constant"] = "cosine"
    weight_decay: float = Field(default=0.01, ge=0)
    batch_size: int = Field(default=8, ge=1)
    accumulation: int = Field(default=1, ge=1)
    collaboration: tuple[Share, Share] = Field(
        default=(0.0, 0.0), description="share of the dense mixture, from start to end"
    )
    train_gate: bool = False
    patience: int = Field(default=2, ge=1, description="evaluations without a better loss")
    max_examples: int | None = Field(default=None, ge=1)
    packing: bool = False
    distillation: float = Field(
        default=0.0, ge=0, description="coefficient of the divergence from the teachers"
    )


def _seeding() -> PhaseSettings:
    return PhaseSettings(
        epochs=1.0, learning_rate=4e-3, schedule="warmup_stable_decay", collaboration=(0.5, 0.25),
        max_examples=64,
    )  # fmt: skip


def _consolidation() -> PhaseSettings:
    return PhaseSettings(epochs=3.0, learning_rate=2e-3, collaboration=(0.25, 0.0), train_gate=True)


def _more_data() -> PhaseSettings:
    return PhaseSettings(epochs=3.0, learning_rate=1e-3)


class ExpertSettings(Settings):
    rank: int = Field(default=8, ge=1, le=512)
    alpha: float = Field(default=16.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Literal["attention", "all-linear"] | tuple[str, ...] = "all-linear"
    start: Literal["zero", "merge"] = Field(
        default="zero", description="start from zero, or from the merge of the nearest experts"
    )
    max_rank: int | None = Field(
        default=None, ge=1, le=512, description="up to which the rank doubles if validation stalls"
    )
    grow_below: float = Field(
        default=0.01, ge=0, lt=1, description="relative fall of the loss below which it stalls"
    )
    freeze_below: float = Field(
        default=0.0, ge=0, lt=1, description="relative change below which a block has converged"
    )


class NoveltySettings(Settings):
    detector: Literal[
        "classifier",
        "cosine-maximum",
        "cosine-median",
        "projection",
        "entropy",
        "mahalanobis",
        "gradient-mahalanobis",
    ] = "classifier"
    threshold: float | None = Field(
        default=None,
        description="AUC 0.80, cosine 0.85 (projected 0.95), entropy 0.5 where not given",
    )
    delta: float = Field(
        default=0.0, ge=0, description="the bound on similarity falls by delta * log(1 + experts)"
    )
    smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="share of what was before in the moving average"
    )
    badly: float = Field(default=0.5, gt=0, description="relative loss above which a fit is bad")
    min_examples: int = Field(default=32, ge=2)
    min_tokens: int = Field(default=256, ge=1)
    cooldown: int = Field(default=0, ge=0, description="arrivals between two new experts")
    max_experts: int | None = Field(default=None, ge=1)
    max_parameters: int | None = Field(default=None, ge=1)
    growth: bool = True
    strange_share: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="of mixed traffic: share of a skill's own rows that may be called strange",
    )
    alike: float = Field(
        default=0.5, gt=0, lt=1, description="mean likeness from which on two clusters are one"
    )
    min_cluster: int = Field(
        default=64, ge=2, description="strange rows of a kind that become an arrival"
    )

    @field_validator("delta", "smoothing")
    @classmethod
    def _of_a_similarity(cls, value: float, info: ValidationInfo) -> float:
        detector = info.data.get("detector", SIMILARITIES[0])
        if value and detector not in SIMILARITIES:
            raise ValueError(
                f"the detector {detector} compares no similarities; leave it 0, or choose "
                f"{', '.join(SIMILARITIES)}"
            )
        return value


class RouterSettings(Settings):
    """The first four belong to the pool: where not given, they are what the pool has."""

    gate: Literal["linear", "mlp"] | None = None
    granularity: Literal["sequence", "token"] | None = None
    top_k: int | None = Field(default=None, ge=1)
    none_share: float | None = Field(
        default=None,
        ge=0,
        lt=0.5,
        description="share of the skills' own rows that may be sent away",
    )
    fit_steps: int = Field(
        default=0, ge=0, description="steps of rehearsal after each change, on stored features"
    )
    balance: float = Field(default=0.01, ge=0)
    z: float = Field(default=1e-4, ge=0)
    entropy: float = Field(default=0.0, ge=0)
    rehearsal: float = Field(default=1.0, ge=0)


class GateSettings(Settings):
    tolerance: float = Field(
        default=0.02, ge=0, description="relative rise of an older skill's loss that is let through"
    )


class LearnSettings(Settings):
    """Everything `learn` may be told; the figures in the docs were made with the defaults."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    validation_fraction: float = Field(default=0.15, gt=0, lt=0.9)
    max_length: int | None = Field(
        default=None, ge=8, description="tokens; the model's context where not given"
    )
    drop_long: bool = Field(default=False, description="leave longer rows out, not refuse them")
    expert: ExpertSettings = ExpertSettings()
    seeding: PhaseSettings | None = Field(default_factory=_seeding)
    consolidation: PhaseSettings = Field(default_factory=_consolidation)
    more_data: PhaseSettings = Field(
        default_factory=_more_data, description="of an expert that gets more data of its skill"
    )
    replay: float = Field(
        default=3.0, ge=0, description="stored rows of the expert that train beside each new one"
    )
    distillation_temperature: float = Field(default=2.0, gt=0)
    novelty: NoveltySettings = NoveltySettings()
    router: RouterSettings = RouterSettings()
    gate: GateSettings = GateSettings()
    evaluation: Mapping[str, Path] = Field(
        default_factory=dict, description="files of further rows every training is measured on"
    )
    target: str | None = Field(
        default=None, description="set that stops a training early; the skill's own rows if none"
    )
    gradient_checkpointing: bool = False
    generate_scores: int = Field(
        default=32,
        ge=0,
        description="validation rows a skill whose answers are generated and checked",
    )
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = ()

    @field_validator("evaluation")
    @classmethod
    def _names_of_sets(cls, value: Mapping[str, Path]) -> Mapping[str, Path]:
        unusable = [name for name in value if name == _OWN or not re.fullmatch(r"[\w.-]+", name)]
        if unusable:
            raise ValueError(f"'{unusable[0]}' cannot name a set; '{_OWN}' is the skill's own")
        return value

    @field_validator("target")
    @classmethod
    def _a_set(cls, value: str | None, info: ValidationInfo) -> str | None:
        known = [_OWN, *info.data.get("evaluation", ())]
        if value is not None and value not in known:
            raise ValueError(f"'{value}' is no evaluation set; known: {', '.join(known)}")
        return value

    @field_validator("seeding", "consolidation", "more_data", mode="before")
    @classmethod
    def _over_the_phase_s_defaults(cls, value: Any, info: ValidationInfo) -> Any:
        # `consolidation.epochs=2` changes one number and leaves that phase's others.
        if not isinstance(value, Mapping):
            return value
        makers = {
            "seeding": _seeding,
            "consolidation": _consolidation,
            "more_data": _more_data,
        }
        return {**makers[str(info.field_name)]().model_dump(), **value}


class ArrivalSettings(Settings):
    """One arriving batch of a stream file."""

    file: Path
    name: str | None = None
    skip: int = Field(default=0, ge=0)
    max_examples: int | None = Field(default=None, ge=1)
    validation: Path | None = None
    into: str | None = Field(default=None, description="overrule: this skill, whatever the verdict")
    as_new: bool = Field(default=False, description="overrule: a new expert, whatever the verdict")
    expert_name: str | None = Field(default=None, description="what to call a new expert")
    mixed: bool = Field(default=False, description="rows of several skills, sorted first")


class StreamSettings(Settings):
    """A stream file: arrivals in order, and how to learn them. Paths are relative to the file."""

    arrivals: tuple[ArrivalSettings, ...] = Field(min_length=1)
    learn: LearnSettings = LearnSettings()


def read_stream(path: Path, settings: Sequence[str] = ()) -> StreamSettings:
    """Reads a stream YAML; `settings` override keys under `learn`, e.g. `expert.rank=16`.

    Raises:
        ConfigError: missing file, invalid YAML, unknown or invalid key; the message names the file.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such stream file; check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place, reason = str(path), str(error).splitlines()[0]
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
            place, reason = f"{path}:{error.problem_mark.line + 1}", error.problem or reason
        raise ConfigError(f"{place}: not valid YAML ({reason}); mend it") from None
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{path}: expected keys 'arrivals' and 'learn', found {type(values).__name__}"
        )
    learn = values.get("learn") or {}
    if not isinstance(learn, Mapping):
        raise ConfigError(f"{path}: learn: expected keys, found {type(learn).__name__}")
    folder, sets = path.parent, learn.get("evaluation")
    if isinstance(sets, Mapping):
        # Before the overrides: a path that was typed is not relative to the file.
        below = {k: str(folder / v) if isinstance(v, str) else v for k, v in sets.items()}
        learn = {**learn, "evaluation": below}
    stream = parse(StreamSettings, {**values, "learn": override(learn, settings)}, str(path))
    arrivals = tuple(
        item.model_copy(
            update={
                "file": folder / item.file,
                "validation": None if item.validation is None else folder / item.validation,
            }
        )
        for item in stream.arrivals
    )
    return stream.model_copy(update={"arrivals": arrivals})


def learn_settings(
    settings: Sequence[str] = (), base: Mapping[str, Any] | None = None
) -> LearnSettings:
    """`LearnSettings` from the defaults, a mapping over them and dotted overrides over both."""
    return parse(LearnSettings, override(base or {}, settings), "--set")
