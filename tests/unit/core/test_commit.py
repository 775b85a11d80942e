"""Group commit: contiguity, gaps, older epochs, and what each policy may call durable and when."""

from __future__ import annotations

import random

import pytest

from nun.core import effects as fx
from nun.core.commit import GAP_PATIENCE_MS, Commit
from nun.errors import WireError
from nun.position import Epoch, Position

FIRST = Epoch(1, 1, 1)
SECOND = Epoch(1, 1, 2)
REIGN = Epoch(2, 1, 1)


def at(seq: int, epoch: Epoch = FIRST) -> Position:
    return Position.at(epoch, seq)


def frame(seq: int, epoch: Epoch = FIRST) -> bytes:
    return fx.encode_entry(at(seq, epoch), [[fx.FORGET, [], seq]])


def frames(*seqs: int) -> list[bytes]:
    return [frame(seq) for seq in seqs]


def beat(last_seq: int, epoch: Epoch = FIRST) -> bytes:
    return fx.encode_beat(epoch, last_seq)


def commit(last: int | None = 10, policy: str = "always", interval_ms: int = 100) -> Commit:
    return Commit(None if last is None else at(last), policy, interval_ms)


def seqs(taken: list[tuple[Position, bytes]]) -> list[int]:
    return [position.seq for position, _ in taken]


class TestTaking:
    def test_an_empty_log_begins_with_seq_1(self) -> None:
        core = commit(None)
        assert core.take([frame(1), frame(2)]) == [(at(1), frame(1)), (at(2), frame(2))]
        assert core.next_seq == 3

    def test_a_log_goes_on_behind_its_last_entry(self) -> None:
        assert seqs(commit(10).take(frames(11, 12))) == [11, 12]

    def test_nothing_comes_of_nothing(self) -> None:
        core = commit()
        assert core.take([]) == []
        assert core.gap(0) is None

    def test_what_is_here_already_is_passed_over(self) -> None:
        core = commit()
        assert seqs(core.take(frames(9, 10, 11, 11, 10, 12))) == [11, 12]
        assert core.take(frames(11, 12)) == []
        assert core.gap(0) is None

    def test_behind_a_hole_nothing_is_taken(self) -> None:
        core = commit()
        assert seqs(core.take(frames(11, 13, 14))) == [11]
        assert core.gap(0) == 12

    def test_a_resend_fills_the_hole(self) -> None:
        core = commit()
        core.take(frames(12, 13))
        assert core.gap(0) == 11
        assert seqs(core.take(frames(11, 12, 13))) == [11, 12, 13]
        assert core.gap(1) is None

    def test_an_epoch_may_rise_and_must_be_contiguous(self) -> None:
        core = commit()
        assert core.take([frame(12, SECOND)]) == []
        assert core.gap(0) == 11
        assert seqs(core.take([frame(11), frame(12, SECOND), frame(13, REIGN)])) == [11, 12, 13]

    def test_an_entry_of_an_older_epoch_is_never_taken(self) -> None:
        core = commit()
        assert seqs(core.take([frame(11, REIGN)])) == [11]
        assert core.take([frame(12), frame(12, SECOND), frame(13, FIRST)]) == []
        assert core.gap(0) is None, "an older epoch knows nothing that we miss"
        assert seqs(core.take([frame(12, REIGN)])) == [12]

    def test_an_older_epoch_within_one_turn(self) -> None:
        core = commit()
        assert seqs(core.take([frame(11, SECOND), frame(12, FIRST), frame(12, SECOND)])) == [11, 12]

    @pytest.mark.parametrize("bad", [b"", b"\xc1", b"\x90", fx.encode_beat(FIRST, 1)[:-1]])
    def test_what_is_no_frame_is_an_error_and_changes_nothing(self, bad: bytes) -> None:
        core = commit()
        with pytest.raises(WireError):
            core.take([frame(11), bad])
        assert core.received == at(10)


class TestGaps:
    def test_a_beat_behind_the_last_entry_shows_a_lost_tail(self) -> None:
        core = commit()
        assert core.take([beat(10)]) == []
        assert core.gap(0) is None
        assert core.take([beat(11)]) == []
        assert core.gap(0) == 11

    def test_a_beat_of_the_next_seq_is_no_entry(self) -> None:
        core = commit()
        assert core.take([beat(11), frame(11)]) == [(at(11), frame(11))]
        assert core.gap(0) is None

    def test_a_beat_of_an_older_epoch_says_nothing(self) -> None:
        core = commit()
        core.take([frame(11, SECOND), beat(20, FIRST)])
        assert core.gap(0) is None

    def test_a_beat_into_an_empty_log(self) -> None:
        core = commit(None)
        core.take([beat(0)])
        assert core.gap(0) is None
        core.take([beat(3)])
        assert core.gap(0) == 1

    def test_a_gap_is_asked_for_again_after_a_while_only(self) -> None:
        core = commit()
        core.take([beat(12)])
        assert core.gap(1000) == 11
        core.take([beat(12)])
        assert core.gap(1000 + GAP_PATIENCE_MS - 1) is None
        assert core.gap(1000 + GAP_PATIENCE_MS) == 11
        assert core.gap(1000 + GAP_PATIENCE_MS + 1) is None

    def test_a_part_of_the_answer_moves_the_gap(self) -> None:
        core = commit()
        core.take([beat(14)])
        assert core.gap(0) == 11
        core.take(frames(11, 12))
        assert core.gap(1) is None
        assert core.gap(GAP_PATIENCE_MS) == 13

    def test_a_new_gap_is_asked_for_at_once(self) -> None:
        core = commit()
        core.take([beat(11)])
        assert core.gap(0) == 11
        core.take(frames(11))
        assert core.gap(1) is None
        core.take(frames(13))
        assert core.gap(2) == 12


