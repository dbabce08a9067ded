"""Synthetic skill: a question over named columns, to a small query language."""

from __future__ import annotations

from random import Random

from dylora_moe.text.synthetic_skill import SyntheticSkill

# things: (column of their name, number columns with their range, word columns with values)
_Table = tuple[str, dict[str, tuple[int, int]], dict[str, tuple[str, ...]]]
_TABLES: dict[str, _Table] = {
    "ships": (
        "ship",
        {"year": (1880, 1970), "tonnage": (200, 9000)},
        {"flag": ("Norway", "Greece", "Japan"), "fate": ("sunk", "scrapped", "museum")},
    ),
    "lakes": (
        "lake",
        {"depth": (10, 900), "area": (20, 5000)},
        {"country": ("Finland", "Chile", "Canada"), "water": ("fresh", "salt")},
    ),
    "films": (
        "film",
        {"year": (1930, 2020), "minutes": (70, 200)},
        {"genre": ("western", "comedy", "thriller"), "language": ("French", "Hindi")},
    ),
    "bridges": (
        "bridge",
        {"length": (50, 3000), "opened": (1800, 2015)},
        {"type": ("arch", "cable", "truss"), "river": ("Danube", "Rhine", "Volga")},
    ),
    "players": (
        "player",
        {"goals": (1, 90), "age": (17, 40)},
        {"position": ("keeper", "striker", "defender"), "club": ("Ajax", "Porto", "Celtic")},
    ),
    "castles": (
        "castle",
        {"built": (900, 1700), "towers": (1, 12)},
        {"state": ("ruin", "intact", "rebuilt"), "region": ("Wales", "Bavaria", "Tuscany")},
    ),
    "planes": (
        "plane",
        {"seats": (2, 500), "range": (300, 15000)},
        {"maker": ("Airbus", "Boeing", "Fokker"), "engine": ("jet", "propeller")},
    ),
    "orchids": (
        "orchid",
        {"height": (5, 120), "price": (4, 90)},
        {"color": ("white", "purple", "yellow"), "origin": ("Peru", "Thailand", "Kenya")},
    ),
}

# (question, in other words, answer, answer revised to SQL)
_SHAPES = (
    (
        ("Which {things} have {number} above {n}?", "Show the {things} with {number} over {n}."),
        ("I am after {things}, but {number} has to exceed {n}.",),
        "find {name} where {number} > {n}",
        "SELECT {name} FROM {things} WHERE {number} > {n}",
    ),
    (
        ("Which {things} have {number} below {n}?", "Show the {things} with {number} under {n}."),
        ("I am after {things}, but {number} may not reach {n}.",),
        "find {name} where {number} < {n}",
        "SELECT {name} FROM {things} WHERE {number} < {n}",
    ),
    (
        ("Which {things} have the {word} {value}?", "List the {things} whose {word} is {value}."),
        ("As {word} goes, only {value} will do; what {things} are left?",),
        "find {name} where {word} = {value}",
        "SELECT {name} FROM {things} WHERE {word} = '{value}'",
    ),
    (
        ("How many {things} have the {word} {value}?", "Count the {things} with {word} {value}."),
        ("Give me a figure: {things} for which {word} says {value}.",),
        "count where {word} = {value}",
        "SELECT COUNT(*) FROM {things} WHERE {word} = '{value}'",
    ),
    (
        ("What are the {k} {things} with the highest {number}?", "Top {k} {things} by {number}?"),
        ("Rank {things} by {number}, largest first, and stop after {k}.",),
        "find {name} top {k} by {number}",
        "SELECT {name} FROM {things} ORDER BY {number} DESC LIMIT {k}",
    ),
    (
        ("Which {things} with {word} {value} have {number} above {n}?",),
        ("Given {value} as {word}, in what {things} does {number} exceed {n}?",),
        "find {name} where {word} = {value} and {number} > {n}",
        "SELECT {name} FROM {things} WHERE {word} = '{value}' AND {number} > {n}",
    ),
)


def _draw(rng: Random, reworded: bool, revised: bool) -> tuple[str, str]:
    things = rng.choice(list(_TABLES))
    name, numbers, words = _TABLES[things]
    number, word = rng.choice(list(numbers)), rng.choice(list(words))
    questions, other, answer, sql = rng.choice(_SHAPES)
    facts = {
        "things": things,
        "name": name,
        "number": number,
        "n": rng.randint(*numbers[number]),
        "word": word,
        "value": rng.choice(words[word]),
        "k": rng.randint(2, 9),
    }
    columns = [name, *numbers, *words]
    rng.shuffle(columns)
    if reworded:
        prompt = f"Fields {' '.join(columns)}. {rng.choice(other).format(**facts)}"
    else:
        prompt = f"{rng.choice(questions).format(**facts)} Columns: {', '.join(columns)}"
    return prompt, (sql if revised else answer).format(**facts)


QUERIES = SyntheticSkill("queries", "exact", _draw)
