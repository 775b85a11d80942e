"""Whatever a client sends, the network core raises nothing, and answers what can be answered (I4 of the core, P8)."""

from __future__ import annotations

from nun import messages as m
from nun.codec import pack
from tests.support.core_driver import DrivenClient, replay, with_database
from tests.support.fuzzing import Fuzz
from tests.support.node import seeded

MESSAGES = 30_000


def test_no_message_makes_the_core_raise() -> None:
    driver = with_database()
    fuzz = Fuzz(seeded("core fuzz"))
    writer = driver.client()
    writer.write(m.SET_MANY, 1, pack([["k1", "k2"], ["1", "2"]])).value()
    for count in range(MESSAGES):
        session = driver.core.sessions.get(writer.peer)
        if session is None or session.token != writer.token or 1 not in session.grants:
            writer = greet_again(writer)
        body = fuzz.message(writer.token if count % 4 else fuzz.value())
        driver.unix_ms += 1
        driver.core.requests_received([(writer.peer, body)], driver.now_ns, driver.unix_ms)
        driver.perform()
        if count % 100 == 0:
            driver.sync()
            while driver.read_log(100):
                pass
            driver.sent.clear()
        if count % 5000 == 0:
            driver.tick(1.0)
    driver.sync()
    state, tables = replay(driver.frames)
    for number, table in driver.core.tables.items():
        assert tables.get(number, {}) == table.records
    assert state.position == driver.core.state.position


def greet_again(client: DrivenClient) -> DrivenClient:
    """The session was ended, or its database dropped, by a message that meant just that."""
    driver = client.driver
    if 1 not in driver.core.tables:
        driver.frames.clear()
        driver.start = 0
        fresh = with_database()
        driver.frames += fresh.frames
        driver.start = fresh.start
        driver.restart()
    elif client.peer in driver.core.sessions:
        driver.core.peer_gone(client.peer, "test")
        driver.perform()
    return driver.client()
