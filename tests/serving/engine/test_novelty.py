"""Laws of the screen that the engine asks of each prompt."""

from __future__ import annotations

from dylora_moe.build.pool import Pool
from dylora_moe.lifecycle.answering import prompt_features
from dylora_moe.serving.engine.novelty import PromptScreen
from tests.pools import DIGITS, LETTERS, SIGNS, learn, rows


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


def test_skills_of_single_rows_draw_no_line(empty: Pool) -> None:
    live = empty.live
    live.library.add_skill("one", prompt_features(live, ["abc"]), "expert_1")
    assert PromptScreen.of(live) is None
