"""The harness writes what the arms measured, and refuses what cannot be compared here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import pytest
import run_all
from harness import Benchmark, Check, Options, Row, Samples

TOY = ["--toy", "--device", "cpu"]


def arm(seconds: float) -> Any:
    def run(options: Options) -> Mapping[str, Any]:
        return {"seconds": [seconds, seconds]}

    return run


def rows(samples: Samples) -> Sequence[Row]:
    return [samples.ratio("ours", "PEFT", "ours / PEFT", must=1.0, aim=0.5)]


def bench(difference: float = 0.0, peers: Sequence[str] = ()) -> Benchmark:
    return Benchmark(
        name="made_up",
        title="Made up",
        compared="two constants",
        arms={"ours": arm(0.5), "PEFT": arm(1.0)},
        rows=rows,
        checks=lambda options: [Check("the same", difference, 1e-3)],
        peers=peers,
    )


def exit_code(benchmark: Benchmark, *argv: str) -> Any:
    with pytest.raises(SystemExit) as left:
        harness.main(benchmark, [*TOY, *argv])
    return left.value.code


def test_a_result_holds_rows_checks_rounds_and_what_it_was_made_on(tmp_path: Path) -> None:
    assert exit_code(bench(), "--out", str(tmp_path)) == 0
    found = json.loads((tmp_path / "made_up.json").read_text("utf-8"))
    assert found["rows"] == [
        {"measure": "ours / PEFT", "value": 0.5, "direction": "at most", "must": 1.0, "aim": 0.5,
         "low": 0.5, "high": 0.5, "note": "", "interval": False}
    ]  # fmt: skip
    assert found["checks"][0]["holds"]
    assert found["rounds"] == [{"ours": {"seconds": [0.5, 0.5]}, "PEFT": {"seconds": [1.0, 1.0]}}]
    assert found["machine"]["processor"]
    assert found["versions"]["torch"]
    assert (tmp_path / "made_up.png").exists()


def test_a_check_that_does_not_hold_is_told_and_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(bench(difference=0.1), "--out", str(tmp_path)) == 1
    said = capsys.readouterr().out
    assert "WRONG: the same: off by 0.1, let through 0.001" in said
    assert "round" not in said, "an arm ran"
    assert not list(tmp_path.iterdir())


def test_the_command_names_every_option_that_is_not_the_default(tmp_path: Path) -> None:
    given = ["--dtype", "fp32", "--repeats", "3", "--warmup", "2"]
    assert exit_code(bench(), *given, "--out", str(tmp_path)) == 0
    found = json.loads((tmp_path / "made_up.json").read_text("utf-8"))
    assert found["command"] == "python benchmarks/made_up.py --toy --dtype fp32 --repeats 3"


def test_data_is_taken_and_named_only_where_rows_are_learned(tmp_path: Path) -> None:
    given = ["--data", "some/where", "--out", str(tmp_path)]
    assert exit_code(bench(), *given) == 2
    assert exit_code(replace(bench(), uses_data=True), *given) == 0
    found = json.loads((tmp_path / "made_up.json").read_text("utf-8"))
    assert found["command"].endswith("--data path/to/skills")
    assert "some/where" not in json.dumps(found)


def test_rows_are_taken_and_named_only_where_a_skill_is_learned(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path)]
    assert exit_code(bench(), "--rows", "64", *out) == 2
    learning = replace(bench(), compared="{rows} rows", defaults=Options(rows=192))
    for given, words, said in (([], "192 rows", ""), (["--rows", "64"], "64 rows", " --rows 64")):
        assert exit_code(learning, *given, *out) == 0
        found = json.loads((tmp_path / "made_up.json").read_text("utf-8"))
        assert found["command"] == f"python benchmarks/made_up.py --toy{said}"
        assert found["compared"] == words


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(toy=True, device="cuda", dtype="fp32", warmup=1, repeats=3),
        Options(data="some/where", rows=64),
    ],
)
def test_the_process_of_an_arm_gets_the_options_of_its_benchmark(options: Options) -> None:
    learning = replace(bench(), uses_data=True, defaults=Options(rows=192))
    one = learning if options.rows is not None else bench()
    told = harness._parser(one).parse_args(harness._as_arguments(options))
    assert harness._options(one, told) == options


def test_all_benchmarks_hand_data_and_rows_to_those_that_take_them() -> None:
    given = ["--rounds", "2", "--data", "there", "--rows", "256"]
    scripts = {path.stem: path for path in run_all.scripts()}
    assert run_all.arguments_of(scripts["learning"], given) == given
    assert run_all.arguments_of(scripts["training_step"], given) == ["--rounds", "2"]


def test_nan_is_no_agreement() -> None:
    assert not Check("the same", float("nan"), 1.0).holds


def test_a_toy_run_leaves_the_kept_results_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    assert exit_code(bench()) == 0
    assert not (tmp_path / "results").exists()


def test_an_absent_peer_is_named_and_nothing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(bench(peers=["no-such-peer"])) == harness.CANNOT_RUN
    said = capsys.readouterr()
    assert "made_up compares with no-such-peer" in said.err
    assert said.out == ""


def test_a_device_that_it_does_not_know_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(replace(bench(), devices=("cuda",))) == harness.CANNOT_RUN
    assert "runs on cuda only" in capsys.readouterr().err
