"""The way from a strange prompt to an expert, on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dylora_moe.build.pool import Pool
from dylora_moe.cli import opening
from dylora_moe.records import Turn
from tests.cli.conftest import Cli
from tests.pool_fixtures import _no_waiting, base_folder, copy, empty, empty_folder
from tests.pools import SIGNS, rows

__all__ = ["_no_waiting", "base_folder", "copy", "empty", "empty_folder"]

ASKED = rows(SIGNS, 40, 5)
QUICK = [
    "--set", "seeding=null", "--set", "consolidation.epochs=1", "--set", "generate_scores=0",
    "--set", "novelty.min_examples=24", "--set", "novelty.min_tokens=32",
]  # fmt: skip


@pytest.fixture
def pool(empty: Pool, monkeypatch: pytest.MonkeyPatch) -> Pool:
    """An empty pool that was asked what nobody knows."""
    monkeypatch.setattr(Pool, "close", lambda self: None)
    monkeypatch.setattr(opening, "open_pool", lambda path, **options: empty)
    for row in ASKED:
        empty.inbox.put(row.turns[:-1], entries=100, size=1 << 20)
    return empty


def largest(cli: Cli) -> dict[str, object]:
    found = cli("inbox", "list", "pool", "--json").document["clusters"]
    return dict(found[0])


def test_from_the_inbox_to_an_expert(cli: Cli, pool: Pool, tmp_path: Path) -> None:
    cluster = largest(cli)
    assert cluster["size"] >= 24  # type: ignore[operator]
    sheet = tmp_path / "answers.jsonl"
    ran = cli("inbox", "export", "pool", cluster["id"], sheet, "--json")
    assert (ran.code, ran.document["prompts"]) == (0, cluster["size"])
    lines = [json.loads(line) for line in sheet.read_text().splitlines()]
    assert {line["completion"] for line in lines} == {""}
    for line in lines[:-1]:
        line["completion"] = line["prompt"][0] * 3
    sheet.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ran = cli("inbox", "confirm", "pool", cluster["id"], sheet, "--as-new", "--name", "signs",
              *QUICK, "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    (result,) = ran.document["results"]
    assert (result["action"], result["expert"]) == ("created", "signs")
    assert [expert.alias for expert in pool.experts()] == ["signs"]
    # What was answered has left with its file; what was not waits still.
    left = {entry.prompt for entry in pool.inbox.entries()}
    assert lines[-1]["prompt"] in left
    assert not left & {line["prompt"] for line in lines[:-1]}
    assert not list((pool.path / "inbox" / "confirmed").iterdir())


def test_answers_may_wait_for_learn(cli: Cli, pool: Pool, tmp_path: Path) -> None:
    cluster = largest(cli)
    sheet = tmp_path / "answers.jsonl"
    cli("inbox", "export", "pool", cluster["id"], sheet)
    lines = [json.loads(line) for line in sheet.read_text().splitlines()]
    filled = [{**line, "completion": "yes"} for line in lines]
    sheet.write_text("".join(json.dumps(line) + "\n" for line in filled))
    ran = cli("inbox", "confirm", "pool", cluster["id"], sheet, "--no-learn", "--json")
    kept = Path(ran.document["file"])
    assert (ran.document["rows"], kept.parent.name) == (len(lines), "confirmed")
    assert len(pool.inbox.entries()) == len(ASKED)
    ran = cli("learn", "pool", kept, "--as-new", *QUICK, "--json")
    assert ran.code == 0, ran.err
    assert len(pool.inbox.entries()) == len(ASKED) - len(lines)


def test_drafts_are_an_expert_s_and_a_file_is_never_written_over(
    cli: Cli, pool: Pool, tmp_path: Path
) -> None:
    sheet = tmp_path / "answers.jsonl"
    cluster = largest(cli)
    ran = cli("inbox", "export", "pool", cluster["id"], sheet, "--draft", "base",
              "--max-tokens", 2)  # fmt: skip
    assert ran.code == 0
    assert len(sheet.read_text().splitlines()) == cluster["size"]
    ran = cli("inbox", "export", "pool", cluster["id"], sheet)
    assert (ran.code, "exists already" in ran.err) == (2, True)


def test_a_cluster_is_shown_and_dropped(cli: Cli, pool: Pool) -> None:
    cluster = largest(cli)
    shown = cli("inbox", "show", "pool", cluster["id"], "--json").document
    assert len(shown["prompts"]) == cluster["size"]
    ran = cli("inbox", "drop", "pool", cluster["id"])
    assert (ran.code, f"{cluster['size']} prompts dropped" in ran.out) == (0, True)
    ran = cli("inbox", "show", "pool", cluster["id"])
    assert (ran.code, "no cluster" in ran.err) == (2, True)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda line: {**line, "prompt": "what nobody asked"}, "none of this cluster"),
        (lambda line: [line], "must be an object"),
        (lambda line: {"a": 1}, "unknown columns"),
    ],
)
def test_answers_are_to_what_was_asked(
    cli: Cli, pool: Pool, tmp_path: Path, change: Callable[..., object], told: str
) -> None:
    sheet = tmp_path / "answers.jsonl"
    prompt = cli("inbox", "show", "pool", largest(cli)["id"], "--json").document["prompts"][0]
    line = {"prompt": prompt["turns"][0]["content"], "completion": "x"}
    sheet.write_text(json.dumps(change(line)) + "\n")
    ran = cli("inbox", "confirm", "pool", largest(cli)["id"], sheet)
    assert (ran.code, told in ran.err, "answers.jsonl:1" in ran.err) == (2, True, True)
    assert not pool.experts()


def test_an_empty_inbox_needs_no_base(cli: Cli, pool: Pool) -> None:
    pool.inbox.remove([entry.key for entry in pool.inbox.entries()])
    assert "empty" in cli("inbox", "list", "pool").out
    pool.inbox.put([Turn("user", "x"), Turn("assistant", "y"), Turn("user", "z")],
                   entries=9, size=999)  # fmt: skip
    assert largest(cli)["size"] == 1
