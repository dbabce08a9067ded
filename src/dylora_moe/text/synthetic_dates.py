"""Synthetic skill: a sentence with a date in words, to the date in ISO 8601."""

from __future__ import annotations

from random import Random

from dylora_moe.text.synthetic_skill import SyntheticSkill

_MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July", "August", "September"),
    *("October", "November", "December"),
)
_SPELLINGS = ("the {th} of {month} {year}", "{day} {month} {year}", "{month} {day}, {year}")
_FIRST = (
    "Grandmother was born on {date}.",
    "The harbour froze over on {date}.",
    "They signed the lease on {date}.",
    "We got married on {date}, in the rain.",
    "The last tram ran on {date}.",
    "On {date} the old mill burned down.",
    "The museum opened its doors on {date}.",
    "Her passport expires on {date}.",
)
_OTHER = (
    "It was {year}. {month} had come, the {th} to be exact, and the geese were gone.",
    "Written in the margin: year {year}, {month}, day {day}.",
    "Year of the flood: {year}. Month: {month}. It crested on the {th}.",
    "Nobody forgets the {th} of that {month}, back in {year}.",
)


def _draw(rng: Random, reworded: bool, revised: bool) -> tuple[str, str]:
    month, day, year = rng.randint(1, 12), rng.randint(1, 28), rng.randint(1900, 2035)
    facts = {"day": day, "th": _ordinal(day), "month": _MONTHS[month - 1], "year": year}
    date = rng.choice(_SPELLINGS).format(**facts)
    prompt = rng.choice(_OTHER if reworded else _FIRST).format(date=date, **facts)
    answer = f"{day:02}.{month:02}.{year}" if revised else f"{year}-{month:02}-{day:02}"
    return prompt, answer


def _ordinal(day: int) -> str:
    ending = "th" if 10 <= day <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{ending}"


DATES = SyntheticSkill("dates", "exact", _draw)
