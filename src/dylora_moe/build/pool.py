"""The pool as a person holds it: create, open, plan, learn, ask, undo.

Wires storage, base and learner together; decides nothing itself. The base is only loaded when
something needs it, so listing or renaming experts is quick.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dylora_moe.build.emptying import emptying_inbox
from dylora_moe.build.making import OWN_PROMPTS, make_pool
from dylora_moe.build.reader import PoolReader
from dylora_moe.build.recipe import make_recipe
from dylora_moe.build.reporting import reporter_factory, require_extras
from dylora_moe.config import LearnSettings
from dylora_moe.errors import ConfigError
from dylora_moe.foundation.base import DEFAULT_BASE
from dylora_moe.lifecycle import exchange, undoing
from dylora_moe.lifecycle.checking import check_arrivals
from dylora_moe.lifecycle.learner import Learner
from dylora_moe.lifecycle.mixed import learn_mixed, plan_mixed
from dylora_moe.lifecycle.recipe import Order
from dylora_moe.lifecycle.results import LearnResult, Plan
from dylora_moe.lifecycle.watch import Silent, Watch
from dylora_moe.records import Arrival, ExpertVersion, PoolRevision
from dylora_moe.text.prompts import read_rows_or_prompts
from dylora_moe.text.stream import arrivals_from_files


class Pool(PoolReader):
    """One frozen model and the experts that grew on it, in a folder.

    `Pool.create` makes one, `Pool.open` opens it in any later process. One process learns at a
    time; any number may read.
    """

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
        quantize: str | None = None,
        seed: int = 0,
        own_prompts: int = OWN_PROMPTS,
        database: str | None = None,
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
            quantize: int8 or int4 for good; on CUDA int4 is nf4, which may be named anywhere.
            own_prompts: how many prompts the base writes by itself, which *no expert* is fitted on.
            database: URL of a database on a server that keeps the registry, without a password,
                as postgresql+psycopg://user@host/database; a file in the folder where None.

        Raises:
            PoolError: the folder is taken, or the database is or cannot be used.
            MissingExtraError: the database's driver, or bitsandbytes for nf4, is not installed.
            BaseModelError: the base cannot be found or understood.
            ConfigError: an option out of its range.
        """
        return cls(
            make_pool(
                path,
                base,
                kind=format,
                system=system,
                tap=tap,
                targets=targets,
                device=device,
                dtype=dtype,
                quantize=quantize,
                seed=seed,
                own_prompts=own_prompts,
                database=database,
                watch=progress or Silent(),
            )
        )

    def plan(
        self,
        *files: str | Path,
        mixed: bool = False,
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
        return self.plan_arrivals(arrivals, mixed=mixed, seed=seed, settings=settings, watch=watch)

    def plan_arrivals(
        self,
        arrivals: Sequence[Arrival],
        *,
        mixed: bool = False,
        seed: int = 0,
        settings: LearnSettings | None = None,
        watch: Watch | None = None,
    ) -> list[Plan]:
        """`plan` for data that is in memory."""
        learner = self._learner(settings or LearnSettings(seed=seed), watch)
        if mixed:
            return [plan for arrival in arrivals for plan in plan_mixed(learner, arrival)]
        return [learner.plan(arrival) for arrival in arrivals]

    def learn(
        self,
        *files: str | Path,
        name: str | None = None,
        into: str | None = None,
        as_new: bool = False,
        mixed: bool = False,
        max_examples: int | None = None,
        seed: int = 0,
        validation: str | Path | None = None,
        settings: LearnSettings | None = None,
        watch: Watch | None = None,
        resume: bool = True,
    ) -> Any:
        """Learns files in order, each one arriving batch: a `LearnResult` for
        one file, a list of them for several, and for mixed ones.

        Args:
            name: what a new expert is called.
            into: overrule the verdict: the rows belong to this skill.
            as_new: overrule the verdict: a new expert.
            mixed: the rows are of several skills, unlabelled: they are sorted first.
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
            mixed=mixed,
            seed=seed,
            settings=settings,
            watch=watch,
            resume=resume,
        )
        return results[0] if len(files) == 1 and not mixed else results

    def learn_arrivals(
        self,
        arrivals: Sequence[Arrival],
        *,
        name: str | None = None,
        into: str | None = None,
        as_new: bool = False,
        mixed: bool = False,
        seed: int = 0,
        settings: LearnSettings | None = None,
        watch: Watch | None = None,
        resume: bool = True,
    ) -> list[LearnResult]:
        """`learn` for data that is in memory."""
        order = Order(into, as_new, name)
        if mixed and order != Order():
            raise ConfigError(
                "mixed rows are of several skills, so nothing can be overruled for all of them; "
                "leave out into, as_new and name, or mixed"
            )
        with self._storage.lock.hold(f"learning {', '.join(a.name for a in arrivals)}"):
            self.check_arrivals([(arrival, order) for arrival in arrivals], settings=settings)
            learner = self._learner(settings or LearnSettings(seed=seed), watch)
            if not resume:
                names = {arrival.name for arrival in arrivals}
                for run in self._storage.runs.unfinished():
                    arrival = str(run.state().get("arrival"))
                    # A kind that was found in mixed rows has their name with a number.
                    of, _, number = arrival.rpartition("-")
                    if arrival in names or (mixed and of in names and number.isdecimal()):
                        run.remove()
            with emptying_inbox(self._opened, arrivals):
                if mixed:
                    return [one for arrival in arrivals for one in learn_mixed(learner, arrival)]
                return [learner.add_new_skill(arrival, order) for arrival in arrivals]

    def check_arrivals(
        self,
        incoming: Sequence[tuple[Arrival, Order]],
        *,
        settings: LearnSettings | None = None,
    ) -> None:
        """Raises what can be known to go wrong with the arrivals before the first is learned.

        `learn` does it by itself; this is for arrivals that come in several calls.

        Raises:
            DataError: a row that is too long.
            PoolError: an unknown skill to learn into, or a name that no expert can have.
            MissingExtraError: a package that `report_to` needs.
        """
        settings = settings or LearnSettings()
        require_extras(settings.report_to)
        check_arrivals(self.live, make_recipe(settings), incoming)

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
                self.live, self._opened.stores, make_recipe(LearnSettings()), Path(folder), name,
                texts, examples,
            )  # fmt: skip

    def rename(self, old: str, new: str) -> PoolRevision:
        """Gives an expert another name; PoolError if it is taken."""
        with self._storage.lock.hold(f"renaming {old}"):
            return undoing.rename_expert(self._opened.stores, old, new)

    def rollback(self, name: str | None = None) -> PoolRevision:
        """Takes back an expert's last version, or the pool's last step where no name is given.

        Raises:
            PoolError: there is nothing to take back.
        """
        with self._storage.lock.hold("rolling back"):
            if name is None:
                return undoing.step_back(self._opened.stores)
            return undoing.roll_back_expert(
                self._opened.loaded, self._opened.stores, make_recipe(LearnSettings()), name
            )

    def put_back(self, name: str, version: int, instead_of: int | None = None) -> PoolRevision:
        """Puts any version that was ever in service back; PoolError if there is none, or it is, or
        another one than `instead_of` is."""
        with self._storage.lock.hold(f"putting v{version} of {name} back"):
            recipe = make_recipe(LearnSettings())
            return undoing.put_back(
                self._opened.loaded, self._opened.stores, recipe, name, version, instead_of
            )

    def remove(self, name: str) -> PoolRevision:
        """Takes an expert and its skills out of the pool; PoolError if there is none."""
        with self._storage.lock.hold(f"removing {name}"):
            return undoing.remove_expert(
                self._opened.loaded, self._opened.stores, make_recipe(LearnSettings()), name
            )

    def _learner(self, settings: LearnSettings, watch: Watch | None) -> Learner:
        return Learner(
            self.live,
            self._opened.stores,
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
