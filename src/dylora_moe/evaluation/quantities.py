"""How a number is written for people: one spelling, used by the report and by the command line.

Knows units; knows nothing of what is measured.
"""

from __future__ import annotations

from dylora_moe.records import Interval

MISSING = "–"
"""What stands where a number was not measured."""

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")
_DECIMAL = ("", "k", "M", "G", "T", "P", "E")


def percent(share: float | None, digits: int = 1) -> str:
    """A share from 0 to 1: `0.973` as `97.3%`."""
    return MISSING if share is None else f"{_settled(100 * share, digits):.{digits}f}%"


def points(change: float | None, signed: bool = True) -> str:
    """A change of a share, in points of a hundred: `-0.004` as `-0.4 points`."""
    if change is None:
        return MISSING
    value = _settled(100 * change, 1)
    return f"{value:+.1f} points" if value and signed else f"{value:.1f} points"


def decimal(value: float | None, digits: int = 3) -> str:
    return MISSING if value is None else f"{_settled(value, digits):.{digits}f}"


def ratio(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}x"


def count(value: float | None) -> str:
    """A whole number with separators: `12345` as `12,345`."""
    return MISSING if value is None else f"{round(value):,}"


def plural(number: int, noun: str) -> str:
    """`1 arrival`, `6 arrivals`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def interval(value: Interval | None) -> str:
    """`0.97 (0.94 to 0.99)`."""
    if value is None:
        return MISSING
    return f"{decimal(value.value, 2)} ({decimal(value.low, 2)} to {decimal(value.high, 2)})"


def duration(seconds: float | None) -> str:
    """`4.2 s`, `4 min 12 s` or `1 h 03 min`."""
    if seconds is None:
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(n_bytes: float | None) -> str:
    """Bytes in powers of 1024: `1.8 MiB`."""
    if n_bytes is None:
        return MISSING
    value, step = _scaled(n_bytes, 1024, len(_BINARY))
    return f"{value:.0f} {_BINARY[step]}" if step == 0 else f"{value:.1f} {_BINARY[step]}"


def flops(operations: float | None) -> str:
    """Floating-point operations in powers of 1000: `3.2 TFLOP`."""
    if operations is None:
        return MISSING
    value, step = _scaled(operations, 1000, len(_DECIMAL))
    return f"{value:.1f} {_DECIMAL[step]}FLOP"


def _scaled(value: float, base: int, steps: int) -> tuple[float, int]:
    step = 0
    while abs(value) >= base and step < steps - 1:
        value /= base
        step += 1
    return float(value), step


def _settled(value: float, digits: int) -> float:
    # Adding zero turns -0.0 into 0.0, which nobody wants to read.
    return round(value, digits) + 0.0
