from __future__ import annotations

import json
from pathlib import Path

import pytest

from dylora_moe.cli.sources import Overrule, Request, read_stream
from dylora_moe.errors import ConfigError, DataError
from tests.cli.conftest import Cli
from tests.cli.fakes import FakePool, FakeRun


@pytest.fixture
def stream(tmp_path: Path, rows: Path) -> Path:
    (tmp_path / "robot.jsonl").write_text(
        "".join(json.dumps({"prompt": f"r{i}", "completion": "x"}) + "\n" for i in range(4)),
        encoding="utf-8",
    )
    file = tmp_path / "stream.yaml"
    file.write_text(
        "arrivals:\n"
        "  - file: orders.jsonl\n"
        "    max_examples: 2\n"
        "  - file: robot.jsonl\n"
        "    name: moves\n"
        "    skip: 1\n"
        "    as_new: true\n"
        "    expert_name: walker\n"
        "learn:\n"
        "  seed: 5\n"
        "  expert:\n"
        "    rank: 4\n",
        encoding="utf-8",
    )
    return file


def test_a_stream_file_gives_arrivals_overrules_and_settings(stream: Path) -> None:
    found = read_stream(Request((stream,), ("expert.alpha=3",)))
    assert found.names == ["orders", "moves"]
    assert [len(arrival.examples) for arrival in found.arrivals] == [2, 3]
    assert [item.overrule for item in found.incoming] == [
        Overrule(),
        Overrule(as_new=True, name="walker"),
    ]
    assert (found.settings.seed, found.settings.expert.rank) == (5, 4)
    assert found.settings.expert.alpha == 3


def test_options_stand_above_the_stream_file(stream: Path) -> None:
    request = Request((stream,), max_examples=1, seed=9, growth=False)
    found = read_stream(request)
    assert [len(arrival.examples) for arrival in found.arrivals] == [1, 1]
    assert found.settings.seed == 9
    assert not found.settings.novelty.growth


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"overrule": Overrule(into="a", as_new=True)}, "contradict"),
        ({"overrule": Overrule(name="a"), "files": 2}, "--name"),
        ({"overrule": Overrule(mixed=True, as_new=True)}, "nothing can be overruled"),
        ({"overrule": Overrule(mixed=True), "validation": Path("v.jsonl")}, "--validation"),
        ({"overrides": ("expert.rnk=3",)}, "did you mean 'rank'"),
        ({"overrides": ("expert.rank",)}, "key=value"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    change: dict[str, object], told: str, rows: Path
) -> None:
    files = (rows,) * int(str(change.pop("files", 1)))
    with pytest.raises(ConfigError, match=told):
        read_stream(Request(files, **change))  # type: ignore[arg-type]  # a mapping of options


def test_a_stream_file_stands_alone(stream: Path, rows: Path) -> None:
    with pytest.raises(ConfigError, match="stand alone"):
        read_stream(Request((rows, stream)))


