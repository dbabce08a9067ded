"""The search itself: which settings to try next, and when a trial is not worth its end.

The only file that needs the extra `tune`. Trials by a tree-structured Parzen estimator (Bergstra et
al. 2011), cut short by the median of those before them after the same skill (Golovin et al. 2017,
section 3.2.1). Trials are kept in a database, so that the same search goes on another day.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dylora_moe.errors import LearningInterruptedError, MissingExtraError, TrainingError
from dylora_moe.tuning.space import SEEDING, Between, Space, Value, each_of
from dylora_moe.tuning.trials import Trained

if TYPE_CHECKING:
    import optuna

_START = "start"
_HOPELESS = 10.0
"""What a training counts as whose loss is no number: the logarithm of a ratio."""
_AT_RANDOM = 6
"""Trials before the estimator, and the median, have enough to go by."""
_LEAST = 1e-6
"""Loss below which none is told from nought."""

Train = Callable[[str, Mapping[str, Value], Callable[[], None]], Trained]
"""Trains a skill, by its name, with these values; calls the last argument after every step."""


@dataclass(frozen=True)
class Trial:
    """What some values came to.

    Attributes:
        number: in the order in which trials began; 0 has the values one started from.
        values: by key.
        skills: by name, as far as the trial went.
        ratio: geometric mean over the skills of loss / trial 0's loss, over watched rows.
        whole: whether every skill was trained.
        note: why it was not.
        start: whether its values are those one started from.
    """

    number: int
    values: Mapping[str, Value]
    skills: Mapping[str, Trained]
    ratio: float
    whole: bool
    note: str = ""
    start: bool = False

    @property
    def seconds(self) -> float:
        return sum(one.seconds for one in self.skills.values())


def require_extra() -> None:
    """Raises MissingExtraError where Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "searching for settings needs the package optuna, which is not installed; "
            'pip install "dylora-moe[tune]"'
        ) from error


