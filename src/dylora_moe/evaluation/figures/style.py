"""One look for every figure: colours in a light and a dark shade, type, and matplotlib's settings.

The hues are those of Okabe and Ito (2008), "Color Universal Design", told apart by colour-blind
readers; the dark shades are lifted to keep their contrast. Knows no data.
"""

from __future__ import annotations

from typing import Any

FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

ROLES: dict[str, tuple[str, str]] = {
    "surface": ("#fffffe", "#161b22"),
    "ink": ("#1f2328", "#e6edf3"),
    "muted": ("#59636e", "#9ba5b0"),
    "line": ("#d1d9e0", "#3d444d"),
    "band": ("#f3f5f8", "#1e252e"),
    "blue": ("#0072b2", "#4aa8e8"),
    "orange": ("#d98c00", "#f0b03a"),
    "green": ("#009e73", "#2dc79a"),
    "red": ("#d55e00", "#ff8a4c"),
    "pink": ("#c46a9b", "#e59cc4"),
    "sky": ("#56b4e9", "#8ad0f7"),
    "violet": ("#5e4fa2", "#a597ea"),
    "brown": ("#8c6d31", "#cbab6b"),
    "grey": ("#8a939c", "#7d8792"),
}
"""Role to its (light, dark) shade. The light shades differ, since the page finds them by value."""

CYCLE = ("blue", "orange", "green", "pink", "violet", "sky", "red", "brown")

VERDICTS: dict[str, tuple[str, str]] = {
    "novel": ("o", "green"),
    "covered": ("s", "sky"),
    "revised": ("^", "orange"),
    "known": ("D", "blue"),
    "unsure": ("X", "grey"),
}
"""Verdict to its (marker, role): told apart by shape too."""

N_RAMP = 11
_RAMP_LIGHT = ("#f0f5fb", "#75b3da", "#08488e")
_RAMP_DARK = ("#1b2735", "#20639f", "#a5d6ff")


def light(role: str) -> str:
    """The shade to paint with; the page swaps it for the dark one where that is preferred."""
    return ROLES[role][0]


def expert_colour(index: int) -> str:
    """Colour of the expert at this place of the pool; the cycle starts anew after eight."""
    return light(CYCLE[index % len(CYCLE)])


def expert_hatch(index: int) -> str:
    """Fill pattern that tells experts of the same colour apart."""
    return ("", "////", "....", "xxxx")[index // len(CYCLE) % 4]


def shade(share: float) -> int:
    """Step of the ramp for a share from 0 to 1."""
    return round(min(max(share, 0.0), 1.0) * (N_RAMP - 1))


def ramp_colour(step: int) -> str:
    return _mix(_RAMP_LIGHT, step)


def ramp_ink(step: int) -> str:
    """Colour of a number on this step of the ramp; its last digits make it unique to the step."""
    return _ink(_mix(_RAMP_LIGHT, step), step)


def variables() -> dict[str, tuple[str, str]]:
    """CSS variable to its (light, dark) value, for everything a figure is painted with."""
    found = {f"--fig-{role}": shades for role, shades in ROLES.items()}
    for step in range(N_RAMP):
        dark = _mix(_RAMP_DARK, step)
        found[f"--fig-ramp-{step}"] = (ramp_colour(step), dark)
        found[f"--fig-ramp-ink-{step}"] = (ramp_ink(step), _ink(dark, step))
    return found


def settings() -> dict[str, Any]:
    """matplotlib's settings, to be used inside `matplotlib.rc_context`."""
    return {
        "svg.fonttype": "none",
        # A fixed salt and no date: the same history gives the same bytes.
        "svg.hashsalt": "dylora-moe",
        # Names of skills are not formulas, whatever dollar signs they carry.
        "text.parse_math": False,
        "font.family": ["DejaVu Sans"],
        "font.size": 10.5,
        "axes.titlesize": 11.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 10,
        "axes.labelsize": 10.5,
        "axes.labelcolor": light("muted"),
        "axes.titlecolor": light("ink"),
        "axes.edgecolor": light("line"),
        "axes.facecolor": "none",
        "axes.linewidth": 1.0,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "grid.color": light("line"),
        "grid.linewidth": 0.7,
        "xtick.color": light("line"),
        "ytick.color": light("line"),
        "xtick.labelcolor": light("muted"),
        "ytick.labelcolor": light("muted"),
        "xtick.labelsize": 9.5,
        "ytick.labelsize": 9.5,
        "xtick.major.size": 3.5,
        "ytick.major.size": 0,
        "ytick.minor.size": 0,
        "text.color": light("ink"),
        "figure.facecolor": light("surface"),
        "legend.frameon": False,
        "legend.fontsize": 9.5,
        "legend.labelcolor": light("muted"),
        "lines.linewidth": 1.8,
        "lines.solid_capstyle": "round",
        "hatch.linewidth": 0.7,
    }


def _mix(anchors: tuple[str, str, str], step: int) -> str:
    place = step / (N_RAMP - 1) * 2
    low = min(int(place), 1)
    part = place - low
    pairs = zip(_channels(anchors[low]), _channels(anchors[low + 1]), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * part):02x}" for a, b in pairs)


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _ink(background: str, step: int) -> str:
    # Relative luminance of WCAG 2.2; 0.179 is where black and white contrast alike.
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (channel / 255 for channel in _channels(background))
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return f"#0d11{0x14 + step:02x}" if luminance > 0.179 else f"#fcfd{0xF0 + step:02x}"
