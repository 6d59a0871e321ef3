"""`shoal invite`: tokens that let new boxes in; which are open; and taking one back."""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from agent.cli.client import ClientError
from agent.cli.command import Place, admin_key_option, agree, box_command, load_admin_key, yes_option
from agent.cli.output import print_json, table

if TYPE_CHECKING:
    from agent.cli.document import Document
    from fleet.document.invites import Offer

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_HEADER: Final = ("INVITE", "STATE", "USED", "EXPIRES", "LABELS", "USED BY")
_MAX_TTL: Final = 366 * 86400


def _seconds(ctx: click.Context, option: click.Parameter, value: str) -> int:
    """A time such as 90s, 30m, 24h or 7d."""
    found = re.fullmatch(r"([1-9][0-9]{0,8})([smhd])", value)
    if found is None:
        raise click.BadParameter(f"{value!r} is no time; write 90s, 30m, 24h or 7d")
    seconds = int(found[1]) * _SECONDS[found[2]]
    if seconds > _MAX_TTL:
        raise click.BadParameter("an invite lasts at most 366d")
    return seconds


def _labels(ctx: click.Context, option: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    from fleet.document.bodies import read_labels
    from fleet.errors import RefusedOpError

    labels: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE")
        if name in labels:
            raise click.BadParameter(f"{name!r} is given twice")
        labels[name] = value
    try:
        read_labels(labels)
    except RefusedOpError as error:
        raise click.BadParameter(error.message) from None
    return labels


@click.group(invoke_without_command=True)
@click.option("--label", "labels", multiple=True, callback=_labels, help="NAME=VALUE the new box gets; repeatable")
@click.option(
    "--ttl", callback=_seconds, default="24h", show_default=True, help="how long it is good: 90s, 30m, 24h, 7d"
)
@click.option("--uses", type=click.IntRange(1, 10_000), default=1, show_default=True, help="how many boxes may use it")
@click.option("--for", "bound_to", metavar="PEERID", help="the only box that may use it, as `shoal id` prints it there")
@click.option(
    "--addr", "addrs", multiple=True, help="where to knock, /ip4/…/tcp/…/p2p/PEERID; repeatable  [default: this box's]"
)
@click.option("--file", "path", type=click.Path(path_type=Path), help="write the token here (0600) and not to stdout")
@click.option("--qr", is_flag=True, help="draw the token as a QR code")
@admin_key_option
@box_command
@click.pass_context
def invite(ctx: click.Context, /, **options: Any) -> None:
    """Make a token that lets a new box in; it goes to standard output, a 0600 file, or a QR code.

    Whoever reads the token can use it, until it is used up or expired.
    """
    if ctx.invoked_subcommand is None:
        _make(**options)
        return
    given = [name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if given:
        raise click.UsageError(f"options go behind the word {ctx.invoked_subcommand!r}", ctx)


def _make(
    place: Place,
    form: str,
    labels: dict[str, str],
    ttl: int,
    uses: int,
    bound_to: str | None,
    addrs: tuple[str, ...],
    path: Path | None,
    qr: bool,
    admin_key: Path,
) -> None:
    from agent.cli.naming import Names
    from fleet.document import bodies
    from fleet.document.invites import Token, new_invite_id
    from fleet.document.replica import Draft
    from fleet.identity.keys import Identity

    if path is not None and path.exists():
        raise ClientError("usage", f"{path} exists; name another file, or remove it")
    access = place.access()
    document = access.read(facts=True)
    where = _checked(addrs) or _own_addrs(place)
    admin = load_admin_key(admin_key)
    secret = Identity.from_seed(secrets.token_bytes(32))
    terms = bodies.Invite(
        secret.public_key,
        uses,
        int(time.time() * 1000) + ttl * 1000,
        Names(document.view).find(bound_to) if bound_to else None,
        tuple(sorted(labels.items())),
    )
    invite_id = new_invite_id()
    ops = admin.sign(document, [Draft("cfg", f"invite/{invite_id}", terms.body())])
    token = Token(document.fleet, ops[0], secret, where)
    admin.hand_over(access, document, ops)
    text = token.text()
    if path is not None:
        _write_secret(path, text)
    if form == "json":
        facts = {"invite": invite_id, "uses": uses, "expires": _iso(terms.expires), "labels": labels, "addrs": where}
        print_json({**facts, "token": None if path else text, "file": str(path) if path else None})
    elif qr:
        click.echo(_qr(text))
    elif path is None:
        click.echo(text)
    if form != "json":
        boxes = "one box" if uses == 1 else f"{uses} boxes"
        into = f"; the token is in {path}" if path else ""
        click.echo(f"invite {invite_id}: for {boxes}, until {_iso(terms.expires)}{into}", err=True)
        click.echo("on the new box: shoal join --token-file FILE, or SHOAL_JOIN_TOKEN at its first start", err=True)
    if path is None:
        _warn_of_readers()


@invite.command("ls")
@box_command
def ls(place: Place, form: str) -> None:
    """List the invites and what became of them."""
    from agent.cli.naming import Names
    from fleet.identity.keys import peer_id_from_public_key

    document = place.access().read(facts=True)
    names = Names(document.view)
    offers = sorted(_offers(document), key=lambda offer: (offer.terms.expires, offer.invite_id))
    found = []
    for offer in offers:
        bound = offer.terms.bound_to
        found.append(
            {
                "invite": offer.invite_id,
                "state": _state(offer),
                "uses": offer.terms.uses,
                "used_by": sorted(peer_id_from_public_key(key) for key in offer.used_by),
                "expires": _iso(offer.terms.expires),
                "for": peer_id_from_public_key(bound) if bound else None,
                "labels": dict(offer.terms.labels),
                "by": peer_id_from_public_key(document.view.settings[f"invite/{offer.invite_id}"].op.author),
            }
        )
    if form == "json":
        print_json({"invites": found})
        return
    if not found:
        click.echo("there are no invites; make one with: shoal invite")
        return
    rows = [
        (
            str(one["invite"]),
            str(one["state"]),
            f"{len(offer.used_by)} of {offer.terms.uses}",
            str(one["expires"]),
            ",".join(f"{name}={value}" for name, value in offer.terms.labels) or "-",
            ", ".join(names.of(key) for key in sorted(offer.used_by)) or "-",
        )
        for one, offer in zip(found, offers, strict=True)
    ]
    click.echo(table(_HEADER, rows, rigid=("STATE", "USED", "EXPIRES"), spare=("USED BY", "LABELS")))


@invite.command("withdraw")
@click.argument("invite_id", metavar="ID")
@admin_key_option
@yes_option
@box_command
def withdraw(place: Place, form: str, invite_id: str, admin_key: Path, yes: bool) -> None:
    """Take an invite back: nobody else gets in with it. ID may be the beginning of one."""
    from dataclasses import replace

    from agent.cli.effect import superseding

    access = place.access()
    document = access.read(facts=True)
    offers = [offer for offer in _offers(document) if invite_id and offer.invite_id.startswith(invite_id.lower())]
    if len(offers) != 1:
        what = f"{len(offers)} invites start with {invite_id!r}" if offers else f"there is no invite {invite_id!r}"
        raise ClientError("usage", f"{what}; see: shoal invite ls")
    (offer,) = offers
    used = len(offer.used_by)
    left = offer.terms.uses - used
    if left <= 0:
        if form == "json":
            print_json({"invite": offer.invite_id, "withdrawn": False, "state": _state(offer), "ops": []})
        else:
            click.echo(f"nothing to do: the invite is {_state(offer)}")
        return
    path = f"invite/{offer.invite_id}"
    admin = load_admin_key(admin_key)
    ops = admin.sign(document, superseding(document.view, "cfg", path, replace(offer.terms, uses=used).body()))
    agree(form, yes, f"withdraw the invite {offer.invite_id}: {left} more could have joined with it, {used} did")
    admin.hand_over(access, document, ops)
    if form == "json":
        print_json(
            {"invite": offer.invite_id, "withdrawn": True, "state": "withdrawn", "ops": [op.id.hex() for op in ops]}
        )


def _offers(document: Document) -> list[Offer]:
    return list(document.view.governance.offers.values())


def _state(offer: Offer) -> str:
    """Open, or why nobody gets in with it any more."""
    if len(offer.used_by) >= offer.terms.uses:
        return "used up" if offer.used_by else "withdrawn"
    return "expired" if time.time() * 1000 > offer.terms.expires else "open"


def _checked(addrs: Sequence[str]) -> tuple[str, ...]:
    from agent.addresses import peer_problem
    from fleet.document.invites import MAX_ADDRS

    for addr in addrs:
        problem = peer_problem(addr)
        if problem:
            raise ClientError("usage", f"--addr: {problem}")
    if len(addrs) > MAX_ADDRS:
        raise ClientError("usage", f"a token names at most {MAX_ADDRS} addresses")
    return tuple(dict.fromkeys(addrs))


def _own_addrs(place: Place) -> tuple[str, ...]:
    """Where this box can be knocked at; its loopback addresses only where it has no others."""
    from fleet.document.invites import MAX_ADDRS

    facts = place.facts()
    found = [str(addr) for addr in facts.get("addrs", [])] if facts is not None else _configured_addrs(place)
    reachable = [addr for addr in found if not _is_loopback(addr)]
    if not found:
        raise ClientError("usage", "the agent does not run, and its addresses are not known; give one with --addr")
    return tuple((reachable or found)[:MAX_ADDRS])


def _configured_addrs(place: Place) -> list[str]:
    """The addresses that the configuration names; those that stand for every address are of no use elsewhere."""
    peer_id = place.identity().peer_id
    fixed = [addr for addr in place.listen if addr.split("/")[2] not in ("0.0.0.0", "::")]
    return [f"{addr}/p2p/{peer_id}" for addr in fixed]


def _is_loopback(addr: str) -> bool:
    try:
        return ipaddress.ip_address(addr.split("/")[2]).is_loopback
    except (ValueError, IndexError):
        return False


def _write_secret(path: Path, text: str) -> None:
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ClientError(
            "failed", f"cannot write {path}: {error.strerror}; withdraw the invite and try again"
        ) from None


def _warn_of_readers() -> None:
    """Say so where standard output is a file that other users can read: a shell makes it as the umask says."""
    try:
        mode = os.fstat(sys.stdout.fileno()).st_mode
    except (OSError, ValueError):  # it is no file at all, or closed
        return
    if stat.S_ISREG(mode) and mode & 0o077:
        click.echo(
            f"warning: the token is in a file of mode {stat.S_IMODE(mode):04o}, and whoever reads it can join the"
            " fleet; chmod 600 it, and use --file FILE the next time",
            err=True,
        )


def _qr(text: str) -> str:
    """Two rows of modules in one line of text; the light ones are drawn, as on a dark terminal."""
    import io

    import segno

    out = io.StringIO()
    segno.make(text, error="l", micro=False).terminal(out, border=2, compact=True)
    encoding = sys.stdout.encoding or "ascii"
    try:
        out.getvalue().encode(encoding)
    except UnicodeEncodeError:
        raise ClientError("failed", f"this terminal ({encoding}) cannot show a QR code; use --file") from None
    return out.getvalue()


def _iso(milliseconds: int) -> str:
    """A time as people and programs read it."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def expired_since(milliseconds: int) -> str | None:
    """When something expired by this machine's clock, as text; None where it has not."""
    return _iso(milliseconds) if time.time() * 1000 > milliseconds else None
