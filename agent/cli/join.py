"""`shoal join`: make this box part of a fleet with a token."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from agent.cli.client import ClientError
from agent.cli.command import Place, box_command, genesis_of
from agent.cli.output import print_json, printable
from fleet.durable import make_private

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fleet.document.invites import Token

_TOKEN_ENV: Final = "SHOAL_JOIN_TOKEN"  # noqa: S105 - the name of a variable
#: In the state folder: an agent that starts there and belongs to no fleet joins with it.
_TOKEN_FILE: Final = "join-token"  # noqa: S105
_MAX_TOKEN_FILE: Final = 64 * 1024
#: Seconds the agent may take: every address of the token once, each with its connect time-out.
_JOIN_LIMIT: Final = 120.0


@click.command()
@click.argument("token", required=False)
@click.option(
    "--token-file", type=click.Path(path_type=Path, allow_dash=True), help="file with the token; - for standard input"
)
@box_command
def join(place: Place, form: str, token: str | None, token_file: Path | None) -> None:
    """Join a fleet with a token that an admin made with `shoal invite`.

    The token comes from --token-file, the environment (SHOAL_JOIN_TOKEN), or the command line, where other users of
    this machine can see it. With the agent stopped it is kept for its next start.
    """
    if token is not None and token_file is not None:
        raise click.UsageError("give TOKEN or --token-file, not both")
    read = _read(token, token_file)
    _check_expiry(read)
    fleet = {"fleet": read.genesis.fleet_id.hex(), "name": read.genesis.name, "invite": read.invite_id}
    known = genesis_of(place)
    if known is not None and known.fleet_id != read.genesis.fleet_id:
        raise ClientError("other_fleet", f"this box already belongs to the fleet {known.name!r}")
    try:
        answer = place.client().post("/v1/fleet/join", {"token": read.text()}, limit=_JOIN_LIMIT)
    except ClientError as error:
        if error.code != "agent_unreachable" or place.state_dir is None:
            raise
        if known is not None and _is_in(place, read):
            _done(form, fleet, already=True, stopped=True)
        else:
            _refuse_own(place, read)
            _left_for_later(form, fleet, _keep(place.state_dir, read))
        return
    joined, problem = bool(answer.get("joined")), str(answer.get("problem") or "")
    if not joined:
        # The agent goes on by itself; whoever waits for the fleet to be there must still be told that it is not.
        message = f"nobody lets this box in yet: {problem}; the agent keeps trying, see its log and `shoal fleet show`"
        raise ClientError("peer_unreachable", message, {**fleet, "joined": False, "state": "trying"})
    _done(form, fleet, already=bool(answer.get("already")))


def _is_in(place: Place, token: Token) -> bool:
    """Whether a box that does not run is a member by its own document. ClientError where the token will never do."""
    from agent.claims import is_member, useless_because

    governance, own = place.access().read().view.governance, place.identity().public_key
    why = useless_because(governance, own, token)
    if why is not None:
        raise ClientError("denied", why)
    return is_member(governance, own)


def _refuse_own(place: Place, token: Token) -> None:
    """Raise ClientError for a token that only leads to the box it is used on."""
    from agent.claims import leads_nowhere

    why = leads_nowhere(token, place.identity().public_key)
    if why is not None:
        raise ClientError("denied", why)


def _done(form: str, fleet: Mapping[str, object], *, already: bool, stopped: bool = False) -> None:
    name = printable(str(fleet["name"]))
    if form == "json":
        print_json({**fleet, "joined": True, "state": "member"})
    elif already:
        # Its own document may be out of date; only an agent that runs hears whether the others still take it in.
        doubt = "; should the others refuse it, start its agent and run this again" if stopped else ""
        click.echo(f"nothing to do: this box already belongs to {name}{doubt}")
    else:
        click.echo(f"this box is now part of {name}; see: shoal boxes")


def _left_for_later(form: str, fleet: Mapping[str, object], path: Path) -> None:
    if form == "json":
        print_json({**fleet, "joined": False, "state": "at_next_start", "file": str(path)})
    else:
        name = printable(str(fleet["name"]))
        click.echo(f"the agent does not run; it will join {name} at its next start (the token is in {path})")


def _read(token: str | None, token_file: Path | None) -> Token:
    from fleet.document.invites import read_token
    from fleet.errors import RefusedOpError

    text = _text(token, token_file)
    try:
        return read_token(text)
    except RefusedOpError as error:
        raise ClientError("token", error.message, error.details) from None


def _text(token: str | None, token_file: Path | None) -> str:
    if token is not None:
        return token
    if token_file is not None and str(token_file) == "-":
        return sys.stdin.read(_MAX_TOKEN_FILE)
    if token_file is None:
        text = os.environ.get(_TOKEN_ENV, "")
        if not text.strip():
            raise ClientError("usage", f"give a token: --token-file FILE, {_TOKEN_ENV}, or shoal join TOKEN")
        return text
    try:
        with token_file.open("rb") as file:
            return file.read(_MAX_TOKEN_FILE).decode("ascii", "replace")
    except OSError as error:
        raise ClientError("usage", f"cannot read the token {token_file}: {error.strerror}") from None


def _check_expiry(token: Token) -> None:
    from agent.cli.invite import expired_since

    since = expired_since(token.invite.expires)
    if since is not None:
        raise ClientError("expired", f"the invite expired at {since} by this box's clock; ask an admin for a new one")


def _keep(state_dir: Path, token: Token) -> Path:
    """Leave the token for the agent's next start: 0600, whole or not at all, in the place of an earlier one."""
    path = state_dir / _TOKEN_FILE
    new = state_dir / f".{_TOKEN_FILE}.{os.getpid()}"
    try:
        make_private(state_dir)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(token.text() + "\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        raise ClientError("store", f"cannot write {path}: {error.strerror}; run this as the agent's user") from None
    return path
