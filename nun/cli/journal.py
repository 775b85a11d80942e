"""How far an import or an export has come, in a small file beside it, so that it can go on after a crash.

The journal is replaced as a whole (written beside, then renamed), so it is always one complete state. It may lag behind
what was done; it never runs ahead: doing the last stretch again changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

_VERSION: Final = 1
_HEAD_BYTES: Final = 64 * 1024


@dataclass(frozen=True)
class Progress:
    """A state to go on from.

    Attributes:
        offset: bytes of the file that are done with. line: lines in them.
        records: stored (import) or written (export) so far. bad: refused so far.
        last_key: of an export, in hexadecimal.
    """

    offset: int = 0
    line: int = 0
    records: int = 0
    bad: int = 0
    last_key: str = ""


@dataclass(frozen=True)
class Journal:
    """The file, and what a state in it belongs to: one input or output, one database, one way to read it."""

    path: Path
    subject: dict[str, Any] = field(default_factory=dict)

    def load(self) -> tuple[Progress | None, str]:
        """The state to go on from; or None and, when there is a journal that does not fit, why it does not."""
        try:
            found = json.loads(self.path.read_text())
        except FileNotFoundError:
            return None, ""
        except (OSError, ValueError) as error:
            return None, f"{self.path} cannot be read ({error})"
        if not isinstance(found, dict) or found.get("version") != _VERSION:
            return None, f"{self.path} is no progress journal of this version"
        if (subject := found.get("subject")) != self.subject:
            old = subject if isinstance(subject, dict) else {}
            names = [name for name in self.subject if old.get(name) != self.subject[name]]
            return None, f"{self.path} belongs to another run ({', '.join(names)} differs)"
        try:
            return replace(Progress(), **found["progress"]), ""
        except (KeyError, TypeError):
            return None, f"{self.path} is no progress journal of this version"

    def save(self, progress: Progress) -> None:
        beside = self.path.with_name(self.path.name + ".new")
        beside.write_text(
            json.dumps({"version": _VERSION, "subject": self.subject, "progress": asdict(progress)})
            + "\n"
        )
        os.replace(beside, self.path)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)


def identity_of(path: Path) -> dict[str, Any]:
    """What tells an input file from a changed one: size, time of change, and a hash of its first bytes."""
    with path.open("rb") as file:
        head = hashlib.sha256(file.read(_HEAD_BYTES)).hexdigest()
        status = os.fstat(file.fileno())
    return {"size": status.st_size, "modified_ns": status.st_mtime_ns, "head_sha256": head}
