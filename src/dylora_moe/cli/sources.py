"""From the arguments of `plan` and `learn` to arrivals, what is overruled, and settings.

Everything is read and checked before any work begins, so that a mistake in the last file costs
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dylora_moe.errors import ConfigError

if TYPE_CHECKING:
    from dylora_moe.config import ArrivalSettings, LearnSettings
    from dylora_moe.lifecycle.recipe import Order
    from dylora_moe.records import Arrival

_STREAM_ENDINGS = (".yaml", ".yml")


@dataclass(frozen=True)
class Overrule:
    """What a person decides instead of the novelty test; nothing by default.

    Attributes:
        into: name of the skill the rows belong to.
        as_new: a new expert, whatever the verdict.
        name: what a new expert is called.
        mixed: the rows are of several skills, to be sorted first; goes with none of the others.
    """

    into: str | None = None
    as_new: bool = False
    name: str | None = None
    mixed: bool = False


@dataclass(frozen=True)
class Incoming:
    """An arrival and what is overruled for it."""

    arrival: Arrival
    overrule: Overrule


@dataclass(frozen=True)
class Stream:
    incoming: tuple[Incoming, ...]
    settings: LearnSettings

    @property
    def arrivals(self) -> list[Arrival]:
        return [item.arrival for item in self.incoming]

    @property
    def names(self) -> list[str]:
        return [item.arrival.name for item in self.incoming]

    def orders(self) -> list[tuple[Arrival, Order]]:
        """The arrivals as the pool takes them, each with what is overruled for it."""
        from dylora_moe.lifecycle.recipe import Order

        return [
            (item.arrival, Order(item.overrule.into, item.overrule.as_new, item.overrule.name))
            for item in self.incoming
        ]


@dataclass(frozen=True)
class Request:
    """The options of `plan` and `learn` as they were typed."""

    files: tuple[Path, ...]
    overrides: tuple[str, ...] = ()
    max_examples: int | None = None
    seed: int | None = None
    validation: Path | None = None
    overrule: Overrule = Overrule()
    growth: bool = True
    max_length: int | None = None
    drop_long: bool = False

    @property
    def settings(self) -> list[str]:
        """The dotted settings, those that have an option of their own last."""
        found = list(self.overrides)
        if self.seed is not None:
            found.append(f"seed={self.seed}")
        if self.max_length is not None:
            found.append(f"max_length={self.max_length}")
        if self.drop_long:
            found.append("drop_long=true")
        if not self.growth:
            found.append("novelty.growth=false")
        return found


def read_stream(request: Request) -> Stream:
    """Reads every file that the request names, in order.

    Raises:
        ConfigError: options that contradict each other, or an invalid stream file.
        DataError: a data file that is missing, empty or corrupt.
    """
    from dylora_moe import config
    from dylora_moe.text.reading import read_examples
    from dylora_moe.text.stream import ArrivalSource, read_arrivals

    _check(request)
    if _is_stream(request.files):
        stream = config.read_stream(request.files[0], request.settings)
        entries, settings = stream.arrivals, stream.learn
        overrules = [_overrule(entry, request.overrule) for entry in entries]
        sources = [
            ArrivalSource(
                path=entry.file,
                name=entry.name,
                skip=entry.skip,
                max_examples=request.max_examples or entry.max_examples,
                validation=request.validation or entry.validation,
            )
            for entry in entries
        ]
    else:
        settings = config.learn_settings(request.settings)
        overrules = [request.overrule] * len(request.files)
        sources = [
            ArrivalSource(
                path=path, max_examples=request.max_examples, validation=request.validation
            )
            for path in request.files
        ]
    arrivals = read_arrivals(sources)
    for path in settings.evaluation.values():
        read_examples(path)  # Again by the pool; here so that a bad file is told before it opens.
    return Stream(
        tuple(Incoming(*both) for both in zip(arrivals, overrules, strict=True)), settings
    )


def _is_stream(files: Sequence[Path]) -> bool:
    return len(files) == 1 and files[0].suffix.lower() in _STREAM_ENDINGS


def _check(request: Request) -> None:
    files, overrule = request.files, request.overrule
    if len(files) > 1:
        stream = next((path for path in files if path.suffix.lower() in _STREAM_ENDINGS), None)
        if stream is not None:
            raise ConfigError(
                f"{stream} is a stream file and must stand alone; give it, or data files"
            )
    if overrule.into is not None and overrule.as_new:
        raise ConfigError("--into and --as-new contradict each other; give one of them")
    if overrule.mixed:
        _refuse_beside_mixed("--mixed", overrule.into, overrule.as_new, overrule.name)
        if request.validation is not None:
            raise ConfigError(
                "--validation names rows of one skill and --mixed says that there are several; "
                "leave one out"
            )
    if overrule.name is not None and (len(files) > 1 or _is_stream(files)):
        raise ConfigError(
            "--name names the expert of one file; learn the files one by one, or set expert_name "
            "in a stream file"
        )


def _refuse_beside_mixed(what: str, into: str | None, as_new: bool, name: str | None) -> None:
    if into is not None or as_new or name is not None:
        raise ConfigError(
            f"{what} says that the rows are of several skills, so nothing can be overruled for all "
            "of them; leave out into, as-new and the expert's name, or mixed"
        )


def _overrule(entry: ArrivalSettings, typed: Overrule) -> Overrule:
    if entry.into is not None and entry.as_new:
        raise ConfigError(
            f"arrival {entry.name or entry.file}: into and as_new contradict each other; keep one"
        )
    mixed = typed.mixed or entry.mixed
    into, as_new = (
        (typed.into, typed.as_new) if typed.into or typed.as_new else (entry.into, entry.as_new)
    )
    if mixed:
        what = f"arrival {entry.name or entry.file}: mixed"
        _refuse_beside_mixed(what, into, as_new, entry.expert_name)
        if entry.validation is not None:
            raise ConfigError(f"{what} goes with no validation rows; leave one out")
    return Overrule(into, as_new, entry.expert_name, mixed)
