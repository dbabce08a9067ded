"""Features that choices about routing and novelty are judged on, taken once and kept in a file.

Of each prompt what the tap's blocks hold, pooled over its tokens in several ways, and the means of
its first tokens; of some rows the gradient of their answers. Knows the base and rows of skills;
judges nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import layer_norm

from dylora_moe.build.pool import Pool
from dylora_moe.evaluation.continual.data import SkillRows, read_skills
from dylora_moe.foundation.base import Base
from dylora_moe.foundation.own_prompts import write_own_prompts
from dylora_moe.foundation.trunk_cache import TrunkCache
from dylora_moe.lifecycle.answer_gradients import answer_gradients
from dylora_moe.records import Example
from dylora_moe.text.template import Encoded, encode_prompt

SKILLS = ("snips", "cmudict", "wikisql", "scan", "clinc150", "nl2bash")
FOREIGN = ("mbpp", "gsm8k")
KINDS = ("mean", "last", "max", "std", "normed")
"""How the tokens' states become one vector; `normed` is the mean of layer-normed states."""
POSITIONS = (1, 2, 4, 8, 16, 32)
"""Tokens of a prompt after which its choice is looked at."""
_GROUP = 64
"""Rows whose tokens' states are held at a time."""

RowKeys = tuple[Sequence[str], Sequence[str]]
"""Of a skill's rows to fit on, and of those to test."""

Pooled = Mapping[str, Float[Tensor, "n d"]]
"""Features of prompts by their kind."""


@dataclass(frozen=True)
class Stored:
    """What was taken.

    Attributes:
        train: of rows to fit on, by skill.
        test: of other rows, of foreign skills too.
        own: of the prompts that the base writes by itself.
        prefixes: of the test rows, the mean of the first tokens by their number; NaN where a
            prompt has fewer.
        d_model: width of one block's state.
        keys: of the rows, by skill: those to fit on, and those to test.
    """

    train: Mapping[str, Pooled]
    test: Mapping[str, Pooled]
    own: Pooled
    prefixes: Mapping[str, Mapping[int, Float[Tensor, "n d"]]]
    d_model: int
    keys: Mapping[str, RowKeys] = field(default_factory=dict)

    def require(self, wanted: Mapping[str, RowKeys], path: Path) -> None:
        """Ends the command where the file has other rows than those that are asked for.

        Args:
            wanted: their keys.
            path: of the file.
        """
        for skill in wanted:
            for place, what in enumerate(("to fit on", "to test on")):
                ours = list(self.keys.get(skill, ((), ()))[place])
                asked = list(wanted[skill][place])
                if ours != asked:
                    raise SystemExit(
                        f"{path} has features of {len(ours)} rows of {skill} {what}, and not of "
                        f"the {len(asked)} that --data, --rows, --seeds and --test ask for; name "
                        "another --features file, or remove this one"
                    )


def kept(path: Path) -> Stored | None:
    """What the file holds; None where there is none."""
    return Stored(**torch.load(path, weights_only=True)) if path.exists() else None


def keep(path: Path, found: Stored) -> Stored:
    """Writes the file."""
    torch.save(asdict(found), path)
    return found


def rows_of(folder: Path, train: int, test: int, names: Sequence[str]) -> tuple[SkillRows, ...]:
    """The same rows whenever they are asked for, none twice, no tested prompt among the others."""
    return read_skills(folder, train=train, test=test, names=names, at_least=1)


def take(
    base: Base,
    learned: Sequence[SkillRows],
    foreign: Sequence[SkillRows],
    own: int,
) -> Stored:
    """Runs the base below its tap over everything.

    Args:
        base: frozen.
        learned: skills to fit on and to test.
        foreign: skills whose test rows alone are taken.
        own: prompts that the base writes.
    """
    tested, prefixes = {}, {}
    for skill in (*learned, *foreign):
        tested[skill.name], prefixes[skill.name] = _pooled(base, _prompts(skill.test), True)
    return Stored(
        {skill.name: _pooled(base, _prompts(skill.train))[0] for skill in learned},
        tested,
        _pooled(base, write_own_prompts(base, own))[0],
        prefixes,
        base.anatomy.d_model,
        keys_of(learned, foreign),
    )


def keys_of(learned: Sequence[SkillRows], foreign: Sequence[SkillRows]) -> dict[str, RowKeys]:
    """The keys of the rows that `take` takes, by skill; of foreign skills the tested ones alone."""
    found: dict[str, RowKeys] = {
        skill.name: ([row.key for row in skill.train], [row.key for row in skill.test])
        for skill in learned
    }
    return found | {skill.name: ([], [row.key for row in skill.test]) for skill in foreign}


def gradients(base: str, rows: Sequence[Example], **place: Any) -> Float[Tensor, "n d_model"]:
    """The gradient of each row's answer, under a pool without experts.

    Args:
        base: its name or folder.
        rows: with answers.
        place: `device` and `dtype` of the pool.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        Pool.create(Path(folder) / "pool", base, own_prompts=32, **place) as pool,
    ):
        live = pool.live
        return answer_gradients(live, live.encode(rows, granularity="sequence")).float().cpu()


def pool(states: Float[Tensor, "seq d"], d_model: int) -> dict[str, Float[Tensor, " d"]]:
    """One row's tokens as one vector, in every kind."""
    blocks = states.unflatten(-1, (-1, d_model))
    return {
        "mean": states.mean(0),
        "last": states[-1],
        "max": states.amax(0),
        "std": states.std(0, correction=0),
        "normed": layer_norm(blocks, (d_model,)).mean(0).flatten(),
    }


def _prompts(rows: Sequence[Example]) -> list[Any]:
    return [row.turns[:-1] for row in rows]


def _pooled(
    base: Base, prompts: Sequence[Any], prefixes: bool = False
) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
    """Features of prompts in the plain format, and the means of their first tokens if asked."""
    whole: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    first: dict[int, list[Tensor]] = {n: [] for n in POSITIONS if prefixes}
    for start in range(0, len(prompts), _GROUP):
        ids = [tuple(encode_prompt(p, base.tokenizer)) for p in prompts[start : start + _GROUP]]
        rows = [Encoded(one, (False,) * len(one), len(one), "") for one in ids]
        cache = TrunkCache(base, rows, per_token=True)
        for index, row in enumerate(rows):
            states = torch.cat(cache.get([index]).hiddens(), -1)[0].float()
            for kind, vector in pool(states, base.anatomy.d_model).items():
                whole[kind].append(vector)
            for count, means in first.items():
                long = len(row.input_ids) >= count
                means.append(
                    states[:count].mean(0) if long else torch.full_like(states[0], torch.nan)
                )
    return (
        {kind: torch.stack(found) for kind, found in whole.items()},
        {count: torch.stack(found) for count, found in first.items()},
    )
