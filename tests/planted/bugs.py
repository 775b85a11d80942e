"""The list of planted bugs: what is broken, where, and which tests must notice.

`search` stands exactly once in `file` (a test sees to it, so that the list cannot rot); the named tests are the fast
ones that are run against the broken copy, and at least one of them has to fail.
"""

from __future__ import annotations

from typing import NamedTuple


class Bug(NamedTuple):
    """One bug to plant."""

    name: str
    what: str
    file: str
    search: str
    replacement: str
    tests: tuple[str, ...]


_STORE = ("tests/property/test_store_machine.py", "-m", "not long")
_ONCE = ("tests/process/test_exactly_once.py",)
_WATCH = ("tests/property/test_watch_machine.py", "-m", "not long")
_COMMIT = ("tests/unit/core/test_commit.py",)
_LOG = ("tests/unit/storage/test_oplog_crash.py", "tests/unit/storage/test_oplog_damage.py")
_GUARD = ("tests/process/test_guard.py",)
_CRASH = ("tests/process/test_crash.py", "-m", "not long")

_STORIES = ("tests/simulation/test_stories.py",)
_LIVES = ("tests/simulation/test_seeds.py", "-k", "clusters_keep", "-m", "not long")
_REPLICATORS = ("tests/unit/core/test_replicator.py", "tests/unit/core/test_promotion.py")
_CONFLICTS = ("tests/simulation/test_seeds.py", "-k", "clusters_with_conflicts", "-m", "not long")
_CONFLICT_STORIES = ("tests/simulation/test_conflict_stories.py",)
_WATCHES = ("tests/unit/client/test_watches.py",)
_SUPERVISOR = ("tests/unit/actors/test_supervisor.py",)
_REPLICAS = ("tests/unit/core/test_replicas.py",)

