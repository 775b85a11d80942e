"""Which requests change data, who decides them, and which refusals show nothing of what was decided."""

from __future__ import annotations

from typing import Final

from nun import messages as m
from nun.errors import (
    BadRequest,
    NoPrimary,
    NotServing,
    Overloaded,
    ReadOnly,
    SessionUnknown,
    TooLarge,
)

VIEWED: Final = (m.GET, m.GET_MANY)  # these may come with a view
WRITES_TO_KEYS: Final = frozenset({m.SET, m.REMOVE, m.INCREMENT, m.SET_MANY, m.BATCH})
OF_ARBITERS: Final = frozenset({m.CLAIM, m.RESOLVE, m.RELEASE})
IN_A_DATABASE: Final = WRITES_TO_KEYS | OF_ARBITERS  # they name a database, as the fifth element
DECIDED_BY_PRIMARY: Final = IN_A_DATABASE | {
    m.CREATE_DATABASE,
    m.ALTER_DATABASE,
    m.DROP_DATABASE,
    m.CREATE_USER,
    m.DROP_USER,
    m.SET_PERMISSIONS,
    m.OUTCOMES_SEEN,
    m.CHECK,
}
SHOWS_NOTHING: Final = (
    BadRequest,
    NoPrimary,
    NotServing,
    Overloaded,
    ReadOnly,
    SessionUnknown,
    TooLarge,
)
