"""The pools that the serving benchmark asks, their servers, and what their answers should be.

Knows pools and processes; measures nothing but a bare prefill.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import torch
import workload
from harness import Options
from load import Question

from dylora_moe.build.pool import Pool
from dylora_moe.experts.manager import ExpertManager
from dylora_moe.foundation.base import DEFAULT_BASE, load_base
from dylora_moe.text.synthetic import SKILLS, generate
from dylora_moe.text.template import encode_prompt

EXPERTS = 4
FIFTH = "fifth"
_DYLORA = "from dylora_moe.cli.main import run; run()"


def pools_base(folder: Path, options: Options) -> str:
    """The base of the pools, as `Pool.create` takes it."""
    return str(workload.save_toy(folder / "base")) if options.toy else DEFAULT_BASE


def build(path: Path, base: str, kind: str, options: Options) -> tuple[Path, list[str]]:
    """A pool with random experts of these targets, each with a synthetic skill's prompts; and a
    mixture of those. In a process that leaves nothing in this one."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
        return path, other.submit(_build, path, base, kind, options).result()


def _build(path: Path, base: str, kind: str, options: Options) -> list[str]:
    adapters = path.with_name(f"{path.name}-adapters")
    _save_random(adapters, base, kind, EXPERTS + 1, options)
    names = list(SKILLS)[:EXPERTS]
    count = 16 if options.toy else 48
    asked: list[list[str]] = []
    with Pool.create(path, base, own_prompts=32, **_place(options)) as pool:
        for number, name in enumerate(names):
            prompts = [row.prompt for row in generate(name, count)]
            pool.import_expert(adapters / str(number), name, prompts)
            asked.append(prompts)
    mixed = [prompt for some in zip(*asked, strict=True) for prompt in some]
    (path / "asked.json").write_text(json.dumps(mixed), encoding="utf-8")
    return mixed


def _save_random(folder: Path, base: str, kind: str, count: int, options: Options) -> None:
    loaded = load_base(base, **_place(options))
    manager = ExpertManager(loaded.model, loaded.anatomy, base_name=loaded.name)
    generator = torch.Generator().manual_seed(1)
    for number in range(count):
        manager.create_expert("expert_made", rank=workload.RANK, targets=kind)
        workload.randomize(manager.parameters_of("expert_made").values(), generator)
        manager.save("expert_made", folder / str(number))
        manager.remove("expert_made")


def import_fifth(pool: Path, options: Options) -> subprocess.Popen[str]:
    """Begins to bring a fifth expert in by the command, in another process."""
    prompts = pool / "fifth.txt"
    asked = json.loads((pool / "asked.json").read_text(encoding="utf-8"))
    prompts.write_text("\n".join(one[::-1] for one in asked[:32]), encoding="utf-8")
    adapters = pool.with_name(f"{pool.name}-adapters")
    named = (adapters / str(EXPERTS)).rename(adapters / FIFTH)
    command = ["experts", "import", str(pool), str(named), "--prompts", str(prompts)]
    return _start([*command, "--dtype", "fp32", "--device", options.device])


def promoted_at(pool: Path) -> float:
    """When the pool became what it is, in seconds of the epoch."""
    with Pool.open(pool) as opened:
        return datetime.fromisoformat(opened.revision.created_at).timestamp()


@dataclass(frozen=True)
class Answers:
    """What each question is answered alone, in fp32.

    Attributes:
        texts: by question, for those with an expert of their own and those that are routed.
        fifth_prompt: what the fifth expert is asked.
        tokens: of each answer, at most.
    """

    texts: Mapping[Question, str]
    fifth_prompt: str
    tokens: int

    @property
    def questions(self) -> list[Question]:
        return list(self.texts)

    @classmethod
    def of(cls, pool: Path, options: Options) -> Answers:
        """In a process that leaves nothing in this one."""
        tokens = 8 if options.toy else 16
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
            texts = other.submit(_answered, pool, tokens, options).result()
        return cls(texts, next(iter(texts)).prompt[::-1], tokens)


def _answered(path: Path, tokens: int, options: Options) -> dict[Question, str]:
    asked = json.loads((path / "asked.json").read_text(encoding="utf-8"))[:16]
    found = {}
    with Pool.open(path, device=options.device, dtype="fp32") as pool:
        # Pinned: which prompts a fifth expert draws away is the router's business, not a mix-up.
        names = [*(version.alias for version in pool.experts()), "base"]
        for number, prompt in enumerate(asked):
            name = names[number % len(names)]
            answer = pool.generate(prompt, expert=name, max_new_tokens=tokens)
            found[Question(name, prompt, tokens)] = answer.text
    return found


def prefill_seconds(pool: Path, prompts: Sequence[str], options: Options) -> float:
    """Median seconds of the base's own pass over a prompt, in a process alone."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
        return other.submit(_prefill, pool, list(prompts), options).result()


def _prefill(path: Path, prompts: list[str], options: Options) -> float:
    seconds = []
    with Pool.open(path, **_place(options)) as pool:
        live = pool.live
        model = workload.load_stock(options, str(live.base.dtype).removeprefix("torch.")).model
        for prompt in [*prompts[:2], *prompts]:
            ids = torch.tensor([encode_prompt(prompt, live.base.tokenizer, live.fmt)])
            start = time.perf_counter()
            with torch.no_grad():
                model(input_ids=ids.to(model.device), use_cache=True, logits_to_keep=1)
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])


class Server:
    """`dylora serve` in a process of its own, ready when entered.

    Attributes:
        url: where it listens.
        pid: of the process.
    """

    def __init__(
        self, pool: Path, options: Options, dtype: str = "", config: Path | None = None
    ) -> None:
        kind = dtype or options.dtype
        # For whoever measures what changes the pool; inherited by both processes.
        os.environ.setdefault("DYLORA_ADMIN_KEY", secrets.token_hex(32))
        command = ["serve", str(pool), "--port", "0", "--device", options.device]
        self._command = command + (["--dtype", kind] if kind else [])
        self._command += ["--config", str(config)] if config is not None else []

    def __enter__(self) -> Server:
        self._process = _start(self._command)
        self.pid = self._process.pid
        assert self._process.stdout is not None
        self.url = ""
        for line in self._process.stdout:
            if found := re.search(r"http://[\d.]+:\d+", line):
                self.url = found[0]
                break
        if not self.url:
            raise SystemExit("the server did not begin")
        while httpx.get(f"{self.url}/ready").status_code != 200:
            if self._process.poll() is not None:
                raise SystemExit("the server ended before it was ready")
            time.sleep(0.1)
        return self

    def end(self) -> int:
        """SIGTERM; the exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(120)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
        if self._process.stdout is not None:
            self._process.stdout.close()


def _place(options: Options) -> dict[str, Any]:
    return {"device": options.device, "dtype": options.dtype or None}


def _start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _DYLORA, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