BUGS: tuple[Bug, ...] = (
    Bug(
        "reply-before-durable",
        "replies to writes go out at once, before the disk has them",
        "nun/core/network.py",
        "            waits_for.replies.append((session.peer, frame))\n",
        "            self.out.sends.append((session.peer, frame))\n",
        _STORE,
    ),
    Bug(
        "read-not-waiting",
        "a read shows a record that is not durable yet",
        "nun/core/requests/data.py",
        """            waits_for = self._stream.waits_for(database, (key,))
        core.reply(session, number, packed, waits_for=waits_for)
""",
        """            waits_for = None
        core.reply(session, number, packed, waits_for=waits_for)
""",
        _STORE,
    ),
    Bug(
        "request-rows-forgotten",
        "request rows do not survive a restart",
        "nun/core/state.py",
        """        elif kind == fx.OUTCOME:
            self._outcome(position, effect)
""",
        """        elif kind == fx.OUTCOME and not isinstance(effect, list):
            self._outcome(position, effect)
""",
        _STORE,
    ),
    Bug(
        "floor-ignored",
        "a request below its client's floor is carried out again",
        "nun/core/network.py",
        """            if number < client.floor:
                raise OutcomeExpired""",
        """            if number < 0:
                raise OutcomeExpired""",
        _STORE,
    ),
    Bug(
        "expired-client-executes",
        "a retry of a client that was forgotten is carried out again",
        "nun/core/network.py",
        "        if again and self.state.may_have_forgotten(client, number, session.born):\n",
        "        if again and session.born < 0:\n",
        _ONCE,
    ),
    Bug(
        "op-ids-reused-after-restart",
        "the clock forgets the highest op id of the state",
        "nun/core/network.py",
        "Clock(number, state.highest_op_id)",
        "Clock(number, 0)",
        _STORE,
    ),
    Bug(
        "position-reused",
        "an entry may get the position of the one before",
        "nun/core/stream.py",
        "            self.open = PendingEntry(Position.at(self.epoch, self.last_seq + 1))\n",
        "            seq = self.last_seq + (self.last_seq % 20 != 19)\n"
        "            self.open = PendingEntry(Position.at(self.epoch, seq))\n",
        _STORE,
    ),
    Bug(
        "atomic-applies-half",
        "an atomic batch that is refused keeps what it did before the refusal",
        "nun/core/requests/batch.py",
        "            decided.put_back()\n",
        "",
        _STORE,
    ),
    Bug(
        "tombstone-forgets-version",
        "a removed key starts again at version 1",
        "nun/core/accept.py",
        "    version: int = word & ~SPECIAL\n    new = version + 1\n",
        "    version: int = word & ~SPECIAL if word < SPECIAL else 0\n    new = version + 1\n",
        _STORE,
    ),
    Bug(
        "version-rule-off-by-one",
        "NunDB's version rule refuses the version that is current",
        "nun/core/accept.py",
        "            if number < version:\n",
        "            if number <= version:\n",
        _STORE,
    ),
    Bug(
        "session-token-unchecked",
        "whoever has a session's routing id has the session",
        "nun/core/network.py",
        "            if session is None or session.token != token:\n",
        "            if session is None:\n",
        _GUARD,
    ),
    Bug(
        "batch-permissions-skipped",
        "the keys of a batch are not held against the user's permissions",
        "nun/core/requests/batch.py",
        "                rights.check_many(RIGHT_OF[kind], named, joined)\n",
        "                named = []\n",
        _GUARD,
    ),
    Bug(
        "guarded-keys-open",
        "keys that begin with $$ are treated like any other",
        "nun/core/requests/access.py",
        """        if key.startswith(GUARDED_PREFIX):
            return False
""",
        "",
        _GUARD,
    ),
    Bug(
        "wrong-secrets-uncounted",
        "guessing passwords is free",
        "nun/core/requests/access.py",
        "            _keep(self._failures, door, (count + 1, since))\n",
        "            _keep(self._failures, door, (count, since))\n",
        _GUARD,
    ),
    Bug(
        "watcher-skips-without-credit",
        "what a watcher has no credit for is dropped, not kept for later",
        "nun/core/requests/watching.py",
        "                    self._fall_behind(watch, body.first_seq, body.skip)\n",
        "                    continue\n",
        _WATCH,
    ),
    Bug(
        "watcher-repeats-its-last-event",
        "a watcher that fell behind within an entry is told its first events again",
        "nun/core/requests/watching.py",
        "        watch.next_seq, watch.skip = seq, skip\n",
        "        watch.next_seq, watch.skip = seq, 0\n",
        _WATCH,
    ),
    Bug(
        "compaction-not-told",
        "a watch from a position that is gone goes on from now without a word",
        "nun/core/requests/watching.py",
        """        else:
            self.compacted(watch.number)

    def end(""",
        """        else:
            self._go_live(watch)

    def end(""",
        _WATCH,
    ),
    Bug(
        "unread-replies-unbounded",
        "a client that never reads may make the node hold any number of replies",
        "nun/core/network.py",
        "            if session.unread_bytes > self.settings.unread_bytes_max and kind != m.PING:\n",
        "            if session.unread_bytes < 0:\n",
        ("tests/process/test_overload.py", "-k", "large_replies"),
    ),
    Bug(
        "pending-unbounded",
        "writes are taken without bound while the disk stands still",
        "nun/core/network.py",
        "        if pending > self.settings.pending_bytes_max and self.stream.pending:\n",
        "        if pending < 0:\n",
        ("tests/process/test_overload.py", "-k", "stands_still_overloads"),
    ),
    Bug(
        "fsync-skipped",
        "the log is called durable without a sync",
        "storage/oplog.py",
        """        try:
            self._file.sync()
        except OSError as error:
            self._failed = error
            raise
        self._synced""",
        """        self._synced""",
        _LOG,
    ),
    Bug(
        "durable-before-sync",
        "under `always`, entries are announced as durable when they are merely appended",
        "nun/core/commit.py",
        '        return self.synced if self.policy == "always" else self.appended\n',
        "        return self.appended\n",
        _COMMIT,
    ),
    Bug(
        "gap-ignored",
        "an entry that does not continue the log is dropped without asking for what is missing",
        "nun/core/commit.py",
        """            elif seq > self._known_seq:
                self._known_seq = seq
""",
        "",
        _COMMIT,
    ),
    Bug(
        "log-checksum-unchecked",
        "the payload of a record of the log is taken whatever its checksum says",
        "storage/segment.py",
        "            or _crc32(data[begin : begin + length], head_crc) != crc\n",
        "",
        _LOG,
    ),
    Bug(
        "row-checksum-unchecked",
        "a record of the keys and values files is served whatever its checksum says",
        "storage/recovery.py",
        "            if crc32(packed, crc32(keys[offset:end])) != crc:\n",
        "            if crc == -1:\n",
        ("tests/process/test_damage.py",),
    ),
    Bug(
        "torn-tail-kept",
        "what a crash left behind the last valid record stays in the log",
        "storage/log_recovery.py",
        "                self._cut(number, numbers[index + 1 :])\n",
        "",
        _LOG,
    ),
    Bug(
        "tail-not-counted",
        "a record that is replaced gives back its value, and the bytes of its tail count for ever",
        "storage/snapshot.py",
        "    return size + size_at(address + size)\n",
        "    return size\n",
        ("tests/unit/storage/test_snapshot.py",),
    ),
    Bug(
        "conflict-taken-for-a-free-row",
        "a key that was absent and is in conflict is lost when the files are written anew",
        "storage/layout.py",
        "    return not word and not op_id\n",
        "    return not op_id\n",
        ("tests/property/test_snapshot_life.py",),
    ),
    Bug(
        "plan-not-carried-out",
        "recovery forgets the updates that a committed snapshot had planned",
        "storage/base.py",
        "        if side.plan:\n",
        "        if side.plan and not side.name:\n",
        ("tests/property/test_snapshot_life.py",),
    ),
    Bug(
        "marker-skipped",
        "a replica says where it stands before its subscription is proven",
        "nun/core/replication/following.py",
        "        self.state = CONNECTING\n",
        "        self.state = STANDING\n",
        _STORIES,
    ),
    Bug(
        "private-subscription-first",
        "the marker's topic sorts before the others",
        "nun/peer_messages.py",
        'TOPIC_MARKER: Final = b"~"',
        'TOPIC_MARKER: Final = b"A"',
        _STORIES,
    ),
    Bug(
        "tail-beat-ignored",
        "a beat whose last entry has not come is passed over",
        "nun/core/replication/following.py",
        "        if last > core.last_seq:\n            self._catch_up()\n",
        "        if last < 0:\n            self._catch_up()\n",
        _STORIES,
    ),
    Bug(
        "older-epoch-applied",
        "entries of an epoch that is over are taken",
        "nun/core/history.py",
        "        return position.epoch >= self.epoch or position.seq < self.first_seq\n",
        "        return True\n",
        _REPLICAS,
    ),
    Bug(
        "ack-before-durable",
        "a replica acks what it has handed down, not what is on its disk",
        "nun/core/replication/following.py",
        "(pm.ACK, self.epoch, core.durable_seq, core.last_seq)",
        "(pm.ACK, self.epoch, core.last_seq, core.last_seq)",
        _LIVES,
    ),
    Bug(
        "copy-takes-back",
        "a copy takes the place of the log, and what only that log had is not proposed again",
        "actors/keeping.py",
        "copying.end(self._writer.directory.disk, self._give_up_for)",
        "copying.end(self._writer.directory.disk, lambda _: None)",
        _STORIES,
    ),
    Bug(
        "an-empty-directory-votes",
        "a node that has just joined with an empty directory helps another to a majority",
        "nun/core/replication/promotion.py",
        "        elif not core.coordinator.holds_admission:\n            # A",
        "        elif False:\n            # A",
        _STORIES,
    ),
    Bug(
        "promise-forgotten",
        "a promise is told without being kept on disk",
        "actors/keeping.py",
        "        self._identity = self._writer.directory.keep_promise(reign, number)\n",
        "        self._identity = self._identity._replace(promise=(reign, number))\n",
        _STORIES,
    ),
    Bug(
        "same-epoch-again",
        "a primary that starts anew goes on in the epoch of its last life",
        "storage/directory.py",
        "        identity = known._replace(start=known.start + 1)\n",
        "        identity = known\n",
        _STORIES,
    ),
    Bug(
        "acks-of-older-epochs-counted",
        "an ack counts whatever epoch it is of",
        "nun/core/replication/serving.py",
        "        if not core.leads or epoch != core.epoch or name not in core.member_names:\n",
        "        if not core.leads or name not in core.member_names:\n",
        _REPLICATORS,
    ),
    Bug(
        "promise-binds-once-on-disk",
        "a node follows the old primary while the promise to a new one is being written",
        "nun/core/replication/replicator.py",
        "(each for each in (self.promise, self.wished) if each is not None)",
        "(each for each in (self.promise,) if each is not None)",
        _REPLICATORS,
    ),
    Bug(
        "settled-after-the-promise",
        "a primary that has promised itself to another goes on counting disks",
        "nun/core/replication/serving.py",
        "        if not core.leads or core.epoch is None or core.older(core.epoch):\n",
        "        if not core.leads:\n",
        _REPLICATORS,
    ),
    Bug(
        "outbox-forgotten-at-start",
        "local writes of an earlier life are not proposed",
        "actors/network.py",
        "self.held(read_outbox(disk), loaded.state)\n",
        "self.held((read_outbox(disk)[0], []), loaded.state)\n",
        _STORIES,
    ),
    Bug(
        "digest-of-what-came-later",
        "a digest that takes several beats sees what changes meanwhile",
        "nun/core/digests.py",
        "iter(records.copy().items())\n",
        "iter(list(records) and ((key, records[key]) for key in list(records)))\n",
        ("tests/unit/core/test_digests.py",),
    ),
    Bug(
        "echo-believed",
        "an echo is taken for its entry whatever its origin had kept",
        "nun/core/replication/echoes.py",
        "        if crc32(frame) != crc:\n",
        "        if not frame:\n",
        ("tests/unit/core/test_echoes.py",),
    ),
    Bug(
        "repeat-taken-for-the-first",
        "an item below the floor is decided without asking what its node has seen since",
        "nun/core/proposals/repeats.py",
        "    return verdict != LATER and max(late, default=0) <= seen.seq\n",
        "    return verdict != LATER\n",
        ("tests/unit/core/test_repeats.py",),
    ),
    Bug(
        "refused-in-the-ledger-alone",
        "what is finally refused, and cut off by a forced promotion, is nowhere",
        "nun/core/proposals/items.py",
        "        self._core.stream.add(lost(write_of(item, operation, database or 0)))\n",
        "",
        ("tests/unit/core/test_cut_off_items.py", "tests/simulation/test_forced_stories.py"),
    ),
    Bug(
        "too-late-and-done",
        "what one node calls too late is done for another",
        "nun/core/proposals/items.py",
        "(verdict != OPEN or self._has_entry(item, info))",
        "verdict != OPEN",
        ("tests/unit/core/test_cut_off_items.py",),
    ),
    Bug(
        "repeat-of-what-stays-done-again",
        "what was too late, and is cut off, is taken for undecided in the part of the history that stays",
        "nun/core/proposals/outbox.py",
        "        bound_ms,\n        NOTHING,\n",
        "        bound_ms,\n        Position(99, 1, 1, 10**9),\n",
        ("tests/unit/core/test_cut_off_items.py",),
    ),
    Bug(
        "refused-here-forgotten",
        "what another history had acknowledged and this one refused is dropped",
        "nun/core/proposals/items.py",
        "            self._keep(item, refused, None if info is None else info.number)\n",
        "",
        ("tests/unit/core/test_repeats.py",),
    ),
    Bug(
        "refused-part-forgotten",
        "of a batch that another history had acknowledged, what this one refused is dropped",
        "nun/core/proposals/repeats.py",
        "                return REFUSED, encode_item(item._replace(operations=refused))\n",
        "                return DONE, data\n",
        ("tests/unit/core/test_repeats.py",),
    ),
    Bug(
        "outbox-dropped-at-decision",
        "an item leaves the outbox when it is decided, not when that is settled",
        "nun/core/proposals/tentative.py",
        "        while self._decided and self._decided[0][0] <= seq:\n",
        "        while self._decided:\n",
        _STORIES,
    ),
    Bug(
        "request-rows-lost-on-promotion",
        "who becomes primary forgets what became of requests",
        "nun/core/roles.py",
        "        core.settle()\n        self.role = pm.ROLE_PRIMARY\n",
        "        core.settle()\n        state.clients.clear()\n        self.role = pm.ROLE_PRIMARY\n",
        _STORIES,
    ),
    Bug(
        "retry-answered-early",
        "a retry of a write that is not durable yet is answered at once",
        "nun/core/requests/data.py",
        "        waits_for = self._stream.at(row.position.seq)\n        result = row.result\n",
        "        waits_for = None\n        result = row.result\n",
        _STORIES,
    ),
    Bug(
        "late-write-judged-as-new",
        "a write that is proposed again wins over what it has not seen",
        "nun/core/proposals/items.py",
        "        return operation.base != record.op_id_of(old) and (bool(operation.base) or alive)\n",
        "        return False\n",
        _STORIES,
    ),
    Bug(
        "watch-skips-after-reading-the-log",
        "a watch that has read the log goes on one entry too far",
        "nun/core/requests/watching.py",
        "            watch.next_seq, watch.skip = last_seq + 1, 0\n",
        "            watch.next_seq, watch.skip = last_seq + 2, 0\n",
        _LIVES,
    ),
    Bug(
        "watch-resumes-by-seq-alone",
        "after a lost link a watch goes on behind the entry before its last one, whatever stands there now",
        "nun/client/watches.py",
        "        return self.position\n",
        "        return self._since\n",
        _WATCHES,
    ),
    Bug(
        "majority-read-shows-tentative",
        "a majority read shows what this node has only taken",
        "nun/core/requests/data.py",
        """        if core.tentative.shown and core.level is None:
            tentative =""",
        """        if core.tentative.shown:
            tentative =""",
        ("tests/unit/core/test_changes_of_primary.py", "-k", "majority_read"),
    ),
    Bug(
        "notice-to-nobody",
        "the writer of a losing write is not told",
        "nun/core/conflicts/ledger.py",
        "        pending = core.stream.add((fx.NOTICE, write.client_id, write.op_id, notice))\n",
        "        pending = core.stream.add((fx.NOTICE, b'', write.op_id, notice))\n",
        _LIVES,
    ),
    Bug(
        "sent-twice-by-a-new-primary",
        "what goes out in the turn in which a node decides its own proposals goes out twice",
        "nun/core/proposals/forwarding.py",
        "            core.out.sends = []  # it was the list that was taken apart above\n",
        "",
        ("tests/unit/core/test_changes_of_primary.py",),
    ),
    Bug(
        "failed-sync-believed",
        "recovery takes for durable what a failed sync left in memory",
        "storage/log_recovery.py",
        "                    begin = self._unproven(data, segment)\n",
        "                    begin = segment.end\n",
        ("tests/unit/storage/test_oplog.py", "-k", "failed_sync"),
    ),
    Bug(
        "resolution-of-what-was-not-shown",
        "a resolution is carried out though the key holds something else by now",
        "nun/core/conflicts/decisions.py",
        "        if record.op_id_of(held) != shown and not absent:\n",
        "        if shown < 0:\n",
        ("tests/unit/core/test_arbitration.py", "tests/unit/core/test_conflicts.py"),
    ),
    Bug(
        "late-attempt-accepted",
        "a resolution passes though its claim has ended",
        "nun/core/conflicts/arbitration.py",
        "            elif good:\n",
        "            elif good or waiting.attempt:\n",
        _CONFLICT_STORIES,
    ),
    Bug(
        "resolution-closes-too-much",
        "a resolution closes the entry after those that it names, too",
        "nun/core/conflicts/decisions.py",
        "            for entry in queue.entries[: len(op_ids)]\n",
        "            for entry in queue.entries[: len(op_ids) + 1]\n",
        _CONFLICTS,
    ),
    Bug(
        "claim-outlives-its-arbiter",
        "what an arbiter had claimed is not offered again when it leaves",
        "nun/core/conflicts/manager.py",
        """            for key in sorted(arbiter.claims):
                self._wait_again(key)
""",
        "            arbiter.claims.clear()\n",
        _CONFLICT_STORIES,
    ),
    Bug(
        "ledger-not-replicated",
        "entries of the ledger stay in the primary's memory",
        "nun/core/conflicts/ledger.py",
        "        core.stream.add((fx.MADE, database, stamp, list(places), new, False))\n",
        "",
        _STORIES,
    ),
    Bug(
        "displaced-by-a-fallback-untold",
        "the writer whose value a fallback displaces has no entry of the ledger, and is not told",
        "nun/core/conflicts/decisions.py",
        "        if winner is not None and winner.base",
        "        if winner is False and winner.base",
        ("tests/unit/core/test_arbitration.py", "-k", "fallback"),
    ),
    Bug(
        "fallback-fires-again",
        "a deadline that has passed ends what came to the queue later, too",
        "nun/core/conflicts/decisions.py",
        "            if one.opened_ms + rules.timeout_ms > core.unix_ms:\n",
        "            if one.opened_ms > core.unix_ms:\n",
        _CONFLICT_STORIES,
    ),
    Bug(
        "outcome-sent-twice",
        "the writer of a losing write is told twice",
        "nun/core/conflicts/ledger.py",
        "        pending = core.stream.add((fx.NOTICE, write.client_id, write.op_id, notice))\n",
        "        core.stream.add((fx.NOTICE, write.client_id, write.op_id, notice))\n"
        "        pending = core.stream.add((fx.NOTICE, write.client_id, write.op_id, notice))\n",
        _STORIES,
    ),
    Bug(
        "snapshot-before-the-first-entry",
        "a snapshot of NunDB's files may be taken before what becomes of their tokens is decided",
        "storage/snapshot.py",
        "            if store.fresh is not None and not up_to_seq:\n",
        "            if store.fresh is not None and not self:\n",
        ("tests/unit/storage/test_nundb.py", "-k", "first_entry"),
    ),
    Bug(
        "log-alone-for-others",
        "a replica of a node that began on NunDB's files is given the log alone",
        "actors/keeping.py",
        "2 if writer.snapshots.from_nundb else 0",
        "0",
        ("tests/simulation/test_nundb.py",),
    ),
    Bug(
        "resolve-records-kept",
        "a write that waited in NunDB is opened, and its record stays as well",
        "nun/core/newcomers.py",
        "                waiting.setdefault(found.key, []).append(found)\n                gone.append(place)\n",
        "                waiting.setdefault(found.key, []).append(found)\n",
        ("tests/unit/core/test_newcomers.py",),
    ),
    Bug(
        "forked-beside-threads",
        "a child is forked while the supervisor has a ZeroMQ context",
        "actors/starting.py",
        'return len(os.listdir("/proc/self/task")) == 1',
        'return len(os.listdir("/proc/self/task")) > 0',
        _SUPERVISOR,
    ),
    Bug(
        "descriptors-inherited",
        "a forked child keeps what its supervisor had open",
        "actors/starting.py",
        '        os.closerange(first, os.sysconf("SC_OPEN_MAX"))\n',
        "",
        _SUPERVISOR,
    ),
)
