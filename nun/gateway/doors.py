"""Who may come in: names and tokens of NunDB's clients, and the sessions with the network process that serve them.

All clients that come as the same user share one session; it has its own client id, the same after a restart, so that
what became of its late writes reaches it. A secret that is not known yet is tried in a session of its own, in the name
of the address that it came from: wrong guesses close the door to that address, and to nobody else.

I1  A secret is held as a keyed hash only.
I2  A selection that the node has taken back (another token, a dropped database) is not given out again, nor one whose
    token has since been replaced: in the node's eyes all who come as one user are one session.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, Final

from nun import messages as m
from nun.client import operations as ops
from nun.client.aio import AsyncClient
from nun.client.request import Grant
from nun.client.settings import Settings
from nun.errors import AuthError, NunError, RequestError
from nun.gateway.lanes import Lane
from nun.limits import SECRETS_REMEMBERED_MAX

ADMIN: Final = b"$admin"  # in the place of a user's name: the session of the administrator
_TRIALS_MAX: Final = 16  # unknown secrets tried at the same time


class Selected:
    """A database as one user.

    Attributes:
        revoked: the node has taken it back.
    """

    def __init__(self, client: AsyncClient, grant: Grant, database: bytes, local: bool) -> None:
        self.client = client
        self.grant = grant
        self.database = database
        self.revoked = False
        self.reads = Lane(self, None)
        self.writes = Lane(self, m.ACK_LOCAL if local else m.ACK_PRIMARY)

    def select_again(self) -> None:
        """The next request shows its token anew."""
        self.grant.generation = self.grant.asked = 0


class Doors:
    """See the module's docstring.

    Args:
        address: of the network process. secret: that it knows its gateway by. node: the name of this node.
        local: whether writes are answered before the primary has decided.
        background: keeps a task until it ends.
        on_outcome: is told what became of writes that were answered before they were decided.
    """

    def __init__(
        self,
        address: str,
        secret: bytes,
        node: str,
        local: bool,
        background: Callable[[Coroutine[Any, Any, None]], Any],
        on_outcome: Callable[[Any], None],
    ) -> None:
        self._address = address
        self._secret = secret
        self._node = node
        self._local = local
        self._background = background
        self._on_outcome = on_outcome
        self._key = secrets.token_bytes(32)
        self._clients: dict[bytes | None, AsyncClient] = {}
        self._selected: dict[tuple[bytes | None, bytes, bytes], Selected] = {}
        self._admins: dict[bytes, None] = {}
        self._trials = asyncio.Semaphore(_TRIALS_MAX)

    def _settings(self, origin: str, user: Any = None, password: Any = None) -> Settings:
        checked = Settings.checked(self._address, user, password, None, 10.0, None, None)
        return replace(checked, origin=(self._secret, origin))

    def _client(self, user: bytes | None) -> AsyncClient:
        """The session that everybody shares who comes as this user."""
        client = self._clients.get(user)
        if client is None:
            digest = hashlib.blake2b(repr((self._node, user)).encode(), digest_size=16)
            client_id = b"gateway:" + digest.hexdigest().encode()
            settings = replace(self._settings(""), client_id=client_id)
            client = self._clients[user] = AsyncClient._of(settings)
            self._background(self._hear(client))
        return client

    async def _hear(self, client: AsyncClient) -> None:
        """What became of writes that were answered before they were decided."""
        async for outcome in client.outcomes():
            self._on_outcome(outcome)

    def _digest(self, *parts: bytes) -> bytes:
        digest = hashlib.blake2b(key=self._key, digest_size=32)
        for part in parts:
            digest.update(len(part).to_bytes(4, "little") + part)
        return digest.digest()

    async def admit(self, origin: str, user: bytes, password: bytes) -> bool:
        """Whether these are the administrator's. Raises NunError when that cannot be told."""
        digest = self._digest(user, password)
        if digest in self._admins:
            return True
        async with self._trials:
            trial = AsyncClient._of(self._settings(origin, user, password))
            try:
                await trial._run(ops.ping())
            except AuthError:
                return False
            finally:
                await trial.close()
        if ADMIN not in self._clients:
            client_id = b"gateway:" + self._node.encode()[:40] + b":admin"
            settings = replace(self._settings("", user, password), client_id=client_id)
            self._clients[ADMIN] = AsyncClient._of(settings)
            self._background(self._hear(self._clients[ADMIN]))
        self._admins[digest] = None
        return True

    @property
    def admin(self) -> AsyncClient:
        """The administrator's session: there once somebody was admitted."""
        return self._clients[ADMIN]

    async def select(
        self, origin: str, admin: bool, database: bytes, user: bytes | None, token: bytes
    ) -> Selected:
        """A database for somebody who shows a token. Raises AuthError, NoSuchDatabase, ..."""
        who = ADMIN if admin else user
        place = (who, database, self._digest(user or b"", token))
        selected = self._selected.get(place)
        if selected is not None and not selected.revoked:
            return selected
        async with self._trials:
            trial = AsyncClient._of(self._settings(origin))
            try:
                await trial.database(database, token, user)
            finally:
                await trial.close()
        client = self.admin if admin else self._client(user)
        grant = Settings.grant(database, None if admin else user, None if admin else token)
        await client._run(ops.ping(grant))
        selected = self._selected.get(place)
        if selected is not None and not selected.revoked:
            return selected  # somebody else came with it at the same time
        selected = Selected(client, grant, database, self._local)
        if not admin:  # a user has one token at a time: what was selected with another is void
            for (other, name, _), one in self._selected.items():
                if other == user and name == database:
                    one.revoked = True
        self._selected.pop(place, None)
        self._selected[place] = selected
        if len(self._selected) > SECRETS_REMEMBERED_MAX:
            del self._selected[next(iter(self._selected))]
        return selected

    def sessions_in(self, database: bytes) -> int:
        """How many of the gateway's own sessions have selected a database."""
        clients = {
            id(one.client)
            for one in self._selected.values()
            if one.database == database and not one.revoked
        }
        return len(clients)

    async def close(self) -> None:
        for client in self._clients.values():
            try:
                await client.close()
            except (NunError, RequestError):
                pass
