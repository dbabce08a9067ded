"""`dylora serve` under load: how much batching gives, how soon it answers, and what a change costs.

    python benchmarks/serving.py                      # both kinds of experts; some minutes
    python benchmarks/serving.py --hostile 10000      # and a plague of hostile requests
    python benchmarks/serving.py --toy                # seconds: does it run?

Each pool has four experts with random weights, imported as anybody would import adapters. The
server is a process of its own, the clients are in this one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hostile
import httpx
import workload
from harness import RESULTS, Options, say
from load import Load, Question, load, repeated
from machine import machine, versions
from measured import Row
from served_pool import (
    EXPERTS,
    Answers,
    Server,
    build,
    import_fifth,
    pools_base,
    prefill_seconds,
    promoted_at,
)

CLIENTS = 16
SOON = 24
"""Answers whose first token is waited for, and prompts of the bare prefill."""
KINDS = workload.KINDS
_GOALS = {"attention": 0.9, "all-linear": 0.8}


def measure_speed(pool: Path, options: Options, prompts: Sequence[str]) -> dict[str, Any]:
    """One client, sixteen clients, and sixteen on the base alone, all on one server; which then
    gets a SIGTERM while it answers."""
    tokens, each = (8, 2) if options.toy else (32, 2)
    with Server(pool, options) as server:
        # What is met for the first time is slower: buffers, kernels, experts' files.
        load(server.url, repeated(prompts, pool.name, tokens, CLIENTS), CLIENTS)
        load(server.url, repeated(prompts, "base", tokens, CLIENTS), CLIENTS)
        alone = load(server.url, repeated(prompts, pool.name, tokens, 4 * each), 1)
        soon = [load(server.url, repeated(prompts, pool.name, 4, SOON), 1) for _ in range(2)]
        routed, base = [], []
        for _ in range(1 if options.toy else 2):
            for model, found in ((pool.name, routed), ("base", base)):
                asked = repeated(prompts, model, tokens, CLIENTS * each)
                found.append(load(server.url, asked, CLIENTS))
        end = _ended(server, repeated(prompts, pool.name, tokens, CLIENTS))
    every: list[Load] = [alone, *soon, *routed, *base]
    return {
        "one": alone.tokens_per_second,
        "first": [one.first for one in soon],
        "routed": [one.tokens_per_second for one in routed],
        "base": [one.tokens_per_second for one in base],
        "experts": sorted({one.expert for found in routed for one in found.seen}),
        "failed": [failed for one in every for failed in one.failed],
        "end": end,
    }


def measure_change(pool: Path, options: Options, answers: Answers) -> dict[str, Any]:
    """A fifth expert is promoted by another process while four clients ask; every answer is held
    against the one that it gets alone."""
    tokens = answers.tokens
    with Server(pool, options, dtype="fp32") as server:
        stop, seen = threading.Event(), []

        def ask_on() -> None:
            number = 0
            while not stop.is_set():
                asked = answers.questions[number : number + 4]
                seen.extend(load(server.url, asked, 4).seen)
                number = (number + 4) % len(answers.questions)

        thread = threading.Thread(target=ask_on)
        thread.start()
        importing = import_fifth(pool, options)
        fifth, begun = Question("fifth", answers.fifth_prompt, tokens), time.time()
        # Not there yet: 404 until the server has picked up what the other process promoted.
        while (found := load(server.url, [fifth], 1).seen[0]).failed:
            if time.time() - begun > 600 or importing.poll():
                raise SystemExit(f"the new expert does not answer: {found.failed}")
            time.sleep(0.05)
        answered = time.time() - (found.seconds - found.first)
        importing.wait()
        stop.set()
        thread.join()
    seconds = answered - promoted_at(pool)
    wrong = [one for one in seen if not one.failed and one.text != answers.texts[one.question]]
    return {
        "seconds": seconds,
        "answers": len(seen),
        "failed": [one.failed for one in seen if one.failed],
        "wrong": [f"{one.question}: {one.text!r}" for one in wrong],
        "fifth": found.expert,
    }


def _ended(server: Server, asked: Sequence[Question]) -> dict[str, Any]:
    """SIGTERM while sixteen clients wait for their answers."""
    found: list[Load] = []
    thread = threading.Thread(target=lambda: found.append(load(server.url, asked, CLIENTS)))
    thread.start()
    # Whoever has not come in by then is rightly sent away.
    while len(found) == 0 and _taken(server) < CLIENTS:
        time.sleep(0.01)
    code = server.end()
    thread.join()
    return {"exit_code": code, "failed": found[0].failed, "answers": len(found[0].seen)}


def _taken(server: Server) -> int:
    """Requests that the engine has taken on and not finished."""
    now = httpx.get(f"{server.url}/v1/pool/now", timeout=60).json()
    return int(now["running"]) + int(now["waiting"])


def measure_plague(pool: Path, options: Options, count: int) -> dict[str, Any]:
    """The command of `hostile.py` against a server of its own."""
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        out, config = Path(made) / "hostile.json", Path(made) / "serve.yaml"
        # Answers are short, so that what is looked at is how it refuses and not how it waits.
        config.write_text(f"limits: {{max_tokens: {hostile.MUCH}}}\n", encoding="utf-8")
        server = stack.enter_context(Server(pool, options, config=config))
        script = Path(__file__).with_name("hostile.py")
        command = [sys.executable, str(script), server.url, "--pid", str(server.pid)]
        subprocess.run(
            [*command, "--requests", str(count), "--out", str(out)],
            check=False,
            stdout=subprocess.DEVNULL,
        )
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def rows(found: dict[str, Any]) -> list[Row]:
    """The scoreboard's rows."""
    made = []
    for kind in [one for one in KINDS if one in found]:
        speed = found[kind]
        gain = [each / speed["one"] for each in speed["routed"]]
        cost = [a / b for a, b in zip(speed["routed"], speed["base"], strict=True)]
        goal = 5.0 if kind == KINDS[0] else None
        made += [
            _row(gain, f"tokens per second, {CLIENTS} clients / one, {kind}", "at least", goal),
            _row(
                [a / b for a, b in zip(speed["first"], found["prefill"][kind], strict=True)],
                f"time to the first token, one client / the bare prefill, {kind}",
                "at most",
                1.3,
            ),
            _row(
                cost,
                f"tokens per second, routed over 4 experts / the base alone, {kind}",
                "at least",
                _GOALS[kind],
            ),
        ]
    speeds = [found[kind] for kind in KINDS if kind in found]
    change, ends = found["change"], [speed["end"] for speed in speeds]
    bad = len(change["failed"]) + len(change["wrong"])
    broken = [len(end["failed"]) + abs(int(end["exit_code"])) for end in ends]
    words = f"{change['answers']} answers"
    made += [
        _row([change["seconds"]], "seconds from promoted to answering, under load", "at most", 2.0),
        _row([bad], "failed or mixed-up answers meanwhile", "at most", 0.0, words),
        _row(broken, "answers broken off, and exit code, by SIGTERM under load", "at most", 0.0),
    ]
    if "plague" in found:
        plague = found["plague"]
        said = f"{plague['requests']} requests"
        made += [
            _row([len(plague["failed"])], "failures under hostile requests", "at most", 0.0, said),
            _row([plague["growth"]], "growth of memory under them", "at most", 0.1),
        ]
    return made


