"""The command line in this process, over a pool that is no pool."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dylora_moe.cli import main, opening, reporting
from dylora_moe.evaluation.matrix import Matrices
from dylora_moe.evaluation.summary import Summary
from tests.cli.fakes import FakePool


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Stdout as the one JSON document it must be."""
        return json.loads(self.out)


Cli = Callable[..., Ran]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    # Warnings stay errors within the tests.
    monkeypatch.setattr(main, "quiet_libraries", lambda: None)
    # Other tests listen to the package's log.
    monkeypatch.setattr(main, "tell_warnings", lambda: None)

    def run(*arguments: object) -> Ran:
        code = main.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePool:
    fake = FakePool(tmp_path / "pool")
    monkeypatch.setattr(opening, "open_pool", lambda path, **options: fake)
    monkeypatch.setattr(opening, "create_pool", lambda path, **options: fake)
    monkeypatch.setattr(reporting, "write", lambda pool: WRITTEN)
    return fake


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A data file with three rows."""
    file = tmp_path / "orders.jsonl"
    lines = [json.dumps({"prompt": f"p{i}", "completion": f"c{i}"}) for i in range(3)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


MATRICES = Matrices(
    rows=("orders", "robot"),
    columns=("orders", "robot"),
    accuracy=((1.0, None), (0.98, 0.9)),
    loss=((0.1, None), (0.1, 0.2)),
    learned_at=(0, 1),
    average_accuracy=0.94,
    backward_transfer=-0.02,
    forgetting=0.02,
    average_loss=0.15,
    accuracy_changes=(-0.02, None),
    loss_changes=(0.0, None),
)

SUMMARY = Summary(
    arrivals=2,
    grown=2,
    experts=2,
    skills=2,
    verdicts={"novel": 2},
    waiting=0,
    rejected=0,
    failed=0,
    average_accuracy=0.94,
    average_loss=0.15,
    backward_transfer=-0.02,
    forgetting=0.02,
    worst_change=-0.02,
    worst_skill="orders",
    worst_rise=0.0,
    worst_rise_skill="orders",
    forgotten=(),
    seconds=6.0,
    tokens=99,
    warnings=0,
    headline="2 arrivals, 2 experts grown, nothing forgotten",
)

WRITTEN = reporting.Written(
    MATRICES,
    SUMMARY,
    Path("pool/report/report.md"),
    Path("pool/report/report.html"),
    Path("pool/report/report.json"),
)
