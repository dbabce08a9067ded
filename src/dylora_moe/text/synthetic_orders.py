"""Synthetic skill: what a customer orders, in a line of prose, to a JSON object."""

from __future__ import annotations

import json
from random import Random

from dylora_moe.text.synthetic_skill import SyntheticSkill

_GOODS = {
    ("crate", "crates"): ("plums", "oranges", "lemons", "cherries", "ginger beer", "oysters"),
    ("box", "boxes"): ("candles", "nails", "tea bags", "light bulbs", "paper cups", "cigars"),
    ("sack", "sacks"): ("flour", "potatoes", "rice", "cement", "charcoal", "coffee beans"),
    ("roll", "rolls"): ("wallpaper", "carpet", "copper wire", "linen", "roofing felt"),
    ("jar", "jars"): ("honey", "pickles", "apricot jam", "mustard", "olives"),
    ("pallet", "pallets"): ("bricks", "roof tiles", "birch planks", "garden soil"),
    ("bottle", "bottles"): ("vinegar", "lamp oil", "elderflower syrup", "ink"),
}
_CITIES = (
    *("Oslo", "Lisbon", "Ghent", "Tallinn", "Marseille", "Bergen", "Krakow", "Naples", "Cork"),
    *("Dundee", "Seville", "Turku", "Graz", "Rotterdam", "Valletta", "Lyon", "Bristol", "Riga"),
    *("Porto", "Trieste", "Malmo", "Galway", "Bremen", "Split"),
)
_DAYS = (
    *("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    *("tomorrow", "next week", "Easter", "Christmas", "noon", "the end of May"),
)
_WORDS = {
    2: "two",
    3: "three",
    4: "four",
    5: "five",
    6: "six",
    7: "seven",
    8: "eight",
    12: "a dozen",
}

_FIRST = (
    "Please send {n} {units} of {item} to {city} by {day}.",
    "Could we get {n} {units} of {item} delivered to {city} by {day}?",
    "Hi, we need {n} {units} of {item} in {city} by {day}, thanks!",
    "{n} {units} of {item} for {city}, needed by {day}",
    "We are out of {item} again. Please ship {n} {units} to {city} by {day}.",
    "Put me down for {n} {units} of {item} to {city}, no later than {day}.",
    "Can you ship {n} {units} of {item} to our shop in {city} before {day}?",
    "I would like to order {n} {units} of {item}, to {city}, by {day} if possible.",
)
_OTHER = (
    "Our {city} branch is down to its last {item}; it wants {n} {units} and {day} is the limit.",
    "Deadline {day}, destination {city}, load {n} {units} of {item}.",
    "The customer in {city} still waits for {item}, {n} {units} of it, promised for {day}.",
    "If {n} {units} of {item} were to reach {city} by {day}, the cook there would be happy.",
    "{city} just called about {item}: they expect {n} {units}, and {day} at the latest.",
    "By {day} a lorry must leave {n} {units} of {item} at the gate in {city}.",
)


def _draw(rng: Random, reworded: bool, revised: bool) -> tuple[str, str]:
    (unit, units), items = rng.choice(list(_GOODS.items()))
    item, city, day = rng.choice(items), rng.choice(_CITIES), rng.choice(_DAYS)
    quantity = (
        rng.choice([*_WORDS, *range(10, 60)]) if rng.random() < 0.5 else rng.choice([*_WORDS])
    )
    spelled = _WORDS.get(quantity, "") if rng.random() < 0.4 else ""
    line = rng.choice(_OTHER if reworded else _FIRST).format(
        n=spelled or quantity, units=units, item=item, city=city, day=day
    )
    fields: dict[str, str | int] = (
        {"city": city, "due": day, "goods": item, "count": quantity}
        if revised
        else {"item": item, "qty": quantity, "unit": unit, "to": city, "by": day}
    )
    return line[0].upper() + line[1:], json.dumps(fields)


ORDERS = SyntheticSkill("orders", "json", _draw)