class TestPolicies:
    def test_always_waits_for_the_sync(self) -> None:
        core = commit(policy="always")
        core.take(frames(11, 12))
        assert core.durable() is None
        core.was_appended(at(12))
        assert core.durable() is None
        assert core.wants_sync(0)
        core.was_synced(at(12), 0)
        assert core.durable() == at(12)
        assert core.durable() is None
        assert not core.wants_sync(0)

    def test_a_sync_covers_what_was_appended_when_it_began(self) -> None:
        core = commit(policy="always")
        core.take(frames(11, 12))
        core.was_appended(at(11))
        core.was_appended(at(12))
        core.was_synced(at(11), 0)
        assert core.durable() == at(11)
        assert core.wants_sync(0)

    @pytest.mark.parametrize("policy", ["interval", "never"])
    def test_the_others_announce_what_was_appended(self, policy: str) -> None:
        core = commit(policy=policy)
        core.take(frames(11, 12))
        assert core.durable() is None
        core.was_appended(at(11))
        assert core.durable() == at(11)
        assert core.durable() is None
        core.was_appended(at(12))
        core.was_synced(at(12), 0)
        assert core.durable() == at(12)

    def test_interval_syncs_at_its_interval_and_only_what_is_new(self) -> None:
        core = commit(policy="interval", interval_ms=100)
        assert not core.wants_sync(5000)
        core.take(frames(11, 12))
        core.was_appended(at(11))
        assert core.wants_sync(5000)
        core.was_synced(at(11), 5000)
        assert not core.wants_sync(5100)
        core.was_appended(at(12))
        assert not core.wants_sync(5099)
        assert core.wants_sync(5100)

    def test_never_never_syncs(self) -> None:
        core = commit(policy="never")
        core.take(frames(11))
        core.was_appended(at(11))
        assert not core.wants_sync(10**9)

    def test_a_late_sync_takes_nothing_back(self) -> None:
        core = commit(policy="always")
        core.take(frames(11, 12))
        core.was_appended(at(12))
        core.was_synced(at(12), 1)
        core.was_synced(at(11), 2)
        core.was_synced(None, 3)
        assert core.synced == at(12)

    def test_an_unknown_policy(self) -> None:
        with pytest.raises(AssertionError):
            commit(policy="sometimes")


class TestFullDisk:
    def test_what_was_taken_and_not_appended_is_not_durable(self) -> None:
        core = commit(policy="never")
        kept = core.take(frames(11, 12))
        kept += core.take(frames(12, 13))
        assert seqs(kept) == [11, 12, 13]
        assert core.durable() is None
        assert core.gap(0) is None, "the entries are here, only the disk is full"
        core.was_appended(at(13))
        assert core.durable() == at(13)


class TestOrder:
    def test_what_was_not_received_cannot_have_been_appended(self) -> None:
        core = commit()
        with pytest.raises(AssertionError):
            core.was_appended(at(11))
        core.take(frames(11))
        core.was_appended(at(11))
        with pytest.raises(AssertionError):
            core.was_appended(at(11))
        with pytest.raises(AssertionError):
            commit(None).was_appended(at(1))

    def test_what_was_not_appended_cannot_have_been_synced(self) -> None:
        core = commit()
        core.take(frames(11))
        with pytest.raises(AssertionError):
            core.was_synced(at(11), 0)
        with pytest.raises(AssertionError):
            commit(None).was_synced(at(1), 0)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("policy", ["always", "interval", "never"])
def test_over_a_socket_that_drops_everything_arrives_once_and_in_order(
    policy: str, seed: int
) -> None:
    rng = random.Random(seed)
    core = Commit(None, policy, 50)
    published: list[bytes] = []
    log: list[int] = []
    announced = 0
    for now in range(0, 6_000, 20):
        turn = []
        if now < 3_000 and rng.random() < 0.7:
            epoch = FIRST if len(published) < 40 else SECOND
            published.append(frame(len(published) + 1, epoch))
            turn.append(published[-1])
        elif published:
            turn.append(beat(len(published), SECOND if len(published) > 40 else FIRST))
        turn = [one for one in turn * rng.choice([1, 1, 2]) if rng.random() > 0.3]
        if rng.random() < 0.1 and published:
            turn.append(rng.choice(published))
        taken = core.take(turn)
        gap = core.gap(now)
        if gap is not None and rng.random() < 0.8:
            taken += core.take(published[gap - 1 : gap + 2])
        if taken:
            log += seqs(taken)
            core.was_appended(taken[-1][0])
        if core.wants_sync(now):
            core.was_synced(core.appended, now)
        durable = core.durable()
        if durable is not None:
            assert announced < durable.seq <= len(log)
            if policy == "always":
                assert core.synced is not None
                assert durable <= core.synced
            announced = durable.seq
    assert log == list(range(1, len(published) + 1))
    assert announced == len(published) > 50
