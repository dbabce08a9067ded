"""What a revision must obey before it is written. Pure: knows records, no database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from dylora_moe.errors import ExpertError, PoolError
from dylora_moe.records import BASE_NAME, ExpertVersion, PoolRevision
from dylora_moe.storage import rows

_CHANGEABLE = ("alias", "maturity", "maturity_state", "created_at")


def check(revision: PoolRevision) -> None:
    """Raises if the revision contradicts itself.

    Raises:
        ExpertError: a name that two experts carry, or that is reserved, or a maturity beyond 0..1.
        PoolError: an expert without files, a skill twice or of an expert that is not there.
    """
    experts = revision.experts
    _refuse_twice("expert", (each.expert_id for each in experts))
    _refuse_twice("expert name", (each.alias for each in experts))
    for expert in experts:
        if expert.alias == BASE_NAME or not expert.alias:
            raise ExpertError(
                f'an expert cannot be called "{expert.alias}": the name is reserved; choose another'
            )
        for other in experts:
            if other is not expert and expert.alias == other.expert_id:
                raise ExpertError(
                    f'"{expert.alias}" is the id of another expert; choose another name'
                )
        if not 0.0 <= expert.maturity <= 1.0:
            raise ExpertError(f"{expert.ref} has maturity {expert.maturity}; it must lie in 0..1")
        if not expert.files or expert.version < 1:
            raise PoolError(f"{expert.ref} has no files or no version; save the adapter first")
    _refuse_twice("skill", (each.skill_id for each in revision.skills))
    known = {BASE_NAME, *(each.expert_id for each in experts)}
    for skill in revision.skills:
        if skill.expert_id not in known:
            raise PoolError(
                f"skill {skill.skill_id} belongs to {skill.expert_id}, which this revision lacks; "
                "add the expert or remove the skill"
            )


def check_unchanged(stored: ExpertVersion, given: ExpertVersion) -> None:
    """Raises if a version that is stored is given with other contents.

    Raises:
        PoolError: naming the fields; alias and maturity may differ.
    """
    before, after = rows.version_values(stored), rows.version_values(given)
    # As encoded values, since a NaN in the history is unlike itself and a tuple unlike a list.
    changed = [key for key in before if key not in _CHANGEABLE and before[key] != after[key]]
    if changed:
        raise PoolError(
            f"{stored.ref} is stored with another {', '.join(changed)}, and versions never change; "
            "register a new version instead"
        )


def _refuse_twice(what: str, values: Iterable[str]) -> None:
    for value, count in Counter(values).items():
        if count > 1:
            raise ExpertError(f'{what} "{value}" appears {count} times; every one must be unique')
