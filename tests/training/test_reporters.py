from __future__ import annotations

import builtins
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dylora_moe.errors import MissingExtraError
from dylora_moe.training.reporters import JsonlReporter, Reporters, histogram
from dylora_moe.training.tensorboard import TensorBoardReporter
from dylora_moe.training.wandb import WandbReporter
from tests.training.setting import Memory

VALUES = {"phase": "seeding", "loss": 1.5, "lengths": [1.0, 2.0, 9.0], "warning": "look"}


def test_each_log_is_one_line_of_json(tmp_path: Path) -> None:
    reporter = JsonlReporter(tmp_path / "run", clock=lambda: 7.0)
    reporter.log({**VALUES, "bad": float("nan")}, 3)
    reporter.log({"warning": "late"})
    reporter.close()
    reporter.close()
    again = JsonlReporter(tmp_path / "run", clock=lambda: 8.0)
    again.log({"loss": 1.0}, 4)
    again.close()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    first, second, third = (json.loads(line) for line in lines)
    assert first == {"time": 7.0, "step": 3, **VALUES, "bad": None}
    assert second == {"time": 7.0, "warning": "late"}
    assert third["step"] == 4


def test_everything_goes_to_everyone_and_all_are_closed() -> None:
    class Broken(Memory):
        def close(self) -> None:
            raise OSError("gone")

    a, b = Memory(), Memory()
    reporters = Reporters([a, Broken(), b])
    reporters.log(VALUES, 1)
    with pytest.raises(OSError, match="gone"):
        reporters.close()
    assert a.logs == b.logs == [(VALUES, 1)]
    assert a.closed
    assert b.closed


def test_a_histogram_counts_every_value_once() -> None:
    made = histogram([1.0, 1.0, 2.0, 5.0], bins=4)
    assert made["counts"] == [2, 1, 0, 1]
    assert made["edges"] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert sum(histogram([3.0, 3.0])["counts"]) == 2
    assert histogram([]) == {"counts": [], "edges": []}


def test_tensorboard_gets_numbers_histograms_and_texts(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reporter = TensorBoardReporter(tmp_path, "run1")
    reporter.log(VALUES, 2)
    reporter.log({"packed": histogram([4.0, 5.0])}, 3)
    reporter.close()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "run1"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(2, 1.5)]
    assert set(events.Tags()["histograms"]) == {"lengths", "packed"}
    assert sum(events.Histograms("lengths")[0].histogram_value.bucket) == 3


def test_wandb_gets_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[dict[str, Any], int | None]] = []
    started: dict[str, Any] = {}
    finished: list[bool] = []
    run = SimpleNamespace(
        log=lambda row, step: logged.append((row, step)), finish=lambda: finished.append(True)
    )

    def init(**arguments: Any) -> Any:
        started.update(arguments)
        return run

    fake = SimpleNamespace(init=init, Histogram=lambda np_histogram: ("histogram", np_histogram))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    reporter = WandbReporter(tmp_path, "run1", mode="offline")
    reporter.log(VALUES, 2)
    reporter.close()
    assert started["mode"] == "offline"
    assert started["id"] == "run1"
    ((row, step),) = logged
    assert (row["loss"], row["phase"], step) == (1.5, "seeding", 2)
    assert row["lengths"][0] == "histogram"
    assert finished == [True]


@pytest.mark.parametrize(
    ("package", "make", "extra"),
    [
        ("wandb", WandbReporter, "wandb"),
        ("torch.utils.tensorboard", TensorBoardReporter, "tensorboard"),
    ],
)
def test_a_missing_extra_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, make: Any, extra: str
) -> None:
    original = builtins.__import__

    def importing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == package:
            raise ImportError(f"No module named {name!r}", name=name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", importing)
    monkeypatch.delitem(sys.modules, package, raising=False)
    with pytest.raises(MissingExtraError, match=rf'pip install "dylora-moe\[{extra}\]"'):
        make(tmp_path)
