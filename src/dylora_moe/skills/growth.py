"""Guards before a new expert: what must hold besides the verdict.

Pure: sees numbers of the pool and of the arrival, and names every reason that speaks against it.
"""

from __future__ import annotations

from dataclasses import dataclass

from dylora_moe.errors import ConfigError, PoolFullError


@dataclass(frozen=True, slots=True)
class GrowthLimits:
    """What the person allows.

    Attributes:
        allowed: False lets the pool grow no further expert at all.
        max_experts: in the pool; None for no cap.
        max_parameters: trainable parameters of all experts together; None for no cap.
        cooldown: arrivals that must lie between two creations; 0 for none.
        min_samples: examples that an expert is trained on.
        min_tokens: trained tokens in them.
    """

    allowed: bool = True
    max_experts: int | None = None
    max_parameters: int | None = None
    cooldown: int = 0
    min_samples: int = 32
    min_tokens: int = 256

    def __post_init__(self) -> None:
        numbers = (self.cooldown, self.min_samples, self.min_tokens)
        caps = (self.max_experts, self.max_parameters)
        if min(numbers) < 0 or any(cap is not None and cap < 0 for cap in caps):
            raise ConfigError(f"growth limits are counts from 0 on; got {self}")


@dataclass(frozen=True, slots=True)
class PoolSize:
    """The pool as it is.

    Attributes:
        experts: how many there are.
        parameters: trainable parameters of all of them.
        arrivals_since_creation: judged since the last expert was made; None if there was none.
    """

    experts: int
    parameters: int
    arrivals_since_creation: int | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A reason against a new expert.

    Attributes:
        guard: which one: `switch`, `max_experts`, `max_parameters`, `cooldown`, `samples` or
            `tokens`.
        reason: one line for people, with the remedy.
        waits: True where more arrivals or examples cure it, False where only the person can.
    """

    guard: str
    reason: str
    waits: bool


def refusals(
    limits: GrowthLimits, pool: PoolSize, *, samples: int, tokens: int, new_parameters: int
) -> tuple[Refusal, ...]:
    """Every reason against a new expert of `new_parameters`, the person's own switch first."""
    found = []
    if not limits.allowed:
        found.append(Refusal("switch", "growth is switched off; allow it to add experts", False))
    if limits.max_experts is not None and pool.experts >= limits.max_experts:
        reason = (
            f"{pool.experts} of {limits.max_experts} experts in use; raise max_experts or remove "
            "one: dylora experts remove POOL NAME"
        )
        found.append(Refusal("max_experts", reason, False))
    after = pool.parameters + new_parameters
    if limits.max_parameters is not None and after > limits.max_parameters:
        reason = (
            f"a new expert would make {after} trainable parameters of {limits.max_parameters}; "
            "raise max_parameters, lower the rank, or remove an expert: "
            "dylora experts remove POOL NAME"
        )
        found.append(Refusal("max_parameters", reason, False))
    since = pool.arrivals_since_creation
    if since is not None and since < limits.cooldown:
        reason = (
            f"{since} arrivals since the last new expert; the cooldown is {limits.cooldown}: wait "
            "or lower it"
        )
        found.append(Refusal("cooldown", reason, True))
    if samples < limits.min_samples:
        reason = f"{samples} examples are too few for an expert; it takes {limits.min_samples}"
        found.append(Refusal("samples", reason, True))
    if tokens < limits.min_tokens:
        reason = f"{tokens} answer tokens are too few for an expert; it takes {limits.min_tokens}"
        found.append(Refusal("tokens", reason, True))
    return tuple(found)


def require_room(limits: GrowthLimits, pool: PoolSize, new_parameters: int) -> None:
    """Checks what only the person can change, for an expert that the person asked for by name.

    Raises:
        PoolFullError: growth is switched off or a cap is reached.
    """
    for refusal in refusals(
        limits,
        pool,
        samples=limits.min_samples,
        tokens=limits.min_tokens,
        new_parameters=new_parameters,
    ):
        if not refusal.waits:
            raise PoolFullError(refusal.reason)
