"""docs/PROTOCOL.md and the code name the same messages, with the same numbers and layouts."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import nun
from nun import errors, limits, messages, peer_messages
from nun.client import session, watches
from nun.core import clock, effects

FRAMES = ("ENTRY", "BEAT", "PEER_BEAT", "MARKER", "ITEM")
ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "PROTOCOL.md").read_text()
MESSAGES = inspect.getsource(messages)
EFFECTS = inspect.getsource(effects)
_ROW = re.compile(r"^ *\| (-?\d+) \| (\w+) \| (.*)", re.MULTILINE)
_LAYOUT = re.compile(r"\[\d+(?:, .*?)?\](?=\s{2,}|$)", re.MULTILINE)


def rows(first: str, last: str) -> list[tuple[str, int, str]]:
    """(name, number, rest of the row) of the tables between two headings."""
    section = TEXT[TEXT.index(first) : TEXT.index(last)]
    return [(name, int(number), rest) for number, name, rest in _ROW.findall(section)]


def layouts(source: str) -> dict[str, str]:
    """Name -> layout, from comments such as `GET: Final = 4  # [4, token, number, database, key]`."""
    found = {}
    for name, comment in re.findall(r"^([A-Z_]+): Final = \d+  # (.*)$", source, re.MULTILINE):
        layout = _LAYOUT.search(comment[comment.find("[") :]) if "[" in comment else None
        if layout is not None:
            found[name] = layout[0]
    return found


def constants(module: object) -> dict[str, int]:
    return {
        name: value for name, value in vars(module).items() if name.isupper() and type(value) is int
    }


def test_every_message_stands_in_the_document_and_the_other_way_round() -> None:
    known = constants(messages)
    version = known.pop("PROTOCOL_VERSION")
    documented = [*rows("## 2.", "## 4."), *rows("## 5.", "## 6."), *rows("## 7.", "## 9.")]
    assert len(documented) == len({name for name, _, _ in documented}), "a name stands there twice"
    assert {name: number for name, number, _ in documented} == known
    assert TEXT.split("\n")[2].startswith(f"Version {version}.")
    assert int(rows_of_versions()[-1]) == version


def rows_of_versions() -> list[str]:
    return re.findall(r"^\| (\d+) \|", TEXT[TEXT.index("## 9.") :], re.MULTILINE)


def test_the_layouts_are_those_of_the_code() -> None:
    known = layouts(MESSAGES)
    assert len(known) > 30, "the comments of nun/messages.py are no longer understood"
    documented = {
        name: rest
        for first, last in (("## 2.", "## 4."), ("## 7.", "## 9."))
        for name, _, rest in rows(first, last)
    }
    for name, layout in known.items():
        assert f"`{layout}`" in documented[name], name


def test_every_error_stands_in_the_document_and_the_other_way_round() -> None:
    known = {
        value.__name__: value.code
        for value in vars(errors).values()
        if inspect.isclass(value) and issubclass(value, nun.RequestError) and value.code
    }
    documented = {name: number for name, number, _ in rows("## 4.", "## 5.")}
    assert documented.pop("success") == 0
    assert documented == known
    fields = {name: rest for name, _, rest in rows("## 4.", "## 5.")}
    for name in known:
        described = (vars(errors)[name].__doc__ or "").partition("Fields: ")[2]
        for field in re.findall(r"`(\w+)`", described):
            assert f"`{field}`" in fields[name], f"{name}: {field}"


def test_frames_and_effects_of_the_op_stream() -> None:
    documented = {name: number for name, number, _ in rows("## 6.", "## 7.")}
    assert documented.pop("ENTRY") == effects.ENTRY
    assert documented.pop("BEAT") == effects.BEAT
    known = {name: value for name, value in constants(effects).items() if value in effects._LENGTHS}
    known = {name: value for name, value in known.items() if name not in FRAMES}
    assert documented == {name: known[name] for name in documented}
    assert set(documented.values()) == set(effects._LENGTHS)
    for name, number, rest in rows("## 6.", "## 7."):
        if name not in FRAMES:
            fields = re.sub(r"\[[^\[\]]*\]|\{[^{}]*\}", "x", rest.split("`")[1][1:-1])
            assert len(fields.split(", ")) == effects._LENGTHS[number], name


def test_numbers_that_the_text_names() -> None:
    assert f"above {limits.RECEIPT_ABOVE_BYTES // limits.KIB} KiB" in TEXT
    assert f"per {session.RECEIPT_BYTES // limits.KIB} KiB" in TEXT
    assert f"op_id + i * {clock.TICK}" in TEXT
    assert f"less than {limits.EVENTS_BYTES_MAX // 8 // limits.KIB} KiB" in TEXT
    assert f"`{list(watches.NOWHERE)}`" in TEXT
    assert f"1 to {limits.CLIENT_ID_BYTES_MAX} bytes" in TEXT


NODES_TEXT = (ROOT / "docs" / "PROTOCOL_NODES.md").read_text()


def test_every_message_between_nodes_stands_in_its_document() -> None:
    known = {
        name: value
        for name, value in constants(peer_messages).items()
        if value >= peer_messages.REPLICATOR_UP
    }
    documented = {name: int(number) for number, name, _ in _ROW.findall(NODES_TEXT)}
    assert documented == known
    assert len({*known.values()}) == len(known), "a number stands for two messages"
    assert f"Version {peer_messages.PEER_PROTOCOL_VERSION}." in NODES_TEXT


def test_codes_and_roles_between_nodes() -> None:
    codes = {
        name: value for name, value in constants(peer_messages).items() if name.startswith("PEER_")
    }
    codes.pop("PEER_PROTOCOL_VERSION")
    codes.pop("PEER_REFUSED")
    line = NODES_TEXT[NODES_TEXT.index("Codes of PEER_REFUSED") :].split("\n\n")[0]
    assert sorted(map(int, re.findall(r"\b(\d) ", line.replace("\n", " ")))) == sorted(
        codes.values()
    )
    for number, name in peer_messages.ROLE_NAMES.items():
        assert f"{number} {name}" in NODES_TEXT
    assert f"`{peer_messages.TOPIC_ENTRY.decode()}`" in NODES_TEXT
    assert f"`{peer_messages.TOPIC_BEAT.decode()}`" in NODES_TEXT


def layout(number: int, text: str) -> str:
    """The array that begins with a message's number, as it stands in a text; spaces do not count."""
    at = text.index(f"[{number}")
    depth = 0
    for end, character in enumerate(text[at:], at):
        depth += (character in "[{") - (character in "]}")
        if not depth:
            return re.sub(r"\s+", "", text[at : end + 1])
    raise AssertionError(f"{number}: its array has no end")


def test_the_layouts_between_nodes_are_those_of_the_code() -> None:
    source = (ROOT / "nun" / "peer_messages.py").read_text()
    parts = re.split(r"^(?=[A-Z_]+: Final = \(?\s*\d)", source, flags=re.M)
    coded = {}
    for part in parts[1:]:
        name, number = re.match(r"(\w+): Final = \(?\s*(\d+)", part).groups()  # type: ignore[union-attr]
        if int(number) >= peer_messages.REPLICATOR_UP:
            coded[name] = layout(int(number), re.sub(r"\n?#", " ", part))
    documented = {
        name: layout(int(number), rest) for number, name, rest in _ROW.findall(NODES_TEXT)
    }
    assert documented == coded
