"""`dylora bench continual`: the whole of it on skills that a tiny base learns in no time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from dylora_moe.evaluation.continual import arms as catalogue
from dylora_moe.evaluation.continual import document
from dylora_moe.evaluation.continual.arms.ours import Ours
from dylora_moe.evaluation.continual.checks import Check
from dylora_moe.evaluation.continual.presets import PRESETS
from dylora_moe.evaluation.continual.replay import DETECTORS
from tests.cli.conftest import Cli, Ran
from tests.evaluation.continual.made_up import write_rows
from tests.pool_fixtures import _no_waiting, base_folder
from tests.pools import DIGITS, LETTERS, SIGNS, rows

__all__ = ["_no_waiting", "base_folder"]

TOY = (
    "--rows", 32, "--batch", 32, "--test-rows", 4, "--device", "cpu", "--dtype", "fp32",
    "--own-prompts", 32,
    "--set", "consolidation.epochs=4", "--set", "consolidation.learning_rate=0.02",
    "--set", "novelty.min_examples=24", "--set", "novelty.min_tokens=32",
    "--set", "novelty.min_cluster=24", "--set", "novelty.alike=0.3",
    "--set", "novelty.strange_share=0.1",
    "--set", "generate_scores=1", "--set", "expert.rank=4",
)  # fmt: skip


@pytest.fixture
def skills(tmp_path: Path) -> Path:
    """Three skills with the rows of two visits each."""
    folder = tmp_path / "skills"
    alphabets = {"letters": LETTERS, "digits": DIGITS, "signs": SIGNS}
    for seed, (name, alphabet) in enumerate(alphabets.items()):
        made = rows(alphabet, 80, seed, answer=lambda _, first=name[0]: first * 2)
        write_rows(folder / name / "train.jsonl", made[8:])
        write_rows(folder / name / "test.jsonl", made[:8])
    return folder


@pytest.fixture
def bench(cli: Cli, skills: Path, base_folder: Path, tmp_path: Path) -> Cli:
    def run(*more: object, size: Sequence[object] = TOY) -> Ran:
        return cli(
            "bench", "continual", "--data", skills, "--out", tmp_path / "out",
            "--base", base_folder, *size, *more,
        )  # fmt: skip

    return run


def test_the_whole_preset_runs_is_told_and_is_not_run_again(bench: Cli, tmp_path: Path) -> None:
    first = bench("--json")
    assert first.code == 0, first.err
    told = first.document
    assert [Path(path).name for path in told["files"]][:3] == ["cpu.json", "cpu.md", "cpu.png"]
    body = json.loads((tmp_path / "out" / "cpu.json").read_text(encoding="utf-8"))
    assert body["settings"]["skills"] == ["digits", "letters", "signs"]
    ran = {(one["stream"], one["arm"]) for one in body["arms"]}
    assert ran == {(stream, arm) for stream, arms in PRESETS["cpu"].arms.items() for arm in arms}
    accuracy = {
        one["arm"]: one["accuracy"]["value"] for one in body["arms"] if one["stream"] == "hard"
    }
    replayed = {(one["stream"], one["detector"]) for one in body["detectors"]}
    assert {stream for stream, _ in replayed} == {"returning", "hard", "blurred"}
    assert len(replayed) == 3 * len(DETECTORS)
    assert body["unseen"]["without templates"]["learned"] == 2
    assert "AUROC for single inputs of unseen skills" in [one["measure"] for one in body["rows"]]
    assert accuracy["shuffled"] < accuracy["oracle-bank"]
    assert first.err.count(" done in ") == len(ran) - 1
    second = bench()
    assert second.code == 0
    assert second.err.count("is there") == len(ran) + 1
    assert " done in " not in second.err
    assert "oracle-bank" in second.out
    assert "cpu.md" in second.out


def test_an_interruption_keeps_what_is_done(
    bench: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Broken(Ours):
        def run(self, setting: object) -> None:  # type: ignore[override]
            raise KeyboardInterrupt

    chosen = (
        "--no-detectors",
        "--arms",
        "base,ours",
        "--streams",
        "hard",
        "--results",
        tmp_path / "summary",
    )
    with monkeypatch.context() as patched:
        patched.setattr(catalogue, "ARMS", {**catalogue.ARMS, "ours": Broken()})
        stopped = bench(*chosen)
    assert stopped.code == 130
    assert "what is done is kept" in stopped.err
    assert not (tmp_path / "summary").exists()
    again = bench(*chosen)
    assert again.code == 0
    assert again.err.count("is there") == again.err.count(" done in ") == 1
    assert (tmp_path / "summary" / "cpu.json").exists()
    assert "--arms base,ours" in (tmp_path / "summary" / "cpu.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--preset", "tpu"), "no preset 'tpu'; choose cpu, gpu, full"),
        (("--arms", "our"), "no arm 'our'"),
        (("--streams", "soft"), "no stream 'soft'; choose"),
        (("--skills", "letters,hats"), "no skill 'hats'"),
        (("--rows", 4000), "rows that can be used, 4000 wanted"),
        (("--set", "expert.rnk=2"), "expert.rnk"),
        (("--set", "seed=5"), "give --seed 5 instead"),
        (("--data", "nowhere"), "nowhere: no such folder"),
    ],
)
def test_what_is_wrong_is_one_clear_line(
    bench: Cli, more: tuple[object, ...], words: str, tmp_path: Path
) -> None:
    failed = bench(*more)
    assert failed.code == 2
    assert words in failed.err
    assert len(failed.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_check_that_fails_ends_the_command_with_an_error_behind_the_results(
    bench: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(document, "checks", lambda _: (Check("it", 1.0, 0.5, False),))
    ran = bench("--no-detectors", "--arms", "base", "--streams", "hard")
    assert ran.code == 1
    assert "wrong: it: 1, 0.5 at most" in ran.err
    body = json.loads((tmp_path / "out" / "cpu.json").read_text(encoding="utf-8"))
    assert body["checks"] == [{"what": "it", "difference": 1.0, "tolerance": 0.5, "holds": False}]
