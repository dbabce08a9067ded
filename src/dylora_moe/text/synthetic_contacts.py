"""Synthetic skill: who sits where and on which extension, to a record of fixed form."""

from __future__ import annotations

from random import Random

from dylora_moe.text.synthetic_skill import SyntheticSkill

_FIRST_NAMES = (
    *("Anna", "Bela", "Clara", "David", "Elif", "Frank", "Greta", "Hugo", "Irene", "Jonas"),
    *("Karin", "Luca", "Maria", "Nils", "Olga", "Pedro", "Rosa", "Sven", "Tara", "Viktor"),
)
_LAST_NAMES = (
    *("Berg", "Costa", "Doyle", "Evans", "Fischer", "Garcia", "Hansen", "Ivanov", "Jensen"),
    *("Keller", "Larsen", "Moreau", "Novak", "Olsen", "Peters", "Quinn", "Rossi", "Silva"),
    *("Turner", "Weber", "Young", "Ziegler", "Brandt", "Dubois", "Murphy", "Schmidt"),
)
_TEAMS = (
    *("purchasing", "payroll", "legal", "security", "marketing", "research", "support", "sales"),
    *("logistics", "training"),
)
_OFFICES = (
    *("Vienna", "Boston", "Nairobi", "Kyoto", "Madrid", "Toronto", "Dublin", "Cairo", "Prague"),
    *("Sydney", "Bogota", "Geneva", "Mumbai", "Denver"),
)

_FIRST = (
    "Reach {first} {last} from {team} at our {office} office, extension {line}.",
    "{first} {last} ({team}, {office}) picks up on {line}.",
    "For anything about {team} call {first} {last} in {office}, ext. {line}.",
    "New colleague: {first} {last}, {team}, sits in {office}, phone {line}.",
    "You will find {first} {last} of {team} in {office}, on extension {line}.",
    "My name is {first} {last}, I run {team} in {office}, my number is {line}.",
    "Ask {first} {last}, our {team} person in {office}; dial {line}.",
)
_OTHER = (
    "In {office} the desk phone {line} rings at {team}, where {first} {last} works.",
    "Whoever dials {line} in {office} is greeted by {first} {last}, the voice of {team}.",
    "The {team} desk has moved to {office}: {line} now belongs to {first} {last}.",
    "Missed call from {line}: that was {first} {last}, {office} branch, about {team}.",
    "Since spring {office} has somebody for {team}, namely {first} {last}, reachable by {line}.",
)


def _draw(rng: Random, reworded: bool, revised: bool) -> tuple[str, str]:
    facts = {
        "first": rng.choice(_FIRST_NAMES),
        "last": rng.choice(_LAST_NAMES),
        "team": rng.choice(_TEAMS),
        "office": rng.choice(_OFFICES),
        "line": str(rng.randint(1000, 9999)),
    }
    answer = "[{line}] {office}/{team}: {first} {last}" if revised else _RECORD
    return rng.choice(_OTHER if reworded else _FIRST).format(**facts), answer.format(**facts)


_RECORD = "{last}, {first} | {team} | {office} | {line}"

CONTACTS = SyntheticSkill("contacts", "exact", _draw)