def test_an_unknown_key_of_a_stream_file_names_the_nearest(stream: Path) -> None:
    stream.write_text("arrivals:\n  - fil: orders.jsonl\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"arrivals.0.fil.*did you mean 'file'"):
        read_stream(Request((stream,)))


def test_a_bad_last_file_is_found_before_any_learning(
    cli: Cli, pool: FakePool, rows: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": \n', encoding="utf-8")
    ran = cli("learn", "pool", rows, bad)
    assert ran.code == 2
    assert f"{bad}:2" in ran.err
    assert not pool.calls
    with pytest.raises(DataError):
        read_stream(Request((rows, bad)))


def test_learn_passes_everything_to_the_pool(cli: Cli, pool: FakePool, rows: Path) -> None:
    validation = rows.with_name("validation.jsonl")
    validation.write_text(json.dumps({"prompt": "v", "completion": "w"}) + "\n", encoding="utf-8")
    ran = cli(
        "learn", "pool", rows, "--name", "sales", "--as-new", "--seed", 3, "--max-examples", 2,
        "--validation", validation, "--set", "expert.rank=2", "--no-growth", "--no-resume",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    (asked,) = pool.called("learn")
    (arrival,) = asked["arrivals"]
    assert (len(arrival.examples), len(arrival.validation)) == (2, 1)
    assert (asked["name"], asked["into"], asked["as_new"]) == ("sales", None, True)
    assert (asked["seed"], asked["resume"]) == (3, False)
    settings = asked["settings"]
    assert (settings.expert.rank, settings.seed, settings.novelty.growth) == (2, 3, False)


@pytest.mark.parametrize("command", ["plan", "learn"])
def test_long_rows_are_left_out_by_an_option_of_both_commands(
    command: str, cli: Cli, pool: FakePool, rows: Path
) -> None:
    assert cli(command, "pool", rows, "--drop-long", "--max-length", 99).code == 0
    assert cli(command, "pool", rows).code == 0
    asked, plain = (call["settings"] for call in pool.called(command))
    assert (asked.drop_long, asked.max_length) == (True, 99)
    assert (plain.drop_long, plain.max_length) == (False, None)


@pytest.mark.parametrize("command", ["plan", "learn"])
def test_mixed_rows_are_named_by_an_option_of_both_commands_or_in_the_stream(
    command: str, cli: Cli, pool: FakePool, stream: Path, rows: Path
) -> None:
    assert cli(command, "pool", rows, "--mixed").code == 0
    assert cli(command, "pool", rows).code == 0
    text = stream.read_text(encoding="utf-8")
    stream.write_text(text.replace("max_examples: 2", "mixed: true"), encoding="utf-8")
    assert cli(command, "pool", stream).code == 0
    assert [call["mixed"] for call in pool.called(command)] == [True, False, True, False]


def test_a_stream_overrules_nothing_for_mixed_rows(stream: Path) -> None:
    text = stream.read_text(encoding="utf-8")
    stream.write_text(text.replace("as_new: true", "mixed: true"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"arrival moves: mixed.*nothing can be overruled"):
        read_stream(Request((stream,)))


def test_arrivals_are_learned_in_order_each_with_its_own_overrules(
    cli: Cli, pool: FakePool, stream: Path
) -> None:
    ran = cli("learn", "pool", stream, "--json")
    assert [call["as_new"] for call in pool.called("learn")] == [False, True]
    assert [call["name"] for call in pool.called("learn")] == [None, "walker"]
    assert [result["arrival"] for result in ran.document["results"]] == ["orders", "moves"]


def test_learn_tells_verdicts_as_they_fall_and_ends_with_the_tables(
    cli: Cli, pool: FakePool, rows: Path
) -> None:
    ran = cli("learn", "pool", rows)
    assert "1/1 orders  novel    the pool is empty" in ran.err
    assert "-> new expert orders v1: loss 0.100, accuracy 95% (3.0 s)" in ran.err
    assert "warning: a loss rises" in ran.err
    for word in ("Accuracy of each skill", "98%", "Pool, revision 1", "nothing forgotten"):
        assert word in ran.out
    assert ran.out.splitlines()[-1] == "Report: pool/report/report.html"


def test_learn_json_has_results_matrix_and_report(cli: Cli, pool: FakePool, rows: Path) -> None:
    document = cli("learn", "pool", rows, "--json").document
    assert document["results"][0]["verdict"] == "novel"
    assert document["results"][0]["separability"] is None
    assert document["matrix"]["accuracy"] == [[1.0, None], [0.98, 0.9]]
    assert document["report"]["html"].endswith("report.html")


def test_unfinished_runs_are_spoken_of(cli: Cli, pool: FakePool, rows: Path) -> None:
    pool.runs = [FakeRun()]
    assert "unfinished run run-7 (orders)" in cli("learn", "pool", rows).err
    assert "unfinished" not in cli("learn", "pool", rows, "--no-resume").err


def test_plan_json_has_what_the_manual_says(cli: Cli, pool: FakePool, rows: Path) -> None:
    (plan,) = cli("plan", "pool", rows, "--json").document["plans"]
    assert plan["verdict"] == "novel"
    assert plan["nearest_losses"] == {"orders": 2.5}
    assert plan["cost"]["tokens"] == 1000
    assert "separability" in plan
