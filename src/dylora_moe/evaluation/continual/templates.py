"""Instructions around prompts: the same request in several words, or none at all.

The rows of real skills carry no instruction, so that nothing but the input tells them apart. People
do say what they want, each in other words. A template is one way to say it, with `{prompt}` where
the input goes. Knows prompts; answers, checks and tests stay as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dylora_moe.errors import DataError
from dylora_moe.evaluation.continual.data import SkillRows
from dylora_moe.records import Example

PLACE = "{prompt}"
"""Where the input goes; the identity is this alone."""

IDENTITY = (PLACE,)
"""No instruction: every prompt as it is."""

FILE = "templates.txt"
"""In a skill's folder: its templates, one a line, `\\n` for a line break."""

TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "snips": (
        "Turn this request to a voice assistant into JSON with its intent and slots.\n{prompt}",
        "What is the user asking for? Answer with a JSON object of the intent and every slot.\n"
        "User: {prompt}",
        "{prompt}\nParse the command above: intent and slot values, as JSON.",
    ),
    "wikisql": (
        "Write the SQL query that answers this question about the table t.\n{prompt}",
        "{prompt}\nGive me a SELECT statement on t that finds it.",
        "A table t has the columns listed below. Translate the question into SQL.\n{prompt}",
    ),
    "nl2bash": (
        "Write a shell command that does the following.\n{prompt}",
        "How do I do this in bash? Just the command, please: {prompt}",
        "{prompt}\nAnswer with one line that I can paste into a Linux terminal.",
    ),
    "scan": (
        "Translate the command into the sequence of actions of the robot.\n{prompt}",
        "A robot is told: {prompt}\nList every action it takes, in order.",
        "{prompt}\nSpell this out, step by step, with I_WALK, I_RUN, I_LOOK, I_JUMP and turns.",
    ),
    "cmudict": (
        "How is this word pronounced? Write its ARPAbet phonemes.\n{prompt}",
        "Give the phonemes of the word {prompt}, with stress marks, in the style of CMUdict.",
        "Word: {prompt}\nTranscribe it into ARPAbet.",
    ),
    "clinc150": (
        "Name the intent of this message.\n{prompt}",
        "A customer writes: {prompt}\nWhich intent label fits?",
        "{prompt}\nClassify the sentence above by what the person wants; give the label only.",
    ),
    "gsm8k": (
        "Solve the problem step by step and put the result behind ####.\n{prompt}",
        "{prompt}\nShow your work line by line. End with #### and the number.",
        "Here is a word problem for school. Work it out, and finish with the answer after ####.\n"
        "{prompt}",
    ),
    "mbpp": (
        "Write Python code for this task; the assert must hold.\n{prompt}",
        "{prompt}\nImplement it in Python so that the test above passes.",
        "I need a Python function. This is what it should do, with an example:\n{prompt}",
    ),
}
"""Paraphrases for the skills that are known by name."""


def templates_of(skill: str, folder: Path | None = None) -> tuple[str, ...]:
    """The templates of a skill: of its folder's `templates.txt`, else those known by its name,
    else the identity alone.

    Args:
        skill: its name.
        folder: the skill's own folder; None to go by the name.

    Raises:
        DataError: the file cannot be read, is empty, or a line does not hold `{prompt}` once.
    """
    file = None if folder is None else folder / FILE
    if file is None or not file.exists():
        return TEMPLATES.get(skill, IDENTITY)
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}); save it as UTF-8") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            if line.count(PLACE) != 1:
                raise DataError(f"{file}:{number}: a template holds {PLACE} once; mend the line")
            found.append(line.strip().replace("\\n", "\n"))
    if not found:
        raise DataError(f"{file}: the file holds no templates; write one a line, or remove it")
    return tuple(found)


def instruct(template: str, example: Example) -> Example:
    """The row with its last user turn put into a template; all else stays as it is.

    Raises:
        DataError: the row has no user turn, or the template does not hold `{prompt}` once.
    """
    if template == PLACE:
        return example
    last = max((n for n, turn in enumerate(example.turns) if turn.role == "user"), default=None)
    if last is None:
        raise DataError(f"{example.origin}: the row has no prompt; use no templates for plain text")
    turn = replace(example.turns[last], content=_filled(template, example.turns[last].content))
    turns = (*example.turns[:last], turn, *example.turns[last + 1 :])
    return replace(example, turns=turns)


def instructed(
    skill: SkillRows, templates: Sequence[str] = IDENTITY, *, seed: int = 0
) -> SkillRows:
    """A skill whose prompts, those out of its scope too, are said in the words of templates.

    Which template a prompt gets depends on the seed and the prompt alone.

    Args:
        skill: with bare prompts.
        templates: to choose from; the identity by default.
        seed: of the choice.

    Raises:
        DataError: no templates, or as `instruct`.
    """
    if not templates:
        raise DataError(f"{skill.name}: no templates to choose from; use the identity {PLACE!r}")

    def chosen(prompt: str) -> str:
        digest = hashlib.sha256(f"{seed}:{prompt}".encode()).digest()
        return templates[int.from_bytes(digest[:8]) % len(templates)]

    return replace(
        skill,
        train=tuple(instruct(chosen(row.prompt), row) for row in skill.train),
        test=tuple(instruct(chosen(row.prompt), row) for row in skill.test),
        out_of_scope=tuple(_filled(chosen(text), text) for text in skill.out_of_scope),
    )


def _filled(template: str, prompt: str) -> str:
    # No str.format: other braces of a template, of JSON perhaps, are text.
    before, place, after = template.partition(PLACE)
    if not place or PLACE in after:
        raise DataError(f"the template {template!r} must hold {PLACE} once; mend it")
    return f"{before}{prompt}{after}"
