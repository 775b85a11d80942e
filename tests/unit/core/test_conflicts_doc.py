"""docs/CONFLICTS.md draws the life of an entry from the code's own table, and names its bounds."""

from __future__ import annotations

from pathlib import Path

from nun import limits
from nun.core.conflicts.ledger import LIFE, NEW, STATES
from nun.core.record import ANCESTORS_MAX

TEXT = (Path(__file__).parents[3] / "docs" / "CONFLICTS.md").read_text()


def drawn() -> str:
    """The table of the document, made from that of the code."""
    lines = ["| state | what happens | next |", "|---|---|---|"]
    for state, ways in LIFE.items():
        lines += [f"| {state} | {what} | {after} |" for what, after in ways.items()]
    closed = [state for state, ways in LIFE.items() if not ways]
    lines.append(f"| {', '.join(closed)} | kept for `resolved_retention_s` | removed |")
    return "\n".join(lines)


def test_the_life_of_an_entry_is_that_of_the_code() -> None:
    begin = TEXT.index("<!-- life: from nun/core/conflicts/ledger.py -->\n")
    end = TEXT.index("\n<!-- end of life -->")
    assert TEXT[begin:end].split("\n", 1)[1] == drawn()


def test_every_state_can_be_reached() -> None:
    reached = {after for ways in LIFE.values() for after in ways.values()}
    assert reached == set(STATES)
    assert LIFE.keys() == {NEW, *STATES}


def test_numbers_that_the_text_names() -> None:
    assert (
        f"{limits.CLAIM_ENTRIES_MAX} entries or {limits.CLAIM_BYTES_MAX // limits.MIB} MiB" in TEXT
    )
    bound = f"{limits.BASES_MAX:,} or {limits.BASES_BYTES_MAX // limits.MIB} MiB"
    assert f"({bound} a database)" in TEXT
    assert f"the last {ANCESTORS_MAX} writes" in TEXT
