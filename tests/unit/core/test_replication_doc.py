"""docs/REPLICATION.md draws the states of a replica from the code's own table."""

from __future__ import annotations

from pathlib import Path

from nun.core.replication.following import TRANSITIONS

DOCUMENT = Path(__file__).parents[3] / "docs" / "REPLICATION.md"


def drawn() -> str:
    """The table of the document, made from that of the code."""
    lines = ["| state | what happens | next |", "|---|---|---|"]
    for state, ways in TRANSITIONS.items():
        if not ways:
            lines.append(f"| {state} | the processes start anew from disk | |")
        lines += [f"| {state} | {what} | {after} |" for what, after in ways.items()]
    return "\n".join(lines)


def test_the_states_of_a_replica_are_those_of_the_code() -> None:
    text = DOCUMENT.read_text()
    begin = text.index("<!-- states: from nun/core/replication/following.py -->\n")
    end = text.index("\n<!-- end of states -->")
    assert text[begin:end].split("\n", 1)[1] == drawn()


def test_every_state_can_be_reached_and_left() -> None:
    reached = {after for ways in TRANSITIONS.values() for after in ways.values()}
    assert reached | {"idle"} == TRANSITIONS.keys()
