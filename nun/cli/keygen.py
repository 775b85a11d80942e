"""`nun keygen`: the CURVE key pair of a node."""

from __future__ import annotations

import os
from pathlib import Path

import click

from nun.cli.output import say, say_json, warn
from nun.cli.settings import Settings, with_settings

REFUSED = 1


@click.command()
@click.option(
    "--write",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the [security] lines to a file that only you may read.",
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@with_settings
def keygen(settings: Settings, write: Path | None, force: bool) -> int:
    """Make a key pair: both go into the node's [security] table; clients get the public one as --server-key."""
    import zmq

    if not zmq.has("curve"):
        warn("this libzmq was built without CURVE")
        return REFUSED
    public, secret = (key.decode("ascii") for key in zmq.curve_keypair())
    lines = f'[security]\ncurve_public_key = "{public}"\ncurve_secret_key = "{secret}"\n'
    if write is None:
        if settings.json:
            say_json({"curve_public_key": public, "curve_secret_key": secret})
        else:
            say(lines.rstrip("\n"))
        return 0
    try:
        _write_secret(write, lines, replace=force)
    except FileExistsError:
        warn(f"{write} is there already; a key that is in use would be lost (--force replaces it)")
        return REFUSED
    except OSError as error:
        warn(f"{write} cannot be written: {error.strerror}")
        return REFUSED
    if settings.json:
        say_json({"curve_public_key": public, "file": str(write)})
    else:
        say(f"public key {public}")
        say(f"both keys are in {write}")
    return 0


def _write_secret(path: Path, text: str, *, replace: bool) -> None:
    """Writes a file of mode 0600 that is never half there; without `replace`, only where there is none."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(beside, path)
        else:
            os.link(beside, path)
    finally:
        beside.unlink(missing_ok=True)
