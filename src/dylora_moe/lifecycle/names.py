"""What experts and skills of a revision are called: found by name, and given names.

Pure: sees a revision; needs no base and no files.
"""

from __future__ import annotations

import re

from dylora_moe.errors import PoolError
from dylora_moe.records import BASE_NAME, ExpertVersion, PoolRevision, SkillRecord


def find_expert(revision: PoolRevision, name: str) -> ExpertVersion:
    """The expert of this alias or id.

    Raises:
        PoolError: there is none.
    """
    found = revision.expert(name)
    if found is None:
        known = ", ".join(version.alias for version in revision.experts) or "none yet"
        raise PoolError(f"no expert '{name}' in this pool; there are: {known}")
    return found


def find_skill(revision: PoolRevision, name: str) -> SkillRecord:
    """The skill of this name or id, or the first one of the expert of this name.

    Raises:
        PoolError: there is none.
    """
    for record in revision.skills:
        if name in (record.name, record.skill_id):
            return record
    expert = revision.expert(name)
    for record in revision.skills:
        if expert is not None and record.expert_id == expert.expert_id:
            return record
    known = ", ".join(record.name for record in revision.skills) or "none yet"
    raise PoolError(f"no skill '{name}' in this pool; there are: {known}")


def free_name(revision: PoolRevision, wished: str) -> str:
    """A name no expert or skill has: the wished one made plain, or with a number behind it.

    Raises:
        PoolError: nothing is left of the name, or it is the base's.
    """
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", wished).strip("-.")
    if not plain or plain == BASE_NAME:
        raise PoolError(f"'{wished}' cannot name an expert; use letters, digits, '-', '_' and '.'")
    used = _used(revision)
    name, number = plain, 1
    while name in used:
        number += 1
        name = f"{plain}-{number}"
    return name


def checked_name(revision: PoolRevision, wished: str, *, of: str | None = None) -> str:
    """The very name that a person chose.

    Args:
        of: id of the expert that is to get it, whose own skills do not stand in its way.

    Raises:
        PoolError: it is taken, or holds more than letters, digits, `-`, `_` and `.`.
    """
    others = tuple(record for record in revision.skills if record.expert_id != of)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", wished) or wished == BASE_NAME:
        raise PoolError(f"'{wished}' cannot name an expert; use letters, digits, '-', '_' and '.'")
    if wished in _used(revision, others):
        raise PoolError(f"the name '{wished}' is taken in this pool; choose another one")
    return wished


def _used(revision: PoolRevision, skills: tuple[SkillRecord, ...] | None = None) -> set[str]:
    used = {version.alias for version in revision.experts}
    used |= {version.expert_id for version in revision.experts}
    return used | {record.name for record in (revision.skills if skills is None else skills)}
