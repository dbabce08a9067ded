"""Runs a benchmark's arms against each other and writes what came out.

Every arm is a process of its own, and arms take turns in a shuffled order, since arms of one
process disturb each other by more than what is measured, and the machine's speed drifts. Knows
processes, medians and files; knows nothing of what an arm does.

    python benchmarks/training_step.py                # full size, on the best device there is
    python benchmarks/training_step.py --device cuda  # the same on a GPU, into a file of its own
    python benchmarks/training_step.py --toy          # seconds: does it run?
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from machine import installed, machine, versions
from measured import Check, Direction, Row, Samples, middle, row

RESULTS = Path(__file__).parent / "results"
CANNOT_RUN = 3
"""Exit code where a peer or the device is missing; one line on stderr says which."""
__all__ = ["Benchmark", "Check", "Direction", "Options", "Row", "Samples", "main", "row", "timed"]


@dataclass(frozen=True, slots=True)
class Options:
    """How an arm is to run.

    Attributes:
        toy: tiny random model and few steps: it only has to run.
        device: cpu or cuda.
        dtype: compute dtype of the base.
        warmup, repeats: steps that are not counted, and those that are.
        data: folder with `<skill>/{train,test}.jsonl`, for benchmarks that learn.
        rows: of the skill that is learned; None where none is.
    """

    toy: bool = False
    device: str = "cpu"
    dtype: str = "bf16"
    warmup: int = 2
    repeats: int = 8
    data: str | None = None
    rows: int | None = None


Arm = Callable[[Options], Mapping[str, Any]]


@dataclass(frozen=True)
class Benchmark:
    """What is measured.

    Attributes:
        name: of its files under `results/`.
        title: what it measures, for the figure and the table.
        compared: what exactly is compared: blocks, targets, rank, padding, trained positions;
            `{rows}` in it is the option.
        arms: by name; each returns its metrics, `seconds` (one per repeat) among them.
        rows: the scoreboard's rows from what the arms measured.
        checks: compares results with a reference; run once, in a process of its own.
        metric: what the figure shows, and its unit.
        rounds: how often the arms take turns.
        peers: distributions that the arms need beside the project's own.
        devices: where it can run.
        defaults: of its options; without `rows` it does not take them.
        theirs: the arms that this project is compared with.
        uses_data: whether the arms read `Options.data`.
    """

    name: str
    title: str
    compared: str
    arms: Mapping[str, Arm]
    rows: Callable[[Samples], Sequence[Row]]
    checks: Callable[[Options], Sequence[Check]]
    metric: tuple[str, str] = ("seconds", "s a step")
    rounds: int = 5
    peers: Sequence[str] = ()
    devices: Sequence[str] = ("cpu", "cuda")
    defaults: Options = field(default_factory=Options)
    theirs: Sequence[str] = ()
    uses_data: bool = False


def main(benchmark: Benchmark, argv: Sequence[str] | None = None) -> None:
    """The command line of a benchmark; exits with 1 where a check does not hold, unmeasured."""
    arguments = _parser(benchmark).parse_args(argv)
    options = _options(benchmark, arguments)
    if arguments.arm is not None:
        found = json.dumps(_measured(benchmark, arguments.arm, options))
        Path(arguments.to).write_text(found, encoding="utf-8")
        return
    _require(benchmark, options)
    rounds = 1 if options.toy else arguments.rounds
    if arguments.only:
        _run(benchmark, options, rounds, [arguments.only])
        return
    checks = [Check(**one) for one in _child(benchmark, "checks", options)["checks"]]
    _end_unless_all_hold(checks)
    runs = _run(benchmark, options, rounds, list(benchmark.arms))
    rows = benchmark.rows(Samples(runs))
    result = _result(benchmark, options, runs, checks, rows)
    if arguments.out or not options.toy:
        write(result, Path(arguments.out) if arguments.out else RESULTS)
    say(rows)
    sys.exit(0)


def timed(step: Callable[[], Any], options: Options, sync: Callable[[], None]) -> list[float]:
    """Seconds of each repeat after the warm-up, the garbage collector held off."""
    for _ in range(1 if options.toy else options.warmup):
        step()
    gc.collect()
    gc.disable()
    seconds = []
    for _ in range(2 if options.toy else options.repeats):
        sync()
        start = time.perf_counter()
        step()
        sync()
        seconds.append(time.perf_counter() - start)
    gc.enable()
    return seconds


def say(rows: Sequence[Row]) -> None:
    """Prints rows as a table."""
    for one in rows:
        value = "not measured" if one.value is None else f"{one.value:.4g}"
        spread = "" if one.low is None else f" [{one.low:.4g}, {one.high:.4g}]"
        named = {"must": one.must, "aim": one.aim}
        goals = ", ".join(f"{key} {goal:g}" for key, goal in named.items() if goal is not None)
        said = f"  ({one.direction}: {goals})" if goals else ""
        print(f"{one.measure}: {value}{spread}{said}{'  ' + one.note if one.note else ''}")


def write(result: Mapping[str, Any], folder: Path) -> None:
    """The result as JSON, and its figure."""
    from figure import draw

    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{result['benchmark']}{'' if result['device'] == 'cpu' else '-' + result['device']}"
    text = json.dumps(result, indent=1, ensure_ascii=False)
    (folder / f"{stem}.json").write_text(text + "\n", encoding="utf-8")
    draw(result, folder / f"{stem}.png")


def _end_unless_all_hold(checks: Sequence[Check]) -> None:
    for one in (wrong := [check for check in checks if not check.holds]):
        print(f"WRONG: {one.what}: off by {one.difference:.3g}, let through {one.tolerance}")
    if wrong:
        sys.exit(1)


def _run(
    benchmark: Benchmark, options: Options, rounds: int, names: Sequence[str]
) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = []
    for number in range(rounds):
        # So that no arm always follows the same one.
        turn = random.Random(number).sample(names, len(names))
        found = {}
        for name in turn:
            found[name] = _child(benchmark, name, options)
            said = ", ".join(f"{key} {middle(value):.4g}" for key, value in found[name].items())
            print(f"round {number + 1}/{rounds}  {name}: {said}", flush=True)
        runs.append({name: found[name] for name in names})
    return runs


def _child(benchmark: Benchmark, arm: str, options: Options) -> dict[str, Any]:
    if options.toy:
        # Importing the libraries takes longer than a toy arm, and nobody reads its times.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return dict(json.loads(json.dumps(_measured(benchmark, arm, options))))
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder) / "arm.json"
        script = str(Path(__file__).parent / f"{benchmark.name}.py")
        command = [sys.executable, script, "--arm", arm, "--to", str(to), *_as_arguments(options)]
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
        done = subprocess.run(
            command, check=False, stderr=subprocess.PIPE, text=True, env=environment
        )
        if done.returncode != 0 or not to.exists():
            sys.exit(f"arm {arm} of {benchmark.name} failed:\n{done.stderr[-4000:]}")
        found: dict[str, Any] = json.loads(to.read_text(encoding="utf-8"))
        return found


def _measured(benchmark: Benchmark, arm: str, options: Options) -> Mapping[str, Any]:
    if arm == "checks":
        return {"checks": [asdict(one) for one in benchmark.checks(options)]}
    return benchmark.arms[arm](options)


def _require(benchmark: Benchmark, options: Options) -> None:
    if options.device not in benchmark.devices:
        _refuse(f"{benchmark.name} runs on {' and '.join(benchmark.devices)} only")
    absent = [name for name in benchmark.peers if installed(name) is None]
    if absent:
        _refuse(f"{benchmark.name} compares with {', '.join(absent)}: pip install -e '.[bench]'")


def _refuse(why: str) -> None:
    print(why, file=sys.stderr)
    sys.exit(CANNOT_RUN)


def _parser(benchmark: Benchmark) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=benchmark.title)
    defaults = benchmark.defaults
    parser.add_argument("--toy", action="store_true", help="tiny and short: does it run?")
    parser.add_argument("--device", default=None, help="cpu or cuda; the best there is")
    parser.add_argument("--dtype", default=defaults.dtype, help="bf16 or fp32")
    parser.add_argument("--rounds", type=int, default=benchmark.rounds, help="turns of the arms")
    parser.add_argument("--warmup", type=int, default=defaults.warmup)
    parser.add_argument("--repeats", type=int, default=defaults.repeats)
    if benchmark.uses_data:
        parser.add_argument("--data", default=None, help="folder of skills to learn")
    if defaults.rows is not None:
        parser.add_argument("--rows", type=int, default=defaults.rows, help="rows to learn")
    parser.add_argument("--only", choices=list(benchmark.arms), help="one arm, nothing written")
    parser.add_argument("--out", default=None, help="folder of the result instead of results/")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--to", help=argparse.SUPPRESS)
    return parser


def _options(benchmark: Benchmark, arguments: argparse.Namespace) -> Options:
    device = arguments.device
    if device is None:
        import torch

        device = "cuda" if torch.cuda.is_available() and "cuda" in benchmark.devices else "cpu"
    known = {one.name for one in fields(Options)}
    given = {name: value for name, value in vars(arguments).items() if name in known}
    return Options(**given | {"device": device})


def _as_arguments(options: Options) -> list[str]:
    found = ["--toy"] if options.toy else []
    for name, value in asdict(options).items():
        found += [f"--{name}", str(value)] if name != "toy" and value is not None else []
    return found


def _result(
    benchmark: Benchmark,
    options: Options,
    runs: Sequence[Mapping[str, Any]],
    checks: Sequence[Check],
    rows: Sequence[Row],
) -> dict[str, Any]:
    return {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "compared": benchmark.compared.format(rows=options.rows),
        "command": _command(benchmark, options, len(runs)),
        "date": time.strftime("%Y-%m-%d"),
        "device": options.device,
        "machine": machine(options.device),
        "versions": versions(),
        "settings": {k: v for k, v in asdict(options).items() if k != "data" and v is not None},
        "metric": list(benchmark.metric),
        "theirs": list(benchmark.theirs),
        "rows": [asdict(one) for one in rows],
        "checks": [asdict(one) | {"holds": one.holds} for one in checks],
        "rounds": list(runs),
    }


def _command(benchmark: Benchmark, options: Options, rounds: int) -> str:
    """What makes the result again: every option that is not the default."""
    usual = asdict(benchmark.defaults) | {"rounds": 1 if options.toy else benchmark.rounds}
    parts = [f"python benchmarks/{benchmark.name}.py{' --toy' if options.toy else ''}"]
    for name, value in (asdict(options) | {"rounds": rounds}).items():
        if name not in ("toy", "data") and value != usual[name]:
            parts.append(f"--{name} {value}")
    parts += ["--data path/to/skills"] if options.data else []
    return " ".join(parts)
