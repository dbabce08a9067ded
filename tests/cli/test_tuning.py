"""`dylora tune`: a search on a tiny base, what it prints, and what it leaves."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Cli, Ran
from tests.evaluation.continual.made_up import write_rows
from tests.pool_fixtures import base_folder
from tests.pools import DIGITS, LETTERS, rows

__all__ = ["base_folder"]


@pytest.fixture
def search(cli: Cli, base_folder: Path, tmp_path: Path) -> Cli:
    files = []
    for seed, (name, alphabet) in enumerate({"letters": LETTERS, "digits": DIGITS}.items()):
        files.append(tmp_path / f"{name}.jsonl")
        write_rows(files[-1], rows(alphabet, 128, seed + 1))

    def run(*more: object) -> Ran:
        return cli(
            "tune", *files, "--out", tmp_path / "out", "--base", base_folder, "--tap", 2,
            "--device", "cpu", "--dtype", "fp32", "--set", "consolidation.batch_size=16",
            "--set", "consolidation.learning_rate=0.0001", *more,
        )  # fmt: skip

    return run


def test_a_search_is_told_and_leaves_what_learn_takes(search: Cli, tmp_path: Path) -> None:
    key = "consolidation.learning_rate"
    ran = search("--trials", 4, "--search", key, "--json")
    assert ran.code == 0, ran.err
    told = ran.document
    assert len(told["trials"]) == 4
    assert ran.err.count("\ntrial ") == 4
    learn = yaml.safe_load((tmp_path / "out" / "learn.yaml").read_text())["learn"]
    assert f"{key}={learn['consolidation']['learning_rate']}" in told["set"]
    assert learn["consolidation"]["batch_size"] == 16


def test_a_table_for_people(search: Cli) -> None:
    ran = search("--trials", 2)
    assert ran.code == 0, ran.err
    assert "Trials, the best first" in ran.out
    assert "learn.yaml" in ran.out


def test_a_search_for_the_rank_shows_the_curve_and_suggests_one(search: Cli) -> None:
    arguments = ("--trials", 2, "--search", "expert.rank", "--set", "consolidation.epochs=1")
    told = search(*arguments, "--json").document["ranks"]
    assert [one["rank"] for one in told["points"]] == [2, 8]
    assert told["suggested"] in (2, 8)
    ran = search(*arguments)
    assert ran.code == 0, ran.err
    assert "Rank against quality" in ran.out
    assert f"suggested rank: {told['suggested']}" in ran.out


def test_without_optuna_the_extra_is_named(search: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    ran = search()
    assert ran.code == 2
    assert 'pip install "dylora-moe[tune]"' in ran.err


def test_rows_of_several_skills_are_refused(cli: Cli, tmp_path: Path) -> None:
    write_rows(tmp_path / "all.jsonl", rows(LETTERS, 64, 1))
    stream = tmp_path / "stream.yaml"
    stream.write_text("arrivals:\n- file: all.jsonl\n  mixed: true\n")
    ran = cli("tune", stream, "--out", tmp_path / "out")
    assert ran.code == 2
    assert "give a file for each skill" in ran.err


def test_a_key_that_is_not_searched(search: Cli) -> None:
    ran = search("--search", "expert.rnak")
    assert ran.code == 2
    assert "did you mean 'expert.rank'?" in ran.err
