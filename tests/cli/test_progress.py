from __future__ import annotations

import io

from rich.console import Console

from dylora_moe.cli.console import console_on
from dylora_moe.cli.progress import LINE_SECONDS, LineWatch, LiveWatch, watch_on
from dylora_moe.cli.wording import deed, duration, numbers, size
from dylora_moe.lifecycle.results import LearnResult
from tests.cli.fakes import KNOWN, NOVEL


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def lines_of(watch_time: float, steps: int) -> list[str]:
    clock, stream = Clock(), io.StringIO()
    watch = LineWatch(console_on(stream), ["orders"], clock)
    watch.stage("seeding", "orders")
    for done in range(1, steps + 1):
        clock.now += watch_time / steps
        watch.progress(done, steps, {"loss": 1 / done})
    return stream.getvalue().splitlines()


def test_without_a_terminal_progress_is_a_line_each_few_seconds() -> None:
    assert lines_of(watch_time=LINE_SECONDS - 1, steps=1000) == []
    lines = lines_of(watch_time=10 * LINE_SECONDS, steps=1000)
    assert 9 <= len(lines) <= 10


def test_a_line_says_the_stage_the_steps_and_the_time_left() -> None:
    (line, *_) = lines_of(watch_time=60.0, steps=60)
    assert line == "    seeding orders: 5/60  loss 0.2  55 s left"


def test_the_time_left_is_that_of_the_phase_at_hand() -> None:
    clock, stream = Clock(), io.StringIO()
    watch = LineWatch(console_on(stream), ["orders"], clock)
    watch.stage("training")
    for total, each in ((4, 100.0), (10, 6.0)):
        for done in range(total + 1):
            watch.progress(done, total, {})
            clock.now += each
    lines = stream.getvalue().splitlines()
    assert lines[3] == "    training: 4/4"
    assert lines[-2:] == ["    training: 9/10  6.0 s left", "    training: 10/10"]


def test_verdicts_are_never_held_back() -> None:
    stream = io.StringIO()
    watch = LineWatch(console_on(stream), ["orders", "robot"], Clock())
    watch.verdict("orders", NOVEL)
    watch.verdict("robot", KNOWN)
    assert stream.getvalue().splitlines() == [
        "1/2 orders  novel    the pool is empty",
        "2/2 robot   known    the same",
    ]


def test_a_terminal_gets_bars_and_keeps_the_verdicts() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, color_system=None)
    watch = watch_on(console, ["orders", "robot"])
    assert isinstance(watch, LiveWatch)
    with watch:
        watch.stage("seeding", "[orders]")
        watch.progress(1, 4, {"loss": 0.5})
        watch.verdict("orders", NOVEL)
        watch.result(
            LearnResult("orders", NOVEL, "created", "orders", 1, None, {}, 1, "run", 3.0, "why")
        )
        watch.warning("look")
        watch.note("said")
    told = stream.getvalue()
    for words in ("1/2 orders  novel", "new expert orders v1", "warning: look", "seeding [orders]"):
        assert words in told


def test_every_action_has_its_words() -> None:
    told = {
        action: deed(LearnResult("a", NOVEL, action, "orders", 2, None, {}, 1, "run", 1.0))
        for action in (
            "created", "new version", "covered", "statistics", "waiting", "rejected", "unchanged",
        )
    }  # fmt: skip
    assert told["new version"] == "new version orders v2"
    assert len(set(told.values())) == 7


def test_numbers_tell_the_losses_first() -> None:
    values = {"step": 3, "tokens_per_second": 512.4, "eval_own_loss": 0.25, "loss": 0.5, "a": "b"}
    assert numbers(values) == "loss 0.5  own loss 0.25  tokens/s 512.4"
    assert numbers({"rows": 3}) == "rows 3"
    assert numbers({}) == ""


def test_durations_and_sizes_read_well() -> None:
    assert [duration(s) for s in (0.44, 31.2, 245, 3725)] == ["0.4 s", "31 s", "4:05 min", "1:02 h"]
    assert [size(n) for n in (12, 98_100_000, 3e12)] == ["12 B", "98.1 MB", "3.0 TB"]
