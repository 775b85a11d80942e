"""The rights of the users of every database, one object each, so that a change reaches every session at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nun.core import record
from nun.core.requests.access import EVERYONE, PERMISSION_PREFIX, TOKEN_KEY, USER_PREFIX, Rights

if TYPE_CHECKING:
    from nun.core.network import NetworkCore


class SharedRights:
    """Rights by database and user, as the permission records have them."""

    def __init__(self, core: NetworkCore) -> None:
        self._core = core
        self._rights: dict[tuple[int, bytes], Rights] = {}

    def of(self, database: int, user: bytes, admin: bool) -> Rights:
        """The rights of a user in a database."""
        key = (database, b"" if admin else user)
        rights = self._rights.get(key)
        if rights is None:
            rights = self._rights[key] = Rights(admin)
            if not admin:
                self.refresh(database, user)
        return rights

    def refresh(self, database: int, user: bytes) -> None:
        """Reads a user's permission record again."""
        rights = self._rights.get((database, user))
        if rights is not None:
            packed = self._core.tables[database].records.get(PERMISSION_PREFIX + user)
            rights.set_record(
                None if packed is None or not record.is_live(packed) else record.value_of(packed),
                user,
            )

    def key_changed(self, database: int, key: bytes) -> None:
        """A key was changed; of a user, token or permission list sessions here must feel it."""
        if key.startswith(PERMISSION_PREFIX):
            self.refresh(database, key.removeprefix(PERMISSION_PREFIX))
        elif key.startswith(USER_PREFIX):
            self._core.admin.revoke(database, key.removeprefix(USER_PREFIX))
        elif key == TOKEN_KEY:
            self._core.admin.revoke(database, EVERYONE)
