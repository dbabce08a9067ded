"""Which colour is whose: an expert looks the same in every figure of a report."""

from __future__ import annotations

from dylora_moe.evaluation.figures.style import CYCLE, expert_colour, light
from dylora_moe.evaluation.figures.timelines import Line
from dylora_moe.evaluation.history import History
from dylora_moe.evaluation.traffic import usage_after
from dylora_moe.records import BASE_NAME


def expert_places(history: History) -> dict[str, int]:
    """Experts by alias with their place in the pool, which gives the colour; those that are gone
    follow, and `base` is last if it ever had a row."""
    names: dict[str, None] = {expert.alias: None for expert in history.experts}
    for i in range(len(history.steps)):
        names.update((name, None) for name in usage_after(history, i))
    had_none = names.pop(BASE_NAME, False) is None
    places = {name: place for place, name in enumerate(names)}
    return {**places, BASE_NAME: len(places)} if had_none else places


def expert_line(history: History, key: str, expert: str) -> Line:
    """The line of a logged key that is about one expert (by id or alias)."""
    alias = history.alias(expert)
    if alias == BASE_NAME:
        return Line(key, "none (base)", light("grey"), ":")
    place = expert_places(history).get(alias, 0)
    return Line(key, alias, expert_colour(place), "-" if place < len(CYCLE) else "--")
