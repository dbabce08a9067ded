"""Streams of several skills, cut into batches, with the truth beside them.

A learner is given the batches and nothing else: rows with prompts and answers, no name of a skill,
and no file that would betray it. The truth (whose row is whose, where one skill ends and the next
begins) is for those who judge it. Knows rows of skills; nothing of files and nothing of learners.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from dylora_moe.errors import DataError
from dylora_moe.evaluation.continual.data import SkillRows
from dylora_moe.records import Example

Batch = tuple[Example, ...]
"""Rows that arrive together; an arrival without a name."""

BLUR = 0.2
"""Share of the rows near a blurred switch that belong to the other side."""


@dataclass(frozen=True)
class Visit:
    """A stretch of a stream that is one skill's: rows `start` to `stop`, without the latter."""

    skill: str
    start: int
    stop: int


@dataclass(frozen=True)
class Truth:
    """What is known of a stream by those who made it; rows are counted from 0 over all batches.

    Attributes:
        keys: of each row, as `Example.key`.
        skills: the skill of each row.
        visits: stretches in their order; none in mixed traffic. Of a blurred switch the middle.
    """

    keys: tuple[str, ...]
    skills: tuple[str, ...]
    visits: tuple[Visit, ...]

    @property
    def borders(self) -> tuple[int, ...]:
        """Where one skill's stretch ends and the next begins: the first row of the next."""
        return tuple(visit.start for visit in self.visits[1:])

    @property
    def returns(self) -> tuple[int, ...]:
        """Those borders behind which a skill comes that was there before."""
        seen: set[str] = set()
        found = []
        for visit in self.visits:
            if visit.skill in seen:
                found.append(visit.start)
            seen.add(visit.skill)
        return tuple(found)

    @property
    def skill_of(self) -> dict[str, str]:
        """The skill of a row by its key."""
        return dict(zip(self.keys, self.skills, strict=True))


@dataclass(frozen=True)
class Stream:
    """Batches for a learner, in their order, and the truth, which it never sees.

    Attributes:
        kind: its name in `STREAMS`.
        batches: all of one size, but that the last one may be smaller, and so may the last one
            before a skill returns. Where visits are no multiple of it, batches hold rows of two
            skills: a cut never tells a learner of a switch.
        truth: beside them.
    """

    kind: str
    batches: tuple[Batch, ...]
    truth: Truth

    @property
    def starts(self) -> tuple[int, ...]:
        """The first row of each batch."""
        return tuple(accumulate((len(batch) for batch in self.batches[:-1]), initial=0))

    def batch_of(self, row: int) -> int:
        """In which batch a row of the truth arrives, counted from 0."""
        return bisect_right(self.starts, row) - 1

    @property
    def border_batches(self) -> tuple[int, ...]:
        """The batches in which the borders lie: no learner that is given whole batches can know
        sooner. Two borders in one batch are one to it."""
        return tuple(dict.fromkeys(self.batch_of(border) for border in self.truth.borders))


def hard(skills: Sequence[SkillRows], *, rows: int, batch: int, seed: int = 0) -> Stream:
    """One skill after the other, in the order given.

    Args:
        skills: at least two.
        rows: of each visit.
        batch: rows of a batch. Batches are cut through the whole stream: where `rows` is no
            multiple of it, some hold rows of two skills.
        seed: of the rows that are taken and of their order.

    Raises:
        DataError: too few skills or rows, or a row that is in two skills.
    """
    return _stream("hard", _visits(skills, [s.name for s in skills], rows, seed), batch)


def blurred(
    skills: Sequence[SkillRows],
    *,
    rows: int,
    batch: int,
    seed: int = 0,
    share: float = BLUR,
    near: int | None = None,
) -> Stream:
    """As `hard`, but near each switch rows of the two neighbours are mixed: a `share` of the last
    `near` rows before it changes places with as many of the first `near` rows behind it. By default
    as many rows change places as if a fifth of a visit, around each switch, were shuffled.

    Args:
        skills, rows, batch, seed: as `hard`.
        share: from 0 (a hard switch) to 0.5 (no telling on which side one is).
        near: rows on each side of a switch; None for a quarter of a visit.

    Raises:
        DataError: as `hard`, and for a share or a zone that is out of range.
    """
    near = rows // 4 if near is None else near
    if not 0 <= share <= 0.5 or not 0 <= 2 * near <= rows:
        raise DataError(
            f"share {share} and near {near} are out of range; use a share of 0 to 0.5 and at most "
            f"half of a visit's {rows} rows"
        )
    stretches = _visits(skills, [s.name for s in skills], rows, seed)
    placed = [row for stretch in stretches for row in stretch]
    rng = random.Random(f"{seed}:blurred")
    count = round(share * near)
    for number in range(1, len(stretches)):
        border = number * rows
        left = rng.sample(range(border - near, border), count)
        right = rng.sample(range(border, border + near), count)
        for one, other in zip(left, right, strict=True):
            placed[one], placed[other] = placed[other], placed[one]
    return _stream("blurred", stretches, batch, placed)


