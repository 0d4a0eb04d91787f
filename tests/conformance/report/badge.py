"""A badge: one line about one manager, bound to its release and to the specification of today.

`badge.json` is an endpoint in the schema of shields.io; `badge.svg` needs no service.
"""

import json
from dataclasses import dataclass

from forge_conformance.report.markup import Html, tag
from forge_conformance.report.stored import FAILED, Mark, State, Stored
from forge_spec import digests

_COLOURS = {"durable": "#1a7f37", "strict": "#1a7f37", "core": "#5a7d1a", "none": "#9a5b00", "": "#59636e"}
_CHARACTER, _PADDING = 6.6, 6
"""Pixels of an average character at the size of the text, and on each side of a text."""


@dataclass(frozen=True)
class Badge:
    """A label, a message and a colour."""

    label: str
    message: str
    colour: str


def of(stored: Stored) -> Badge:
    """Return the badge of a manager; only a sound report of today's specification has a level in it."""
    label = f"forge-conformance {digests.of_specification()[:7]}"
    release = stored.release or stored.name
    state, _ = stored.state
    if state not in (State.COMPLETE, State.SOME):
        return Badge(label, f"{release}: {state}", _COLOURS[""])
    if stored.reached != "none":
        return Badge(label, f"{release}: level {stored.reached}", _COLOURS[stored.reached])
    counts = stored.counts()
    judged = counts[Mark.PASS] + sum(counts[mark] for mark in FAILED)
    return Badge(label, f"{release}: {counts[Mark.PASS]} of {judged} clauses", _COLOURS["none"])


def endpoint(badge: Badge) -> str:
    """Return the badge as JSON for shields.io."""
    values = {"schemaVersion": 1, "label": badge.label, "message": badge.message, "color": badge.colour}
    return json.dumps(values, indent=2) + "\n"


def svg(badge: Badge) -> str:
    """Return the badge as a picture."""
    left, right = (round(len(text) * _CHARACTER) + 2 * _PADDING for text in (badge.label, badge.message))
    said = f"{badge.label}: {badge.message}"
    parts = (
        tag("title", said),
        tag("rect", width=left + right, height=20, rx=3, fill="#24292f"),
        tag("rect", x=left, width=right, height=20, rx=3, fill=badge.colour),
        tag("rect", x=left, width=4, height=20, fill=badge.colour),
        _text(badge.label, _PADDING, left),
        _text(badge.message, left + _PADDING, right),
    )
    attributes = {"xmlns": "http://www.w3.org/2000/svg", "role": "img", "aria-label": said}
    return tag("svg", parts, width=left + right, height=20, **attributes) + "\n"


def _text(said: str, x: int, width: int) -> Html:
    font = "Verdana, DejaVu Sans, sans-serif"
    return tag("text", said, x=x, y=14, fill="#fff", font_family=font, font_size=11, textLength=width - 2 * _PADDING)
