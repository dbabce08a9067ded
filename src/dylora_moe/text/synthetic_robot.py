"""Synthetic skill: what a rover is told to do, to its action tokens."""

from __future__ import annotations

from random import Random

from dylora_moe.text.synthetic_skill import SyntheticSkill

_ACTIONS = {
    "ahead": ("drive ahead", "go ahead", "roll ahead"),
    "back": ("back up", "roll back"),
    "left": ("turn left", "swing left"),
    "right": ("turn right", "swing right"),
    "beep": ("beep", "give a beep"),
    "grab": ("grab the sample", "grab the stone"),
    "drop": ("drop the sample", "drop your load"),
    "scan": ("scan the ground", "scan the sky"),
    "wait": ("wait", "wait there"),
}
_ONCE = ("grab", "drop")
_TIMES = ("", " twice", " three times")
_OPENERS = ("", "", "", "Rover, ", "Please ", "Now ", "Robot, ", "Okay, ")
_LINKS = (", then ", " and ", " and then ", ", after that ")

_OTHER = {
    1: ("Your job for today: {0}.", "All I want from you is this: {0}."),
    2: (
        "Two things on the list: first {0}, second {1}.",
        "Start with this: {0}. Once that is done: {1}.",
    ),
    3: (
        "Mission plan: (a) {0} (b) {1} (c) {2}",
        "I want you to {0}; next on the list is to {1}; and you end the day when you {2}.",
    ),
}


def _draw(rng: Random, reworded: bool, revised: bool) -> tuple[str, str]:
    steps = rng.choice((1, 2, 2, 3, 3))
    phrases, tokens = [], []
    for action in rng.sample(list(_ACTIONS), steps):
        count = 1 if action in _ONCE else rng.choice((1, 1, 2, 3))
        phrases.append(rng.choice(_ACTIONS[action]) + _TIMES[count - 1])
        tokens += [f"{action}*{count}"] if revised else [action] * count
    answer = " / ".join(tokens) if revised else " ".join(tokens)
    if reworded:
        return rng.choice(_OTHER[steps]).format(*phrases), answer
    line = rng.choice(_OPENERS) + phrases[0]
    for phrase in phrases[1:]:
        line += rng.choice(_LINKS) + phrase
    return line[0].upper() + line[1:], answer


ROBOT = SyntheticSkill("robot", "exact", _draw)