def returning(skills: Sequence[SkillRows], *, rows: int, batch: int, seed: int = 0) -> Stream:
    """As `hard`, and when all were there, the first skill comes back with other rows of it.

    The batches are those of `hard`, then those of the return: it begins with a batch of its own, so
    that a learner is after the very same batches where `hard` ends.

    Args:
        skills, rows, batch, seed: as `hard`; the first skill needs the rows of two visits.

    Raises:
        DataError: as `hard`.
    """
    order = [s.name for s in skills]
    visits = _visits(skills, [*order, *order[:1]], rows, seed)
    return _stream("returning", visits, batch, cut=rows * len(order))


def mixed(skills: Sequence[SkillRows], *, rows: int, batch: int, seed: int = 0) -> Stream:
    """Traffic of all skills at once: as many rows of each, in random order, without borders.

    Args:
        skills, rows, batch, seed: as `hard`; the batches are chunks of the traffic.

    Raises:
        DataError: as `hard`.
    """
    stretches = _visits(skills, [s.name for s in skills], rows, seed)
    placed = [row for stretch in stretches for row in stretch]
    random.Random(f"{seed}:mixed").shuffle(placed)
    return _stream("mixed", [], batch, placed)


STREAMS: Mapping[str, Callable[..., Stream]] = {
    "hard": hard,
    "blurred": blurred,
    "returning": returning,
    "mixed": mixed,
}
"""Every stream by its kind; each takes skills, `rows`, `batch` and `seed`."""


@dataclass(frozen=True)
class _Owned:
    """A row and whose it is."""

    skill: str
    example: Example


def _visits(
    skills: Sequence[SkillRows], order: Sequence[str], rows: int, seed: int
) -> list[list[_Owned]]:
    """The rows of each visit; those of a skill's second visit follow on those of its first."""
    if len(skills) < 2:
        raise DataError(f"a stream needs at least two skills, found {len(skills)}; name more")
    if rows < 1:
        raise DataError(f"{rows} rows a visit; ask for at least one")
    left = {skill.name: _shuffled(skill, seed) for skill in skills}
    if len(left) < len(skills):
        raise DataError("two skills of a stream have one name; give each its own")
    visits = []
    for name in order:
        if len(left[name]) < rows:
            needed = rows * order.count(name)
            raise DataError(
                f"{name}: {needed} rows are needed for this stream; bring more, or ask for fewer a "
                "visit"
            )
        visits.append(left[name][:rows])
        left[name] = left[name][rows:]
    return visits


def _shuffled(skill: SkillRows, seed: int) -> list[_Owned]:
    # The file's name would betray the skill.
    rows = [_Owned(skill.name, replace(row, origin="")) for row in skill.train]
    # The skill's name belongs to the seed: its rows are the same beside other skills.
    random.Random(f"{seed}:{skill.name}").shuffle(rows)
    return rows


def _stream(
    kind: str,
    stretches: Sequence[Sequence[_Owned]],
    batch: int,
    placed: Sequence[_Owned] = (),
    cut: int = 0,
) -> Stream:
    """Cuts rows into batches.

    Args:
        kind: of the stream.
        stretches: rows of each visit, for the truth.
        batch: rows of each batch.
        placed: the rows as they come, where that is not the order of the stretches.
        cut: a row before which a batch ends, full or not.
    """
    if batch < 1:
        raise DataError(f"{batch} rows a batch; ask for at least one")
    placed = placed or [row for stretch in stretches for row in stretch]
    visits, start = [], 0
    for stretch in stretches:
        visits.append(Visit(stretch[0].skill, start, start + len(stretch)))
        start += len(stretch)
    keys = tuple(row.example.key for row in placed)
    if len(set(keys)) < len(keys):
        raise DataError(f"a row comes twice in the stream {kind!r}; leave out what is repeated")
    examples = tuple(row.example for row in placed)
    starts = [*range(0, cut, batch), *range(cut, len(examples), batch)]
    return Stream(
        kind,
        tuple(examples[at:end] for at, end in pairwise([*starts, len(examples)])),
        Truth(keys, tuple(row.skill for row in placed), tuple(visits)),
    )
