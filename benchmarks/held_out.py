"""What a new expert and TRL's SFTTrainer come to on the same rows: held-out loss, row by row.

    python benchmarks/held_out.py --data path/to/skills --runs runs.jsonl --seeds 3

Each seed draws other rows of one skill, in another order, and starts the adapters elsewhere. What
was run stands in `--runs` and is not run again; the table is of all that is in it. `learning.py`
measures the time of the same trainings and needs a quiet machine; this needs none. Five minutes or
more a seed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import peers
import skill_rows
import workload
from harness import Options
from learning import EPOCHS
from machine import machine, versions
from measured import Row
from skill_rows import NEW
from study import cached, drawn, encoded

from dylora_moe.config import LearnSettings
from dylora_moe.foundation.base import Base
from dylora_moe.records import Interval
from dylora_moe.scoring.bootstrap import Paired, macro_bootstrap
from dylora_moe.text.reading import read_examples
from dylora_moe.training.measure import answer_losses
from dylora_moe.tuning.material import Skill

OURS, SEEDED, RANK_16 = "new expert", "new expert with seeding", "new expert, rank 16"
PACKED, PADDED = "TRL, packed", "TRL, padded"
PACKED_ALL, PADDED_ALL = "TRL, packed, all blocks", "TRL, padded, all blocks"
ARMS = (OURS, SEEDED, RANK_16, PACKED, PADDED, PACKED_ALL, PADDED_ALL)

_ALIKE = LearnSettings(seeding=None, generate_scores=0)
"""As `learning.py`: without seeding both sides see the rows as often."""
_WIDE = _ALIKE.expert.model_copy(update={"rank": 16, "alpha": 2 * _ALIKE.expert.alpha})
OWN: Mapping[str, LearnSettings] = {
    OURS: _ALIKE,
    SEEDED: LearnSettings(generate_scores=0),
    RANK_16: _ALIKE.model_copy(update={"expert": _WIDE}),
}


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        losses: of each test row, nats summed over its answer.
        tokens: of each test row's answer.
    """

    arm: str
    skill: str
    rows: int
    seed: int
    losses: tuple[float, ...]
    tokens: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Token mean."""
        return sum(self.losses) / sum(self.tokens)


def run(arm: str, folder: Path, count: int, test: int, seed: int) -> Run:
    """Trains in one arm on rows of the skill in this folder, and measures its test rows."""
    if arm in OWN:
        losses, tokens = _ours(folder, count, test, seed, OWN[arm])
    else:
        base = workload.load_stock(Options(device="cpu"))
        losses, tokens = _theirs(arm, base, encoded(base, folder, count, test, seed), seed)
    return Run(arm, folder.name, count, seed, losses, tokens)


def _ours(
    folder: Path, count: int, test: int, seed: int, settings: LearnSettings
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """The product, in a pool with two other skills: verdict, neighbours, early stopping, gate."""
    options = Options(device="cpu", data=str(folder.parent), rows=count)
    work = replace(skill_rows.task(options), rows=tuple(drawn(folder, count, seed)))
    with skill_rows.pool(options, work) as pool, tempfile.TemporaryDirectory() as made:
        file = skill_rows.write(work, Path(made) / "new.jsonl")
        result = pool.learn(file, settings=settings.model_copy(update={"seed": seed}))
        if result.action != "created":
            raise SystemExit(f"the pool {result.action} instead of growing: {result.message}")
        judged = cached(pool.live.base, list(read_examples(folder / "test.jsonl"))[:test])
        name = pool.live.experts.names[-1]
        found = answer_losses(pool.live.model, judged, expert=name)
    return tuple(found.total.tolist()), tuple(found.tokens.tolist())


def _theirs(
    arm: str, base: Base, skill: Skill, seed: int
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    blocks = None if arm in (PACKED_ALL, PADDED_ALL) else base.anatomy.adapted_blocks
    packing = arm in (PACKED, PACKED_ALL)
    with tempfile.TemporaryDirectory() as made:
        model, _ = peers.sft(
            base, skill.train.encoded, Path(made), epochs=EPOCHS, packing=packing, blocks=blocks,
            seed=seed,
        )  # fmt: skip
    return peers.row_losses(model, base, skill.judged.encoded)


def _seeds(runs: Sequence[Run], *arms: str) -> list[int]:
    """Seeds that all of these arms have."""
    sides = [{one.seed for one in runs if one.arm == arm} for arm in arms]
    return sorted(set.intersection(*sides))


def compared(runs: Sequence[Run], ours: str, theirs: str) -> Interval | None:
    """Ratio of token means, over the seeds that both have, with its interval over test rows and
    seeds (`macro_bootstrap`); None where they have none."""
    first, second = ({one.seed: one for one in runs if one.arm == arm} for arm in (ours, theirs))
    pairs = [
        Paired(_per_token(first[seed]), _per_token(second[seed]), first[seed].tokens, seed,
               first[seed].skill)
        for seed in _seeds(runs, ours, theirs)
    ]  # fmt: skip
    return macro_bootstrap(pairs) if pairs else None


def _per_token(one: Run) -> list[float]:
    """Of each test row."""
    return [loss / count for loss, count in zip(one.losses, one.tokens, strict=True)]


def rows(runs: Sequence[Run]) -> list[Row]:
    """The scoreboard's rows: against the better of TRL's arms that were run."""
    found = []

    def add(
        ours: str, among: tuple[str, ...], words: str, must: float | None, aim: float | None
    ) -> None:
        shared = {arm: _seeds(runs, ours, arm) for arm in among}
        most = max(map(len, shared.values()))
        if not most:
            return
        # Those with all the seeds that any has: one easy seed alone makes nobody the better.
        each = [(compared(runs, ours, arm), arm) for arm in among if len(shared[arm]) == most]
        value, best = max(((one, arm) for one, arm in each if one), key=lambda pair: pair[0].value)
        found.append(
            Row(
                f"held-out loss, {words}", value.value, "at most", must, aim, value.low,
                value.high, f"{best}, seeds: {most}", interval=True,
            )
        )  # fmt: skip

    add(OURS, (PACKED, PADDED), "new expert / TRL's better on the same blocks", 1.01, 1.0)
    add(SEEDED, (PACKED, PADDED), f"{SEEDED} / TRL's better on the same blocks", None, None)
    for arm in (OURS, RANK_16):
        add(arm, (PACKED_ALL, PADDED_ALL), f"{arm} / TRL's better on all blocks", 1.02, 1.0)
    return found


def read(path: Path) -> list[Run]:
    """What was run before."""
    if not path.exists():
        return []
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [
        Run(**{**one, "losses": tuple(one["losses"]), "tokens": tuple(one["tokens"])})
        for one in lines
    ]


def document(runs: Sequence[Run]) -> dict[str, Any]:
    """The result file; the losses of single rows stay in the runs."""
    first = runs[0]
    seeds = sorted({one.seed for one in runs})
    means: dict[str, Mapping[str, float]] = {
        arm: {str(one.seed): one.mean for one in runs if one.arm == arm}
        for arm in dict.fromkeys(one.arm for one in runs)
    }
    return {
        "benchmark": "held_out",
        "title": "Held-out loss of a new skill beside TRL",
        "compared": f"{first.skill}, {first.rows} rows of which a share validates on our side and "
        f"is not trained on by either, {len(first.tokens)} test rows; rank 8 unless said, "
        f"all-linear, blocks above the tap unless said, {EPOCHS} epochs, learning rate "
        f"{peers.RATE:g}, cosine, 8 rows a step (TRL packed: 512 tokens); ours from a file "
        "to the promoted expert in a pool with two others, without seeding unless said, weights of "
        "the epoch that is best on the validation rows; TRL's last weights; "
        "interval: paired bootstrap over test rows and, each by itself, over the seeds that both "
        f"sides have, of {seeds}: with one seed it says nothing of others, with two or three it is "
        "still too narrow",
        "command": "python benchmarks/held_out.py --data path/to/skills --runs runs.jsonl "
        f"--rows {first.rows} --test {len(first.tokens)} --seeds {len(seeds)} --arms "
        + " ".join(f'"{arm}"' for arm in means),
        "date": time.strftime("%Y-%m-%d"),
        "device": "cpu",
        "machine": machine("cpu"),
        "versions": versions(),
        "rows": [asdict(one) for one in rows(runs)],
        "means": means,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Held-out loss of a new skill beside TRL.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True, help="JSONL of what was run")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--test", type=int, default=500, help="test rows")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None, help="the result file to write")
    arguments = parser.parse_args(argv)
    runs = read(arguments.runs)
    other = [one for one in runs if (one.rows, len(one.tokens)) != (arguments.rows, arguments.test)]
    if other:
        parser.error(
            f"{arguments.runs} has trainings on {other[0].rows} rows, judged by "
            f"{len(other[0].tokens)}; name another file for {arguments.rows} and {arguments.test}"
        )
    done = {(one.arm, one.seed) for one in runs}
    todo = [(arm, seed) for seed in range(arguments.seeds) for arm in arguments.arms]
    for arm, seed in todo:
        if (arm, seed) in done:
            continue
        start = time.perf_counter()
        one = run(arm, arguments.data / NEW, arguments.rows, arguments.test, seed)
        runs.append(one)
        with arguments.runs.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(one)) + "\n")
        print(
            f"{arm}, seed {seed}: {one.mean:.4f}, {time.perf_counter() - start:.0f} s", flush=True
        )
    for found in rows(runs):
        print(f"{found.measure}: {found.value:.3f} [{found.low:.3f}, {found.high:.3f}]")
    if arguments.out is not None:
        text = json.dumps(document(runs), indent=1, ensure_ascii=False)
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