class Search:
    """Trials on some skills, those of an earlier day first.

    Args:
        file: the database of trials.
        name: of what is searched on what rows; trials of another name do not count.
        space: what is searched.
        start: the values that all others are compared with.
        skills: names, in the order in which each trial trains them.
        seed: of the values drawn.
    """

    def __init__(
        self,
        file: Path,
        name: str,
        space: Space,
        start: Mapping[str, Value],
        skills: Sequence[str],
        seed: int = 0,
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        file.parent.mkdir(parents=True, exist_ok=True)
        self._space, self._start, self._skills = space, dict(start), tuple(skills)
        self._each = each_of(space)
        self._study = optuna.create_study(
            storage=f"sqlite:///{file}",
            study_name=name,
            direction="minimize",
            # By hand: Optuna's median rule goes by a trial's best skill so far, and not by all.
            pruner=optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        done = self._study.get_trials(deepcopy=False)
        # Another day draws on, and not the same values again.
        self._study.sampler = optuna.samplers.TPESampler(
            seed=(seed + len(done)) % 2**32, n_startup_trials=_AT_RANDOM
        )
        for one in done:
            if one.state == optuna.trial.TrialState.RUNNING:
                # Its process is gone.
                self._study.tell(one.number, state=optuna.trial.TrialState.FAIL)

    def trials(self) -> list[Trial]:
        """Every trial that came to something, in order."""
        import optuna

        found = []
        for one in self._study.get_trials(deepcopy=False):
            told = one.user_attrs.get("skills", {})
            skills = {name: Trained.from_json(values) for name, values in told.items()}
            if one.state in (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED):
                ratio = math.exp(list(one.intermediate_values.values())[-1])
                whole = one.state == optuna.trial.TrialState.COMPLETE
                note = str(one.user_attrs.get("note", ""))
                values = one.user_attrs["values"]
                start = bool(one.user_attrs.get(_START))
                found.append(Trial(one.number, values, skills, ratio, whole, note, start))
        return found

    def run(
        self,
        train: Train,
        *,
        seconds: float,
        trials: int | None = None,
        tell: Callable[[Trial], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> list[Trial]:
        """Goes on until the time or the number of trials is used up, or, of one key with few
        values, until each was tried once.

        Args:
            train: trains a skill.
            seconds: for all of it; the first trial may take longer, since nothing can be said
                without it.
            trials: in all, those of earlier days among them.
            tell: called with each trial at its end.

        Returns:
            Every trial, those of earlier days too.

        Raises:
            TrainingError: the values that one starts from cannot be trained.
            LearningInterruptedError: Ctrl-C; trials that are done stay.
        """
        began = clock()

        def is_over() -> bool:
            return clock() - began >= seconds

        while True:
            done = self.trials()
            first = next((one for one in done if one.whole and one.start), None)
            if first is not None and (is_over() or (trials is not None and len(done) >= trials)):
                return done
            if first is not None and self._each and self._untried(done) is None:
                return done
            found = self._one(train, first, is_over)
            if found is not None:
                tell(found)

    def _one(self, train: Train, first: Trial | None, is_over: Callable[[], bool]) -> Trial | None:
        """One trial; None where the time ended it."""
        import optuna

        if first is None:
            self._study.enqueue_trial(self._start, user_attrs={_START: True})
        elif (point := self._untried(self.trials())) is not None:
            self._study.enqueue_trial(point)
        trial = self._study.ask()
        values = self._suggested(trial)
        logs: list[float] = []
        skills: dict[str, Trained] = {}
        state, note = optuna.trial.TrialState.COMPLETE, ""

        def look() -> None:
            if first is not None and is_over():
                raise _TimeIsUpError

        with self._failing(trial):
            for step, name in enumerate(self._skills):
                try:
                    skills[name] = train(name, values, look)
                    compared = skills if first is None else first.skills
                    logs.append(_log_ratio(skills[name].loss, compared[name].loss, name))
                except _TimeIsUpError:
                    self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
                    return None
                except TrainingError as error:
                    if first is None:
                        raise
                    logs, note = [_HOPELESS], str(error)
                trial.report(statistics.fmean(logs), step)
                rest = step + 1 < len(self._skills)
                if note or (rest and self._is_behind(statistics.fmean(logs), step)):
                    note = note or "worse so far than half of the trials before it"
                    state = optuna.trial.TrialState.PRUNED
                    break
        trial.set_user_attr("skills", {name: one.to_json() for name, one in skills.items()})
        trial.set_user_attr("values", values)
        trial.set_user_attr("note", note)
        whole = state == optuna.trial.TrialState.COMPLETE
        self._study.tell(trial, statistics.fmean(logs) if whole else None, state=state)
        ratio = math.exp(statistics.fmean(logs))
        return Trial(trial.number, values, skills, ratio, whole, note, first is None)

    def _untried(self, done: Sequence[Trial]) -> dict[str, Value] | None:
        """Of a space that is tried whole, the next point."""
        tried = [one.values for one in done]
        return next((values for values in self._each if values not in tried), None)

    def _is_behind(self, so_far: float, step: int) -> bool:
        """Whether a trial stands worse after a skill than half of the whole ones did."""
        import optuna

        whole = self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        if len(whole) < _AT_RANDOM:
            return False
        return so_far > statistics.median(one.intermediate_values[step] for one in whole)

    def _suggested(self, trial: optuna.Trial) -> dict[str, Value]:
        values: dict[str, Any] = {}
        # Whether there is a phase before what it is like.
        for key in sorted(self._space, key=lambda key: key != SEEDING):
            if key.startswith(f"{SEEDING}.") and values.get(SEEDING) is False:
                continue
            dimension = self._space[key]
            if isinstance(dimension, Between):
                drawn = trial.suggest_float(key, dimension.low, dimension.high, log=True)
                # As it will be written; the digits beyond say nothing.
                values[key] = float(f"{drawn:.3g}")
            else:
                values[key] = trial.suggest_categorical(key, dimension.values)
        # What one starts from is not rounded.
        return dict(self._start) if trial.user_attrs.get(_START) else values

    @contextmanager
    def _failing(self, trial: optuna.Trial) -> Iterator[None]:
        """Says of a trial that did not come to its end that it failed."""
        import optuna

        try:
            yield
        except BaseException as error:
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            if isinstance(error, KeyboardInterrupt | LearningInterruptedError):
                raise LearningInterruptedError(
                    "interrupted: trials that are done are kept, and the same command goes on"
                ) from None
            raise


class _TimeIsUpError(Exception):
    pass


def _log_ratio(loss: float, first: float, name: str) -> float:
    if not (math.isfinite(loss) and math.isfinite(first)):
        raise TrainingError(f"{name}: the loss on the rows to choose by is not finite")
    return math.log(max(loss, _LEAST) / max(first, _LEAST))