def _row(
    values: Sequence[float], measure: str, direction: Any, must: float | None, note: str = ""
) -> Row:
    low, high = min(values), max(values)
    return Row(measure, statistics.median(values), direction, must, must, low, high, note)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="a tiny random base")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default=None, help="of the base; the device's best by itself")
    parser.add_argument("--hostile", type=int, default=0, help="hostile requests besides")
    parser.add_argument("--out", type=Path, default=None, help="folder of the result file")
    given = parser.parse_args(argv)
    options = Options(toy=given.toy, device=given.device, dtype=given.dtype or "")
    found: dict[str, Any] = {"prefill": {}}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        base = pools_base(folder, options)
        kinds = KINDS[:1] if options.toy else KINDS
        for kind in kinds:
            pool, prompts = build(folder / f"pool-{kind}", base, kind, options)
            # Before and after: the machine is not the same all the time.
            prefill = [prefill_seconds(pool, prompts[:SOON], options)]
            found[kind] = measure_speed(pool, options, prompts)
            prefill.append(prefill_seconds(pool, prompts[:SOON], options))
            found["prefill"][kind] = prefill
            print(f"{kind}: {found[kind]}", flush=True)
        found["change"] = measure_change(pool, options, Answers.of(pool, options))
        print(f"change: {found['change']}", flush=True)
        if given.hostile:
            found["plague"] = measure_plague(pool, options, given.hostile)
    told = rows(found)
    say(told)
    result = {
        "benchmark": "serving",
        "title": "Serving under load",
        "compared": f"a pool with {EXPERTS} random experts of rank {workload.RANK} above the tap, "
        "prompts of four synthetic skills, greedy answers of 32 tokens, streamed; server and "
        "clients are processes of one machine; the bare prefill is the base's forward pass over "
        "the same prompts in a process alone; a change of the pool and its answers in fp32",
        "command": "python benchmarks/serving.py"
        + (f" --hostile {given.hostile}" if given.hostile else ""),
        "date": time.strftime("%Y-%m-%d"),
        "device": given.device,
        "machine": machine(given.device),
        "versions": versions(),
        "rows": [asdict(one) for one in told],
        "checks": [],
        "found": found,
    }
    if given.out is not None or not given.toy:
        target = (given.out or RESULTS) / "serving.json"
        text = json.dumps(result, indent=1, ensure_ascii=False, default=str)
        target.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
