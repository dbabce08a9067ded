"""Which skills, streams and arms a run of the bench has, and how large it is.

Knows names and numbers; runs nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from dylora_moe.errors import ConfigError

TEMPLATED = "-templated"
"""Ends the name of a stream whose prompts are said in several words."""

_BANK = ("oracle-bank", "bank-centroid", "bank-rls")
_SIX = ("snips", "wikisql", "nl2bash", "scan", "cmudict", "clinc150")
_OURS = ("ours", "ours-logits")
_ALL_ARMS = (
    "ours", "base", "full-sequential", "sequential-lora", "sequential-replay", "ewc", "o-lora",
    "multi-task", "oracle-bank", "bank-centroid", "bank-l2p", "bank-rls", "bank-router",
    "bank-linear", "fixed-router", "fixed-joint", "shuffled",
)  # fmt: skip
_VARIANTS = (
    "o-lora-squared", "ours-cosine-0.85", "ours-cosine-0.75", "ours-cosine-median",
    "ours-cosine-adaptive", "ours-entropy", "ours-mahalanobis", "ours-gradient-mahalanobis",
    "ours-projection",
)  # fmt: skip
"""Arms that differ from another in one choice: of the preset `full`, or by name."""

ARM_NAMES = (*_ALL_ARMS, "ours-logits", *_VARIANTS)


@dataclass(frozen=True)
class Preset:
    """A size of the bench.

    Attributes:
        name: on the command line and of the result's files.
        skills: in the order of the first seed.
        or_all: whether a folder that lacks one of them is taken whole; not where a person named
            them.
        rows: of a visit.
        batch: rows that arrive together; no divisor of `rows`, or every switch would be between two
            batches, and the cuts would tell a learner of it.
        test_rows: of each skill.
        arms: of each stream, in the order in which they run; `ours` first, since others get as many
            tokens as it took. A stream's name that ends with `TEMPLATED` has templates.
        seeds: of rows, streams and training; every one but 0 also shuffles the skills.
        neighbours: groups of skills that are near each other.
        every_visit: whether arms answer the test rows after each visit.
        at_end: streams on which they answer them at the end alone.
    """

    name: str
    skills: tuple[str, ...]
    rows: int
    batch: int
    test_rows: int
    arms: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...] = (0,)
    neighbours: tuple[tuple[str, ...], ...] = (("snips", "clinc150"),)
    every_visit: bool = True
    at_end: tuple[str, ...] = ()
    or_all: bool = True

    def answers_each_visit(self, stream: str) -> bool:
        """Whether arms answer the test rows after each visit of a stream."""
        return self.every_visit and stream not in self.at_end

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams, in their order."""
        return tuple(self.arms)


PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="cpu", skills=_SIX, rows=160, batch=60, test_rows=100,
            arms={
                # Its first visits are those of `hard`, which is read off it.
                "returning": ("ours",),
                "hard": (
                    "ours", "base", "sequential-lora", "sequential-replay", "o-lora", "multi-task",
                    *_BANK, "shuffled",
                ),
                "blurred": ("ours",),
            },
            at_end=("blurred",),
        ),
        Preset(
            name="gpu", skills=(*_SIX, "gsm8k"), rows=1000, batch=120, test_rows=500,
            arms={"returning": _OURS, "hard": _ALL_ARMS, "blurred": _OURS},
        ),
        Preset(
            name="full", skills=(*_SIX, "gsm8k"), rows=1000, batch=120, test_rows=500,
            arms={
                # On `hard` the pool does not learn anew, so no arm can begin with it there.
                stream + templated: (
                    *(_ALL_ARMS if stream == "hard" else (*_OURS, *_ALL_ARMS[1:])), *_VARIANTS
                )
                for templated in ("", TEMPLATED)
                for stream in ("returning", "hard", "blurred", "mixed")
            },
            seeds=(0, 1, 2),
        ),
    )
}  # fmt: skip
"""By name."""


def chosen(
    name: str,
    *,
    rows: int | None = None,
    batch: int | None = None,
    test_rows: int | None = None,
    seeds: Sequence[int] = (),
    streams: Sequence[str] = (),
    arms: Sequence[str] = (),
    skills: Sequence[str] = (),
    known_arms: Collection[str] = ARM_NAMES,
) -> Preset:
    """A preset with what a person wants otherwise.

    Args:
        name: of the preset.
        rows, batch, test_rows, seeds, skills: instead of the preset's, where given.
        streams: these alone; those that the preset lacks come with the arms of its `hard`.
        arms: these alone, on every stream.
        known_arms: those there are.

    Raises:
        ConfigError: no such preset, stream or arm.
    """
    if name not in PRESETS:
        raise ConfigError(f"no preset '{name}'; choose {', '.join(PRESETS)}")
    preset = PRESETS[name]
    table = dict(preset.arms)
    if streams:
        _refuse_unknown("stream", streams, PRESETS["full"].streams)
        table = {one: table.get(one, preset.arms["hard"]) for one in streams}
    if arms:
        _refuse_unknown("arm", arms, known_arms)
        table = {one: tuple(arms) for one in table}
    return replace(
        preset,
        skills=tuple(skills) or preset.skills,
        rows=rows or preset.rows,
        batch=batch or preset.batch,
        test_rows=test_rows or preset.test_rows,
        seeds=tuple(seeds) or preset.seeds,
        arms=table,
        or_all=preset.or_all and not skills,
    )


def _refuse_unknown(what: str, named: Sequence[str], known: Collection[str]) -> None:
    for one in named:
        if one not in known:
            raise ConfigError(f"no {what} '{one}'; choose of {', '.join(known)}")
