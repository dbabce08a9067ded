"""Laws of the screen that the engine asks of each prompt."""

from __future__ import annotations

import threading
from collections.abc import Callable

from dylora_moe.build.pool import Pool
from dylora_moe.lifecycle.answering import prompt_features
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.serving.engine.novelty import PromptScreen
from dylora_moe.serving.engine.requests import Request
from tests.pools import DIGITS, LETTERS, SIGNS, learn, rows
from tests.serving.engine.conftest import Turned


def strange(pool: Pool, alphabet: str, share: float = 0.1) -> list[bool]:
    screen = PromptScreen.of(pool.live, share)
    assert screen is not None
    return screen.strange(prompt_features(pool.live, [row.prompt for row in rows(alphabet, 40, 9)]))


def test_prompts_of_an_unseen_skill_are_strange_and_those_of_known_ones_are_not(
    taught: Pool,
) -> None:
    assert sum(strange(taught, SIGNS)) >= 36
    assert sum(strange(taught, LETTERS)) <= 8
    assert sum(strange(taught, DIGITS)) <= 8


def test_a_skill_that_is_learned_is_strange_no_longer(taught: Pool) -> None:
    learn(taught, "signs", rows(SIGNS, 64, 5))
    assert sum(strange(taught, SIGNS)) <= 8


def test_to_a_pool_without_skills_everything_is_strange(empty: Pool) -> None:
    assert all(strange(empty, LETTERS))


def test_what_it_says_of_a_prompt_depends_on_that_prompt_alone(taught: Pool) -> None:
    screen = PromptScreen.of(taught.live)
    assert screen is not None
    seen = prompt_features(taught.live, [*(row.prompt for row in rows(LETTERS, 6, 9)), "+-*/"])
    alone = [screen.strange(row[None])[0] for row in seen]
    assert screen.strange(seen) == alone


def test_an_engine_looks_at_no_prompt_until_the_screen_of_a_new_revision_is_made(
    taught: Pool, turned: Callable[..., Turned]
) -> None:
    may = threading.Event()
    may.set()

    def slow(live: LivePool) -> Callable[[], PromptScreen | None]:
        make = PromptScreen.making(live)
        return lambda: make() if may.wait(60) else None

    engine = turned(taught.path, screen_of=slow)
    prompts = [row.prompt for row in rows(SIGNS, 10, 9)]

    def novel() -> list[bool | None]:
        heard = engine.answers(*[Request(prompt, max_tokens=1) for prompt in prompts])
        return [one.end.provenance.novel for one in heard if one.end.provenance]

    assert novel().count(True) >= 8
    may.clear()
    learn(taught, "signs", rows(SIGNS, 64, 5))
    engine.turn()
    assert novel() == [None] * 10, "it neither waits nor goes by the screen before"
    may.set()
    coming = engine.loop._coming
    assert coming is not None
    coming.exception(60)
    engine.turn()
    assert novel().count(False) >= 7
    assert "error" not in [note.kind for note in engine.notes]


def test_a_screen_that_cannot_be_made_costs_no_answer(
    taught: Pool, turned: Callable[..., Turned]
) -> None:
    def broken(live: LivePool) -> Callable[[], PromptScreen | None]:
        return lambda: 1 / 0  # type: ignore[return-value]

    engine = turned(taught.path, screen_of=broken)
    (heard,) = engine.answers(Request("+-*/", max_tokens=1))
    assert [note.kind for note in engine.notes] == ["loaded", "error"]
    assert heard.end.provenance is not None
    assert heard.end.provenance.novel is None


def test_skills_of_single_rows_draw_no_line(empty: Pool) -> None:
    live = empty.live
    live.library.add_skill("one", prompt_features(live, ["abc"]), "expert_1")
    assert PromptScreen.of(live) is None
