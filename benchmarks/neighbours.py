"""What a new skill gains by the older experts beside it, one choice at a time.

    python benchmarks/neighbours.py --data path/to/skills --runs runs.jsonl

`--data` is a folder with `<skill>/{train,test}.jsonl`. Each skill is learned in each variant from a
copy of the same pool, which has the experts of two older skills (`OLDER`), one of them near it.
Its expert is measured alone, and all three skills as the router sends their test rows. A pool of
older experts takes about three minutes, once a process; each training in it about one.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ablations_table import AS_IT_IS, Run
from study import Study, cached, drawn, main

from dylora_moe.build.pool import Pool
from dylora_moe.config import LearnSettings, learn_settings
from dylora_moe.errors import TrainingError
from dylora_moe.foundation.base import DEFAULT_BASE, Base
from dylora_moe.records import Arrival
from dylora_moe.text.reading import read_examples
from dylora_moe.training.measure import answer_losses
from dylora_moe.training.rows import Rows
from dylora_moe.tuning.trials import exact_answers

OLDER: Mapping[str, tuple[str, str]] = {
    "snips": ("clinc150", "nl2bash"),
    "wikisql": ("nl2bash", "snips"),
    "nl2bash": ("wikisql", "clinc150"),
    "clinc150": ("snips", "wikisql"),
}
"""Skills that the pool has already; the first is the nearer one."""
OLDER_ROWS = 256
"""Rows of each older skill: enough for a mature expert, which alone may teach."""
OWN_PROMPTS = 128
PLACE: Mapping[str, Any] = {}
"""Where pools compute; what `Pool.open` takes by itself where nothing is said."""

_ALWAYS = (
    "generate_scores=0",
    # What a variant does to the older skills is measured here, and refused by nobody.
    "gate.tolerance=1e9",
)
_ALONE = ("seeding.collaboration=[0,0]", "consolidation.collaboration=[0,0]")
_FIXED = "consolidation.train_gate=false"
_AFTER = "router.fit_steps=150"


def distilled(coefficient: float) -> tuple[str, str]:
    """Both phases towards the older experts."""
    return (f"seeding.distillation={coefficient}", f"consolidation.distillation={coefficient}")


VARIANTS: Mapping[str, Sequence[str]] = {
    AS_IT_IS: (),
    "start from merge": ("expert.start=merge",),
    "no collaboration": _ALONE,
    "no seeding": ("seeding=null",),
    "gate not trained": (_FIXED,),
    "gate trained after, alone": (_FIXED, _AFTER),
    "gate trained along and after": (_AFTER,),
    "distillation 0.1": distilled(0.1),
    "distillation 0.5": distilled(0.5),
    "distillation 1": distilled(1.0),
}
"""Settings as `dylora learn --set` takes them."""


def settings_of(name: str, seed: int = 0) -> LearnSettings:
    """The settings of a variant."""
    return learn_settings([*_ALWAYS, *VARIANTS[name], f"seed={seed}"])


def run(folder: Path, name: str, rows: int, test: int, seed: int) -> Run:
    """Learns one skill in a copy of its pool, in the variant of this name."""
    older = OLDER[folder.name]
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "pool"
        shutil.copytree(_taught(folder.parent, older, seed), path)
        with Pool.open(path, **PLACE) as pool:
            arrival = Arrival(folder.name, tuple(drawn(folder, rows, seed)))
            (result,) = pool.learn_arrivals(
                [arrival], as_new=True, settings=settings_of(name, seed)
            )
            if result.expert is None:
                raise TrainingError(f"{folder.name} got no expert: {result.message}")
            version, model = pool.live.version(result.expert), pool.live.model
            base = pool.live.base
            judged = _test_rows(folder, test, base)
            losses = answer_losses(model, judged, expert=version.expert_id, openings=True)
            names = (folder.name, *older)
            routed = [
                answer_losses(model, _test_rows(folder.parent / one, test, base), limit=test // 2)
                for one in names
            ]
            return Run(
                name, folder.name, rows, seed, losses.mean,
                statistics.fmean(exact_answers(judged, losses)), version.history["tokens"],
                result.seconds, test, statistics.fmean(found.mean for found in routed),
                version.history["flops"],
            )  # fmt: skip


@functools.cache
def _place() -> Path:
    """A folder that goes when the process does."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return Path(folder.name)


@functools.cache
def _empty() -> Path:
    """A pool of no experts, to be copied: its own prompts are written once."""
    path = _place() / "empty"
    Pool.create(path, DEFAULT_BASE, own_prompts=OWN_PROMPTS, **PLACE).close()
    return path


@functools.cache
def _taught(data: Path, skills: tuple[str, ...], seed: int) -> Path:
    """A pool of these skills' experts, to be copied."""
    path = _place() / f"{'-'.join(skills)}-{seed}"
    shutil.copytree(_empty(), path)
    with Pool.open(path, **PLACE) as pool:
        for name in skills:
            arrival = Arrival(name, tuple(drawn(data / name, OLDER_ROWS, seed)))
            pool.learn_arrivals([arrival], as_new=True, settings=settings_of(AS_IT_IS, seed))
    return path


_TEST_ROWS: dict[tuple[Path, int], Rows] = {}


def _test_rows(folder: Path, count: int, base: Base) -> Rows:
    """A skill's test rows with their trunk states, which are those of every pool here."""
    if (folder, count) not in _TEST_ROWS:
        examples = list(read_examples(folder / "test.jsonl"))[:count]
        _TEST_ROWS[folder, count] = cached(base, examples)
    return _TEST_ROWS[folder, count]


STUDY = Study(
    name="neighbours",
    title="A new skill beside older experts, one choice at a time",
    compared="one skill learned in a pool with two older experts, in a variant and by default, the "
    f"same rows in the same order; {OLDER_ROWS} rows of each older skill ("
    + "; ".join(f"{new} beside {' and '.join(old)}" for new, old in OLDER.items())
    + "); routed: the mean over the three skills of their test rows' loss under the router",
    variants=tuple(VARIANTS),
    rows=128,
    run=run,
)

if __name__ == "__main__":
    main(STUDY)
