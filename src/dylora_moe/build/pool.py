"""The pool as a person holds it: create, open, plan, learn, ask, undo.

Wires storage, base and learner together; decides nothing itself. The base is only loaded when
something needs it, so listing or renaming experts is quick.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, overload

from dylora_moe import __version__
from dylora_moe.build.asking import Stream
from dylora_moe.build.opening import OWN_FEATURES, Own, load_live, make_meta, read_own
from dylora_moe.build.recipe import make_recipe
from dylora_moe.build.reporting import reporter_factory
from dylora_moe.config import LearnSettings
from dylora_moe.errors import PoolError
from dylora_moe.foundation.base import DEFAULT_BASE, load_base
from dylora_moe.lifecycle import exchange, undoing
from dylora_moe.lifecycle.answering import Sampling, answer
from dylora_moe.lifecycle.change import Stores
from dylora_moe.lifecycle.evaluating import Evaluation, evaluate
from dylora_moe.lifecycle.learner import Learner
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.lifecycle.recipe import Order
from dylora_moe.lifecycle.results import Answer, LearnResult, Plan
from dylora_moe.lifecycle.watch import Silent, Watch
from dylora_moe.ports import ArtifactStore, Registry, Run
from dylora_moe.records import Arrival, Event, ExpertVersion, PoolRevision, Turn
from dylora_moe.storage import pool_folder
from dylora_moe.text.prompts import read_rows_or_prompts
from dylora_moe.text.reading import read_examples
from dylora_moe.text.stream import arrivals_from_files

OWN_PROMPTS = 512


class Pool:
    """One frozen model and the experts that grew on it, in a folder.

    `Pool.create` makes one, `Pool.open` opens it in any later process. One process learns at a
    time; any number may read.
    """

    def __init__(
        self, storage: pool_folder.Storage, *, device: str | None = None, dtype: str | None = None
    ) -> None:
        self._storage = storage
        self._device, self._dtype = device, dtype
        self._live: LivePool | None = None
        self.meta: Mapping[str, Any] = storage.registry.meta()

    @classmethod
    def create(
        cls,
        path: str | Path,
        base: str = DEFAULT_BASE,
        *,
        format: str = "plain",  # noqa: A002 (the word people know)
        system: str | None = None,
        tap: int | None = None,
        targets: Sequence[str] | None = None,
        device: str | None = None,
        dtype: str | None = None,
        seed: int = 0,
        own_prompts: int = OWN_PROMPTS,
        progress: Watch | None = None,
    ) -> Pool:
        """Makes a pool with no experts.

        Args:
            path: a folder that does not exist or is empty.
            base: alias, hub id, folder or GGUF file.
            format: `plain` (prompt, newline, answer) or `chat` (the base's own template).
            system: system prompt of every conversation that has none.
            tap: blocks below it are never adapted; a quarter of the depth where None.
            targets: linear layers to adapt, where the structure does not tell.
            own_prompts: how many prompts the base writes by itself, which *no expert* is fitted on.

        Raises:
            PoolError: the folder is taken.
            BaseModelError: the base cannot be found or understood.
            ConfigError: an option out of its range.
        """
        watch = progress or Silent()
        pool_folder.check_free(path)
        watch.stage("base", base)
        loaded = load_base(base, device=device, dtype=dtype, targets=targets, tap=tap)
        own = Own.write(loaded, format, system, own_prompts, seed, watch)
        body = own.to_bytes()
        # A pool may be opened from another folder than it was made in.
        place = Path(base).expanduser()
        base = str(place.resolve()) if place.exists() else base
        meta = make_meta(loaded, base, format, system, tap, targets, seed, __version__, body)

        def fill(storage: pool_folder.Storage) -> None:
            storage.artifacts.put_bytes(OWN_FEATURES, body)

        storage = pool_folder.create(path, meta, fill=fill)
        pool = cls(storage, device=device, dtype=dtype)
        pool._live = load_live(storage, pool.meta, loaded, own.features)
        return pool

    @classmethod
    def open(cls, path: str | Path, *, device: str | None = None, dtype: str | None = None) -> Pool:
        """Opens a pool; its base is loaded at the first question.

        Raises:
            PoolError: no pool there.
        """
        return cls(pool_folder.open(path), device=device, dtype=dtype)

    def close(self) -> None:
        """Gives back the database; the pool object is done."""
        self._storage.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- what it is ------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        return self._storage.root

    @property
    def registry(self) -> Registry:
        return self._storage.registry

    @property
    def artifacts(self) -> ArtifactStore:
        return self._storage.artifacts

    @property
    def revision(self) -> PoolRevision:
        """What the pool is now."""
        return self._storage.registry.current()

    @property
    def live(self) -> LivePool:
        """The pool in memory, at its current revision; loads the base the first time.

        Raises:
            BaseModelError: the base cannot be found any more.
            PoolError: the base there is not the one the pool was made on.
        """
        if self._live is None:
            meta = self.meta
            base = load_base(
                meta["base"],
                device=self._device,
                dtype=self._dtype,
                targets=meta["targets"],
                tap=meta["tap"],
            )
            own = read_own(self._storage.artifacts, meta)
            self._live = load_live(self._storage, meta, base, own)
        current = self.revision
        if self._live.revision != current:
            self._live.become(current)
        return self._live

    def experts(self) -> tuple[ExpertVersion, ...]:
        """The current version of every expert, oldest first."""
        return self.revision.experts

    def events(self, kind: str | None = None) -> list[Event]:
        """Everything that was decided, with its numbers, in order."""
        return self._storage.registry.events(kind)

    def unfinished(self) -> list[Run]:
        """Runs that the same command goes on with."""
        return list(self._storage.runs.unfinished())

    # -- learning --------------------------------------------------------------------------------

    def plan(
        self,
        *files: str | Path,
        max_examples: int | None = None,
        seed: int = 0,
        validation: str | Path | None = None,
        settings: LearnSettings | None = None,
        watch: Watch | None = None,
    ) -> list[Plan]:
        """The verdict on each file and the cost of learning it; nothing changes.

        Raises:
            DataError: a file that cannot be read.
        """
        arrivals = _read(files, max_examples, validation)
        return self.plan_arrivals(arrivals, seed=seed, settings=settings, watch=watch)

    def plan_arrivals(
        self,
        arrivals: Sequence[Arrival],
        *,
        seed: int = 0,
        settings: LearnSettings | None = None,
        watch: Watch | None = None,
    ) -> list[Plan]:
        """`plan` for data that is in memory."""
        learner = self._learner(settings or LearnSettings(seed=seed), watch)
        return [learner.plan(arrival) for arrival in arrivals]

    def learn(
        self,
        *files: str | Path,
        name: str | None = None,
        into: str | None = None,
        as_new: bool = False,
        max_examples: int | None = None,
        seed: int = 0,
        validation: str | Path | None = None,
        settings: LearnSettings | None = None,
        watch: Watch | None = None,
        resume: bool = True,
    ) -> Any:
        """Learns files in order, each one arriving batch: a `LearnResult` for
        one file, a list of them for several.

        Args:
            name: what a new expert is called.
            into: overrule the verdict: the rows belong to this skill.
            as_new: overrule the verdict: a new expert.
            max_examples: rows of each file.
            validation: file of validation rows; a split by content hash where None.
            settings: everything else; `seed` is ignored where they are given.
            resume: go on with an unfinished run of the same data; else it is started over.

        Raises:
            DataError: a file that cannot be read; nothing was learned.
            PoolLockedError: another process learns into the pool.
            TrainingError: a run that went wrong; the pool is as it was before it.
            LearningInterruptedError: Ctrl-C; unfinished work is kept in `runs/`.
        """
        results = self.learn_arrivals(
            _read(files, max_examples, validation),
            name=name,
            into=into,
            as_new=as_new,
            seed=seed,
            settings=settings,
            watch=watch,
            resume=resume,
        )
        return results[0] if len(files) == 1 else results

    def learn_arrivals(
        self,
        arrivals: Sequence[Arrival],
        *,
        name: str | None = None,
        into: str | None = None,
        as_new: bool = False,
        seed: int = 0,
        settings: LearnSettings | None = None,
        watch: Watch | None = None,
        resume: bool = True,
    ) -> list[LearnResult]:
        """`learn` for data that is in memory."""
        order = Order(into, as_new, name)
        with self._storage.lock.hold(f"learning {', '.join(a.name for a in arrivals)}"):
            learner = self._learner(settings or LearnSettings(seed=seed), watch)
            if not resume:
                for run in self._storage.runs.unfinished():
                    run.remove()
            return [learner.add_new_skill(arrival, order) for arrival in arrivals]

    # -- asking ----------------------------------------------------------------------------------

    @overload
    def generate(self, prompts: str, **options: Any) -> Answer: ...

    @overload
    def generate(self, prompts: Sequence[str], **options: Any) -> list[Answer]: ...

    def generate(
        self, prompts: str | Sequence[str], *, expert: str | None = None, **sampling: Any
    ) -> Answer | list[Answer]:
        """Answers a prompt, or several in batches; each is routed by itself.

        Args:
            expert: alias of one expert for all, or `base`; the router decides where None.
            sampling: of `Sampling`: max_new_tokens, temperature, top_p, top_k, seed, stop.

        Raises:
            PoolError: no such expert.
        """
        listed = [prompts] if isinstance(prompts, str) else list(prompts)
        answers = answer(self.live, listed, expert=expert, sampling=Sampling(**sampling))
        return answers[0] if isinstance(prompts, str) else answers

    def chat(self, turns: Sequence[Turn], *, expert: str | None = None, **sampling: Any) -> Answer:
        """Answers a conversation; raises as `generate`."""
        return answer(self.live, [turns], expert=expert, sampling=Sampling(**sampling))[0]

    def stream(
        self, prompt: str | Sequence[Turn], *, expert: str | None = None, **sampling: Any
    ) -> Stream:
        """An answer piece by piece: iterate it; its `answer` is there afterwards."""
        return Stream(self.live, prompt, expert, Sampling(**sampling))

    def evaluate(
        self,
        files: Mapping[str, str | Path] | None = None,
        *,
        limit: int | None = None,
        generate: bool = True,
        expert: str | None = None,
    ) -> dict[str, Evaluation]:
        """Scores files by name, or the pool's own validation rows.

        Args:
            limit: rows of each.
            generate: also generate answers and check them.
            expert: pin one expert, or `base`, instead of routing.

        Raises:
            DataError: a file that cannot be read.
        """
        live = self.live
        if files is None:
            sets = {s.name: list(s.validation)[:limit] for s in live.skills.values()}
        else:
            sets = {name: read_examples(Path(file), limit) for name, file in files.items()}
        names = {skill.name: live.alias(skill.expert_id) for skill in live.skills.values()}
        return {
            name: evaluate(live, rows, generate=generate, expert=expert, right=names.get(name))
            for name, rows in sets.items()
            if rows
        }

    # -- experts ---------------------------------------------------------------------------------

    def import_expert(
        self, folder: str | Path, name: str, prompts: str | Path | Sequence[str]
    ) -> ExpertVersion:
        """Brings in a trained PEFT adapter with prompts to route by (a file, or the prompts).

        Rows of the file that have answers are kept as the skill's examples.

        Raises:
            ExpertError: the adapter does not fit.
            DataError: too few prompts, or a file that cannot be read.
            PoolError: the name is taken, or an older skill would get worse.
        """
        if isinstance(prompts, str | Path):
            texts, examples = read_rows_or_prompts(Path(prompts))
        else:
            texts, examples = list(prompts), []
        with self._storage.lock.hold(f"importing {name}"):
            return exchange.import_expert(
                self.live, self._stores(), make_recipe(LearnSettings()), Path(folder), name,
                texts, examples,
            )  # fmt: skip

    def export(self, name: str | None, folder: str | Path) -> list[Path]:
        """Copies one expert, or all, out as plain PEFT adapters with model cards.

        Raises:
            PoolError: no such expert, or a target folder that exists.
            ArtifactError: a stored file is damaged.
        """
        chosen = self.experts() if name is None else (self._expert(name),)
        return exchange.export_experts(chosen, self.artifacts, Path(folder))

    def rename(self, old: str, new: str) -> PoolRevision:
        """Gives an expert another name; PoolError if it is taken."""
        with self._storage.lock.hold(f"renaming {old}"):
            return undoing.rename_expert(self.live, self._stores(), old, new)

    def rollback(self, name: str | None = None) -> PoolRevision:
        """Takes back an expert's last version, or the pool's last step where no name is given.

        Raises:
            PoolError: there is nothing to take back.
        """
        with self._storage.lock.hold("rolling back"):
            if name is None:
                return undoing.step_back(self._stores())
            recipe = make_recipe(LearnSettings())
            return undoing.roll_back_expert(self.live, self._stores(), recipe, name)

    def remove(self, name: str) -> PoolRevision:
        """Takes an expert and its skills out of the pool; PoolError if there is none."""
        with self._storage.lock.hold(f"removing {name}"):
            recipe = make_recipe(LearnSettings())
            return undoing.remove_expert(self.live, self._stores(), recipe, name)

    # -- wiring ----------------------------------------------------------------------------------

    def _expert(self, name: str) -> ExpertVersion:
        return self.live.version(name) if self._live else _find(self.revision, name)

    def _stores(self) -> Stores:
        storage = self._storage
        return Stores(storage.registry, storage.artifacts, storage.examples, storage.runs)

    def _learner(self, settings: LearnSettings, watch: Watch | None) -> Learner:
        return Learner(
            self.live,
            self._stores(),
            make_recipe(settings),
            watch or Silent(),
            reporter_factory(settings.report_to, self.path.name),
        )


def _read(
    files: Sequence[str | Path], max_examples: int | None, validation: str | Path | None
) -> list[Arrival]:
    paths = [Path(file) for file in files]
    return arrivals_from_files(
        paths, max_examples, None if validation is None else Path(validation)
    )


def _find(revision: PoolRevision, name: str) -> ExpertVersion:
    found = revision.expert(name)
    if found is None:
        known = ", ".join(version.alias for version in revision.experts) or "none yet"
        raise PoolError(f"no expert '{name}' in this pool; there are: {known}")
    return found
