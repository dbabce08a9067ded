"""What a pool's files hold of its skills: their examples, and their statistics with features.

Knows the two stores and that files never change, so that statistics and keys are read once;
examples are read whenever they are asked for. Knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence

from dylora_moe.ports import ArtifactStore, ExampleStore
from dylora_moe.records import Artifact, Example, SkillRecord
from dylora_moe.skills.library import Skill, SkillLibrary


class StoredSkills:
    """Reads skills.

    Args:
        artifacts: the pool's files.
        examples: the pool's skill store.
    """

    def __init__(self, artifacts: ArtifactStore, examples: ExampleStore) -> None:
        self._artifacts, self._examples = artifacts, examples
        self._keys: dict[Artifact, frozenset[str]] = {}
        self._skills: dict[Artifact, Skill] = {}

    def library(self, records: Sequence[SkillRecord]) -> SkillLibrary:
        """The skills of a revision; what was read of others, or of rows that none of these has, is
        let go.

        Raises:
            ArtifactError: a file is missing or damaged, also one that was read before.
        """
        read: dict[Artifact, Skill] = {}
        library = SkillLibrary()
        for record in records:
            # Hashed anew only where the file was touched since.
            path = self._artifacts.open(record.features)
            skill = self._skills.get(record.features)
            if skill is None:
                skill = Skill.from_bytes(path.read_bytes())
            read[record.features] = library.put(skill)
        self._skills = read
        named = {file for record in records for file in (*record.examples, *record.validation)}
        self._keys = {file: keys for file, keys in self._keys.items() if file in named}
        return library

    def examples(self, files: Sequence[Artifact]) -> tuple[Example, ...]:
        """Stored examples, each content once, the newest file's first say."""
        found: dict[str, Example] = {}
        for artifact in reversed(files):
            for example in self._examples.read(artifact):
                found.setdefault(example.key, example)
        return tuple(found.values())

    def keys(self, files: Sequence[Artifact]) -> frozenset[str]:
        """Keys of the stored examples."""
        for artifact in files:
            if artifact not in self._keys:
                self._keys[artifact] = frozenset(e.key for e in self._examples.read(artifact))
        return frozenset().union(*(self._keys[artifact] for artifact in files))
