"""Who may do what with which key.

Permissions are NunDB's: a user's record is the text `KINDS KEYS|KINDS KEYS ...`, KINDS letters of r (read), w (write),
i (increment), x (remove) and ours a (arbitrate), KEYS comma-separated patterns (`prefix*`, `*suffix`, else substring).
Without a record the database's own token (user `all`) may do everything, a named user nothing. Keys that begin with
`$$` are for administrators only, whatever a record says.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from nun.core.conflicts.ledger_keys import CONFLICT_PREFIX
from nun.core.keyspace import Pattern
from nun.errors import AuthError, BadRequest, PermissionDenied
from nun.limits import (
    SECRET_FAILURES_ANYWHERE_MAX,
    SECRET_FAILURES_MAX,
    SECRET_FAILURES_WINDOW_S,
    SECRETS_REMEMBERED_MAX,
)

TOKEN_KEY: Final = b"$$token"
USER_PREFIX: Final = b"$$user_"
PERMISSION_PREFIX: Final = b"$$permission_$"
CONNECTIONS_KEY: Final = b"$connections"
GUARDED_PREFIX: Final = b"$$"
EVERYONE: Final = b"all"  # the user that the database's own token stands for

_WINDOW_NS: Final = SECRET_FAILURES_WINDOW_S * 1_000_000_000

KINDS: Final = "rwixa"
KIND_NAMES: Final = {
    "r": "read",
    "w": "write",
    "i": "increment",
    "x": "remove",
    "a": "arbitrate",
}


def normalise_permissions(text: str) -> str:
    """Checks a permission list and gives its canonical form. Raises BadRequest."""
    entries = []
    for part in text.split("|"):
        kinds, _, keys = part.strip().partition(" ")
        unknown = set(kinds) - set(KINDS)
        patterns = [pattern.strip() for pattern in keys.split(",") if pattern.strip()]
        if not kinds or unknown or not patterns:
            raise BadRequest(
                f"permission {part.strip()!r} is not understood: expected letters of {KINDS}, a space, and "
                "patterns separated by commas, as in 'rw user:*,name'"
            )
        entries.append(f"{kinds} {','.join(patterns)}")
    return "|".join(entries)


def key_of_entry(entry: bytes) -> bytes:
    """The key that an entry of the ledger is about: who may read that may read the entry."""
    return entry.removeprefix(CONFLICT_PREFIX).rpartition(b"_")[0]


class Rights:
    """What one user may do in one database."""

    def __init__(self, admin: bool = False) -> None:
        self.admin = admin
        self.everything = admin
        self._patterns: dict[str, list[Pattern]] = {}

    def set_record(self, text: bytes | None, user: bytes) -> None:
        """Takes the user's permission record as it stands now, None where there is none."""
        self._patterns = {}
        self.everything = self.admin or (text is None and user == EVERYONE)
        for part in (text or b"").split(b"|"):
            kinds, _, keys = part.strip().partition(b" ")
            patterns = [Pattern(key) for key in keys.split(b",") if key]
            for kind in kinds.decode("ascii", "replace"):
                known = kind if kind in KINDS else "r"  # as NunDB reads them
                self._patterns.setdefault(known, []).extend(patterns)

    def allows(self, kind: str, key: bytes) -> bool:
        if self.admin:
            return True
        if key.startswith(GUARDED_PREFIX):
            return False
        if key.startswith(CONFLICT_PREFIX):
            return self.allows(kind, key_of_entry(key))
        return self.everything or any(
            pattern.matches(key) for pattern in self._patterns.get(kind, ())
        )

    def check(self, kind: str, key: bytes) -> None:
        """Raises PermissionDenied."""
        if not self.allows(kind, key):
            why = (
                "keys that begin with $$ are for administrators"
                if key.startswith(GUARDED_PREFIX)
                else f"this user may not {KIND_NAMES[kind]} it"
            )
            shown = key.decode("utf-8", "replace")
            raise PermissionDenied(f"key {shown!r}: {why}", key=key, kind=kind)

    def check_many(self, kind: str, keys: Iterable[bytes], joined: bytes) -> None:
        """Checks many keys at once; `joined` is all of them, one after the other."""
        if self.admin or (self.everything and b"$$" not in joined):
            return
        for key in keys:
            self.check(kind, key)


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who shows a secret: under which name, from where, and which client."""

    name: str
    address: str
    client_id: bytes


class Doorkeeper:
    """Remembers good secrets under a keyed hash, and closes the door after too many bad ones.

    I1  Bad secrets of one address close the door to that address alone; those of a client that has shown a good one
        before, to that client alone. So no stranger shuts out who is elsewhere, or was here before.
    I2  Work on unknown secrets is bounded per name, wherever they come from; known ones need no work.

    Args:
        secret: random bytes that live as long as the process; the cache is useless without them.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._good: dict[bytes, None] = {}
        self._known: dict[
            tuple[str, bytes], None
        ] = {}  # (name, client id) that showed a good secret
        self._failures: dict[tuple[str, str | bytes | None], tuple[int, int]] = {}
        # (name, address, known client id or None: anywhere) -> (count, ns of the first)

    def same(self, left: bytes, right: bytes) -> bool:
        """Compares two secrets in a time that does not depend on them."""
        digest = hashlib.sha256
        return hmac.compare_digest(digest(left).digest(), digest(right).digest())

    def _digest(self, given: bytes, stored: bytes) -> bytes:
        joined = len(given).to_bytes(4, "little") + given + stored
        return hashlib.blake2b(joined, key=self._secret[:64], digest_size=32).digest()

    def knows(self, given: bytes, stored: bytes) -> bool:
        """Whether this secret was found good against this stored hash before."""
        return self._digest(given, stored) in self._good

    def remember(self, given: bytes, stored: bytes) -> None:
        _keep(self._good, self._digest(given, stored), None)

    def succeeded(self, visitor: Visitor) -> None:
        """This client has shown a good secret for this name."""
        _keep(self._known, (visitor.name, visitor.client_id), None)

    def failed(self, visitor: Visitor, now_ns: int) -> None:
        """Counts a wrong secret."""
        for door in (self._door(visitor), (visitor.name, None)):
            count, since = self._failures.get(door, (0, now_ns))
            if now_ns - since > _WINDOW_NS:
                count, since = 0, now_ns
            _keep(self._failures, door, (count + 1, since))

    def admit(self, visitor: Visitor, now_ns: int) -> None:
        """Raises AuthError while the door is closed to this visitor."""
        self._check(self._door(visitor), SECRET_FAILURES_MAX, now_ns)

    def admit_unknown(self, visitor: Visitor, now_ns: int) -> None:
        """Raises AuthError while there were too many wrong secrets to work on another that is not known."""
        if (visitor.name, visitor.client_id) not in self._known:
            self._check((visitor.name, None), SECRET_FAILURES_ANYWHERE_MAX, now_ns)

    def _door(self, visitor: Visitor) -> tuple[str, str | bytes]:
        known = (visitor.name, visitor.client_id)
        return known if known in self._known else (visitor.name, visitor.address)

    def _check(self, door: tuple[str, str | bytes | None], bound: int, now_ns: int) -> None:
        count, since = self._failures.get(door, (0, 0))
        left = _WINDOW_NS - (now_ns - since)
        if count >= bound and left > 0:
            raise AuthError(
                f"too many wrong secrets for {door[0]}: try again in {left // 1_000_000_000 + 1} s",
                retry_after_ms=left // 1_000_000,
            )


def _keep(kept: dict[Any, Any], key: Any, value: Any) -> None:
    """Puts it last, and lets the first go when there are too many."""
    kept.pop(key, None)
    kept[key] = value
    if len(kept) > SECRETS_REMEMBERED_MAX:
        del kept[next(iter(kept))]
