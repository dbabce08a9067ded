"""A whole search on a person's rows, from the base and the rows to what came of it.

Wires material, trials and search together; decides nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dylora_moe.build.opening import prompt_format
from dylora_moe.build.recipe import make_recipe
from dylora_moe.config import LearnSettings
from dylora_moe.foundation.base import load_base
from dylora_moe.records import Arrival
from dylora_moe.tuning import material, space
from dylora_moe.tuning.outcome import Tuned, outcome
from dylora_moe.tuning.search import Search, Trial, require_extra
from dylora_moe.tuning.trials import Ground, Trained


@dataclass(frozen=True)
class Ask:
    """What is searched, and on what.

    Attributes:
        arrivals: a skill each.
        start: the settings that one has; what is not searched stays.
        keys: what is searched; everything of `space.SPACE` where empty.
        base, format, system, tap, device, dtype, quantize: as of a pool.
    """

    arrivals: tuple[Arrival, ...]
    start: LearnSettings
    keys: tuple[str, ...] = ()
    base: str = "smollm2-135m"
    format: str = "plain"
    system: str | None = None
    tap: int | None = None
    device: str | None = None
    dtype: str | None = None
    quantize: str | None = None


def tune(
    ask: Ask,
    folder: Path,
    *,
    minutes: float,
    trials: int | None = None,
    tell: Callable[[Trial], None] = lambda _: None,
    stage: Callable[[str], None] = lambda _: None,
) -> Tuned:
    """Searches for settings; trials of the same search in the folder count.

    Args:
        folder: keeps the trials.
        minutes: from when base and rows are ready.
        trials: the most, those of earlier days among them.
        tell: called with each trial at its end.
        stage: called with what is being done.

    Raises:
        MissingExtraError: Optuna is not installed.
        ConfigError: a key that is not searched, or an unknown format.
        DataError: too few rows, or rows that are too long.
        BaseModelError: the base cannot be loaded.
        TrainingError: the settings that one starts from cannot be trained.
        LearningInterruptedError: Ctrl-C.
    """
    require_extra()
    wanted = space.chosen(ask.start, ask.keys)
    fmt = prompt_format(ask.format, ask.system)
    make_recipe(ask.start)  # What cannot be learned with is said before anything is loaded.
    for arrival in ask.arrivals:
        material.parts(arrival, ask.start.validation_fraction)
    stage(f"loading {ask.base}")
    base = load_base(
        ask.base, device=ask.device, dtype=ask.dtype, tap=ask.tap, quantize=ask.quantize
    )
    folder.mkdir(parents=True, exist_ok=True)
    stage(f"reading {sum(len(one.examples) for one in ask.arrivals)} rows")
    skills = {one.name: one for one in material.read(base, fmt, ask.arrivals, ask.start, folder)}
    ground = Ground(base)
    told = [
        repr(fmt), base.name, str(base.dtype), str(base.anatomy.adapted_blocks), str(ask.quantize),
        repr(sorted(wanted.items())), ask.start.model_dump_json(exclude={"report_to"}),
    ]  # fmt: skip
    search = Search(
        folder / "trials.db",
        material.fingerprint(ask.arrivals, told),
        wanted,
        space.values_of(ask.start, wanted),
        list(skills),
        ask.start.seed,
    )

    def train(name: str, values: Mapping[str, space.Value], look: Callable[[], None]) -> Trained:
        settings = space.with_values(ask.start, values)
        return ground.train(skills[name], settings, lambda *_: look())

    stage(f"searching for {minutes:g} minutes")
    found = search.run(train, seconds=60.0 * minutes, trials=trials, tell=tell)
    return outcome(found, ask.start)
