"""NunDB's commands over HTTP, as `bin/nun-db` and `bin/nun exec` send them: one POST, one reply.

Only the body counts, on both sides. Proxies of the environment are not asked: the password stands in the body.
"""

from __future__ import annotations

import http.client
from typing import Final
from urllib.parse import urlsplit

PATIENCE_S: Final = 30.0
_DEFAULT_PORT: Final = {"http": 80, "https": 443}


class Unreachable(Exception):
    """No reply: nobody listens, nothing came in time, or what came is not HTTP. Says which, and where."""


class NoAddress(ValueError):
    """A text that is not the URL of a node. Says what was expected."""


def post(url: str, commands: str, timeout: float = PATIENCE_S) -> str:
    """Sends commands, separated by `;`, to the HTTP address of a node; returns the body of the reply.

    Raises:
        NoAddress: the URL is none.
        Unreachable: there is no reply.
    """
    scheme, host, port = _parts(url)
    kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
    connection = kind(host, port, timeout=timeout)
    try:
        connection.request(
            "POST",
            urlsplit(url).path or "/",
            commands.encode("utf-8", "surrogateescape"),
            {"Content-Type": "text/plain; charset=UTF-8"},
        )
        return connection.getresponse().read().decode("utf-8", "replace")
    except TimeoutError as error:
        raise Unreachable(f"{url}: no reply in {timeout:g} s") from error
    except http.client.HTTPException as error:
        found = str(error) or type(error).__name__
        raise Unreachable(f"{url}: the reply is not HTTP ({found})") from error
    except OSError as error:
        raise Unreachable(f"{url}: {error.strerror or error}") from error
    finally:
        connection.close()


def _parts(url: str) -> tuple[str, str, int]:
    try:
        found = urlsplit(url)
        port = found.port
    except ValueError:
        found, port = urlsplit(""), None
    if found.scheme not in _DEFAULT_PORT or not found.hostname:
        raise NoAddress(f"{url!r} is no address: expected one such as http://127.0.0.1:3013")
    return found.scheme, found.hostname, port or _DEFAULT_PORT[found.scheme]


def commands_of(text: str) -> list[str]:
    """The commands of a text as a node splits them: what is empty is none."""
    return [part for part in (part.strip() for part in text.split(";")) if part]


def elements_of(reply: str) -> list[str]:
    """The elements of a reply, one a command, without the line break that ends most of them."""
    return [part.strip("\n") for part in reply.split(";")] if reply else []
