"""`shoal firewall`: who may speak to the boxes of the fleet, and about what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.command import Place, admin_key_option, agree, box_command, load_admin_key, yes_option
from agent.cli.output import print_json, printable, table

if TYPE_CHECKING:
    from fleet.document.bodies import FirewallEntry
    from fleet.document.op import Op
    from fleet.document.replica import Draft
    from fleet.document.view import View


@click.group()
def firewall() -> None:
    """Say who may speak to the boxes of the fleet, and about what.

    KEY is a PeerID, 64 hex digits, a box's name, or the end of a known PeerID.
    """


def _scopes(ctx: click.Context, option: click.Parameter, value: str | None) -> frozenset[str]:
    from fleet.document.bodies import MAX_SCOPES, is_scope

    scopes = frozenset(part.strip() for part in (value or "").split(",") if part.strip())
    bad = sorted(scope for scope in scopes if not is_scope(scope))
    if bad or len(scopes) > MAX_SCOPES:
        what = f"{bad[0]!r} is no scope" if bad else f"at most {MAX_SCOPES} scopes"
        raise click.BadParameter(f"{what}; use names such as infer,blobs,models")
    return scopes


@firewall.command("allow")
@click.argument("key")
@click.option("--scope", "scopes", callback=_scopes, help="such as infer,blobs  [default: those of the fleet's policy]")
@admin_key_option
@yes_option
@box_command
def allow(place: Place, form: str, key: str, scopes: frozenset[str], admin_key: Path, yes: bool) -> None:
    """Let a key in by name, in place of all that the firewall says of it. Asks first where that lifts a deny."""
    from fleet.document.bodies import FirewallEntry

    _write(place, form, key, FirewallEntry("allow", scopes), admin_key, yes)


@firewall.command("deny")
@click.argument("key")
@click.option("--scope", "scopes", callback=_scopes, help="only these, such as infer,blobs  [default: everything]")
@admin_key_option
@yes_option
@box_command
def deny(place: Place, form: str, key: str, scopes: frozenset[str], admin_key: Path, yes: bool) -> None:
    """Shut a key out, or take scopes away from it. A deny wins over everything until an allow lifts it."""
    from fleet.document.bodies import FirewallEntry

    _write(place, form, key, FirewallEntry("deny", scopes), admin_key, yes)


def _write(place: Place, form: str, text: str, entry: FirewallEntry, admin_key: Path, yes: bool) -> None:
    from agent.cli.effect import describe, with_ops
    from agent.cli.naming import Names
    from fleet.document.bodies import read_firewall
    from fleet.identity.keys import peer_id_from_public_key

    access = place.access()
    document = access.read(facts=True)
    names = Names(document.view)
    key = names.find(text)
    live = document.view.governance.live.get(("fw", key.hex()), ())
    drafts = _drafts(document.view, key, entry, live)
    admin = load_admin_key(admin_key)
    ops = admin.sign(document, drafts)
    before, after = document.view.standing(key), with_ops(document, ops).standing(key)
    replaced = {old for op in ops for old in op.sup}
    lifted = [op for op in live if op.id in replaced and read_firewall(op.body).verdict == "deny"]
    lifts = entry.verdict == "allow" and bool(lifted)
    change = f"{names.of(key)}: {describe(before)} -> {describe(after)}"
    result: dict[str, Any] = {
        "key": peer_id_from_public_key(key),
        "before": {"admitted": before.admitted, "scopes": sorted(before.scopes), "reason": before.reason},
        "after": {"admitted": after.admitted, "scopes": sorted(after.scopes), "reason": after.reason},
        "lifted_denies": [op.id.hex() for op in lifted] if lifts else [],
    }
    lines = [f"{entry.verdict} {change}"]
    if lifts:
        lines += [f"  this lifts the deny of {names.of(op.author)}: {_scope_text(op)}" for op in lifted]
    if ops and (lifts or entry.verdict == "deny"):
        agree(form, yes, printable("\n".join(lines), keep_lines=True), result)
    admin.hand_over(access, document, ops)
    if form != "json" and ops and not lifts and entry.verdict == "allow":
        click.echo(printable(lines[0]))
    if form == "json":
        print_json({**result, "ops": [op.id.hex() for op in ops]})
    elif not ops:
        click.echo(f"nothing to do: {printable(names.of(key))} is {describe(before)} already")
    elif after.reason == "revoked":
        click.echo("the key stays out: it was revoked, which nothing but a new identity lifts")


def _drafts(view: View, key: bytes, entry: FirewallEntry, live: Sequence[Op]) -> list[Draft]:
    """What to write. A deny of a few scopes leaves allows alone and takes in earlier denies of that sort."""
    from agent.cli.effect import superseding
    from fleet.document.bodies import FirewallEntry, read_firewall
    from fleet.document.replica import Draft

    entries = {op.id: read_firewall(op.body) for op in live}
    if entry in entries.values() and (len(entries) == 1 or entry.verdict == "deny"):
        return []
    if entry.verdict == "deny" and entry.scopes:
        denies = {op_id: held.scopes for op_id, held in entries.items() if held.verdict == "deny"}
        if any(not scopes or entry.scopes <= scopes for scopes in denies.values()):
            return []
        wider = FirewallEntry("deny", entry.scopes.union(*denies.values()))
        return [Draft("fw", key.hex(), wider.body(), tuple(sorted(denies)[:64]))]
    return superseding(view, "fw", key.hex(), entry.body())


@firewall.command("ls")
@box_command
def ls(place: Place, form: str) -> None:
    """List the policy, and every key that the firewall names."""
    from agent.cli.effect import describe
    from agent.cli.naming import Names
    from fleet.document.bodies import read_firewall
    from fleet.identity.keys import peer_id_from_public_key

    document = place.access().read(facts=True)
    view = document.view
    names, policy = Names(view), view.governance.firewall.policy
    entries = [
        (op, read_firewall(op.body)) for key in sorted(view.governance.firewall.named()) for op in _live(view, key)
    ]
    if form == "json":
        print_json(
            {
                "policy": {"mode": policy.mode, "scopes": sorted(policy.scopes)},
                "entries": [
                    {
                        "key": peer_id_from_public_key(op.subject),
                        "verdict": entry.verdict,
                        "scopes": sorted(entry.scopes),
                        "by": peer_id_from_public_key(op.author),
                        "op": op.id.hex(),
                        "standing": view.standing(op.subject).reason,
                    }
                    for op, entry in entries
                ],
            }
        )
        return
    click.echo(f"policy: {policy.mode}, scopes {', '.join(sorted(policy.scopes)) or 'none'}")
    if not entries:
        click.echo("no key is allowed or denied by name")
        return
    rows = [
        (names.of(op.subject), entry.verdict, _scope_text(op), names.of(op.author), describe(view.standing(op.subject)))
        for op, entry in entries
    ]
    click.echo(table(("KEY", "SAYS", "SCOPES", "BY", "STANDING"), rows, keep_end=("KEY", "BY"), spare=("BY",)))


@firewall.command("explain")
@click.argument("key")
@click.option("--all", "everything", is_flag=True, help="also what was replaced or does not count")
@box_command
def explain(place: Place, form: str, key: str, everything: bool) -> None:
    """Say what a key may do, and every op that decides it."""
    from agent.claims import late_text, lost_claims_of
    from agent.cli.effect import describe
    from agent.cli.history import op_facts, op_table
    from agent.cli.naming import Names
    from agent.cli.verdict import Verdicts
    from fleet.identity.keys import peer_id_from_public_key

    document = place.access().read(facts=True)
    view, names = document.view, Names(document.view)
    subject = names.find(key)
    standing = view.standing(subject)
    verdicts = Verdicts(view, list(document.ops))
    about = [op for op in document.ops if _is_about(op, subject)]
    shown = [op for op in sorted(about, key=lambda op: (op.hlc, op.id)) if everything or not verdicts.why_not(op)]
    facts = [op_facts(op, verdicts, names) for op in shown]
    lost = lost_claims_of(view.authority, subject)
    if form == "json":
        print_json(
            {
                "key": peer_id_from_public_key(subject),
                "hex": subject.hex(),
                "admitted": standing.admitted,
                "scopes": sorted(standing.scopes),
                "standing": standing.reason,
                "decided_by": [op.id.hex() for op in standing.ops],
                "policy": view.governance.firewall.policy.mode,
                "lost_claims": [claim.plain() for claim in lost],
                "admin_rank": view.authority.rank.get(subject),
                "ops": facts,
            }
        )
        return
    click.echo(printable(f"{names.of(subject)}  {peer_id_from_public_key(subject)}"))
    click.echo(f"standing: {describe(standing)}")
    for claim in lost:
        click.echo(printable(f"why: {late_text(claim.invite_id, [names.of(key) for key in claim.taken_by])}"))
    if lost:
        own = peer_id_from_public_key(subject)
        click.echo(f"remedy: shoal admit {own}, or a new token for it: shoal invite --for {own}")
    click.echo(f"policy: {view.governance.firewall.policy.mode}")
    if facts:
        click.echo(op_table(facts))
    else:
        click.echo(
            "no op names this key" + ("" if everything or not about else "; --all shows those that do not count")
        )


def _is_about(op: Op, key: bytes) -> bool:
    if op.kind in ("cert", "revoke", "fw"):
        return op.subject == key
    return op.kind == "join" and op.author == key


def _live(view: View, key: bytes) -> Sequence[Op]:
    return view.governance.live.get(("fw", key.hex()), ())


def _scope_text(op: Op) -> str:
    from fleet.document.bodies import read_firewall

    entry = read_firewall(op.body)
    if entry.scopes:
        return ", ".join(sorted(entry.scopes))
    return "everything" if entry.verdict == "deny" else "the policy's"
