"""Health problems as data: a stable code, how bad it is, what it means and what to do about it. Pure."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

from agent.claims import late_text
from agent.observe.clocks import suspect
from agent.observe.known import FEW_NUMBERS, Facts
from agent.observe.link_warnings import LINK_RULES
from agent.observe.warning import Warning

_LOW_MEMORY: Final = 0.10


def evaluate(facts: Facts) -> tuple[Warning, ...]:
    """Every problem that the facts show, worst first."""
    order = {"error": 0, "warning": 1, "info": 2}
    found = [warning for rule in _RULES for warning in rule(facts)]
    return tuple(sorted(found, key=lambda warning: order[warning.severity]))


def _models(facts: Facts) -> Iterator[Warning]:
    if facts.models and not facts.engine_installed:
        yield Warning(
            "engine_missing",
            "error",
            "this box cannot run its models",
            f"llama.cpp is not installed, and {', '.join(model.name for model in facts.models)} need it",
            "run: pip install 'shoal[engine]', or in a container the image shoal-agent; or take the models out of the"
            " configuration",
        )
        return
    for model in facts.models:
        if model.state == "failed":
            yield Warning(
                "model_failed",
                "error",
                f"model {model.name} cannot be loaded",
                model.error or "the engine gave no reason",
                f"try it again with: shoal models retry {shlex.quote(model.name)}; or mend or replace the file: it"
                " is tried again when that changes",
            )


def _doubts(facts: Facts) -> Iterator[Warning]:
    for model in facts.models:
        if model.doubts:
            yield Warning(
                "model_misnamed",
                "warning",
                f"model {model.name} is not what its name says",
                f"{'; '.join(model.doubts)}. Requests get it by what its file's header says",
                "give it a name that is true with models.name, or replace the file if it is the wrong one",
            )


def _conversations(facts: Facts) -> Iterator[Warning]:
    for model in facts.models:
        if model.unsaved:
            yield Warning(
                "conversations_unsaved",
                "warning",
                f"conversations with {model.name} are not kept on disk",
                f"writing fails: {model.unsaved}. After a restart their next turn is computed from the beginning",
                "free space on the disk of the state folder, and check that the agent's user may write to its folder"
                " sessions; engine.session_cache_mib says how much of it they may take, 0 that none are kept",
            )


def _audit(facts: Facts) -> Iterator[Warning]:
    audit = facts.audit
    if audit.problem:
        yield Warning(
            "audit_unwritten",
            "error",
            "the audit trail cannot be written",
            f"writing fails: {audit.problem}. {audit.waiting} lines wait in memory, and"
            f" {audit.lost} were dropped since the agent started",
            "free space on the disk of the state folder, and check that the agent's user may write to its folder audit;"
            " audit.max_mib says how much the trail may take. It goes on by itself",
        )


def _engines(facts: Facts) -> Iterator[Warning]:
    for engine in facts.engines:
        if engine.error is not None:
            what = "engine" if engine.kind == "auto" else engine.kind
            yield Warning(
                "engine_unusable",
                "info" if engine.detected else "warning",
                f"{what} at {engine.url} cannot be used",
                f"it {engine.error}",
                "is it running, and is the address right? it is tried again by itself; if it is not wanted any more,"
                " set enabled: false in its entry under engines",
            )


def _document(facts: Facts) -> Iterator[Warning]:
    document = facts.document
    if document is None:
        return
    if not document.admitted:
        yield Warning(
            "not_admitted",
            "error",
            "the fleet does not admit this box",
            f"its own key is: {document.standing}"
            + "".join(
                f"\n{late_text(claim.invite, claim.taken_by)}"
                for claim in document.lost_claims
                if claim.peer_id == facts.peer_id
            ),
            f"on an admin's box: shoal firewall explain {facts.peer_id}; it gets in with shoal admit there, or with a"
            " new token here (shoal join), unless it was revoked or denied",
        )
    if document.unsaved:
        yield Warning(
            "document_unsaved",
            "error",
            "the fleet document cannot be written to disk",
            "changes are kept in memory and tried again",
            "free space in the state folder, and check that its disk is not read-only",
        )
    if document.clones:
        yield Warning(
            "identity_cloned",
            "error",
            "another live box has this box's key",
            f"facts that this box did not write came in {document.clones} times",
            "stop one of them, remove its identity.seed, and invite it anew",
        )
    for key in document.forked_admins:
        yield Warning(
            "admin_forked",
            "error",
            "an admin key has signed two ops with one number",
            f"{key} is no longer believed, except where it denies or revokes",
            "was the key used on two boxes at once, or stolen? revoke it, and give the admin a new one",
        )
    for path in document.conflicts:
        yield Warning(
            "setting_conflict",
            "warning",
            f"admins contradict one another about {path}",
            "two values were set without knowledge of one another; the later one holds",
            f"look at both: shoal history --of {path}; then apply the right one again",
        )
    if document.numbers_left < FEW_NUMBERS:
        yield Warning(
            "numbers_used_up",
            "warning",
            "this box's key has nearly used up its numbers",
            f"each thing it writes into the fleet document has a number of its own, and {document.numbers_left} are"
            " left; no box gets that far by itself, so what holds its key may have been wrong or stolen",
            "make it a new identity (shoal init in a folder of its own), let that one in (shoal invite), and shut the"
            f" old key out: shoal revoke {facts.peer_id}",
        )
    for claim in document.lost_claims:
        if claim.peer_id == facts.peer_id:
            continue  # said above
        yield Warning(
            "contested_invite",
            "warning",
            f"{claim.name or claim.peer_id} claimed an invite too late and is kept out",
            f"key {claim.peer_id}: {late_text(claim.invite, claim.taken_by)}",
            f"if that box is yours: shoal admit {claim.peer_id}, or a new token for it (shoal invite); if not: shoal"
            f" revoke {claim.peer_id}",
        )


def _own_key(facts: Facts) -> Iterator[Warning]:
    if facts.peer_id in facts.allowed or facts.peer_id in facts.targets:
        yield Warning(
            "own_key_configured",
            "warning",
            "this box's own key stands in its configuration",
            "a box does not talk to itself; was the identity file copied from another box?",
            "if so, remove the copied identity and run `shoal init` for a new one",
        )


def _names(facts: Facts) -> Iterator[Warning]:
    names = Counter([facts.name, *{peer.peer_id: peer.name for peer in facts.peers}.values()])
    for name, count in names.items():
        if count > 1:
            yield Warning(
                "duplicate_name",
                "info",
                f"{count} boxes are called {name}",
                "names are for people; routes and logs become ambiguous",
                "give each box its own `name`",
            )


def _versions(facts: Facts) -> Iterator[Warning]:
    for peer in facts.peers:
        if peer.version is not None and peer.version != facts.version:
            yield Warning(
                "version_skew",
                "info",
                f"{peer.name} runs {peer.version}",
                f"this box runs {facts.version}",
                "update the older one",
            )


def _clocks(facts: Facts) -> Iterator[Warning]:
    suspicion = suspect(facts.clocks)
    if suspicion is None:
        return
    dated = ", ".join(f"{clock.name} {clock.ahead / 60:.0f} min" for clock in suspicion.ahead)
    sync = "timedatectl says whether a machine's clock is synchronised, timedatectl set-ntp true switches it on"
    cost = "A wrong clock wins or loses conflicts between settings, and lets invites expire at the wrong time"
    if suspicion.own:
        yield Warning(
            "clock_behind",
            "warning",
            "this box's clock is behind",
            f"what boxes have written is dated after this box's time: {dated}. {cost}",
            f"set this machine's clock right, by NTP if it can be had ({sync}); if it is right, theirs are not",
        )
    else:
        yield Warning(
            "peer_clock_ahead",
            "warning",
            "the clock of another box is ahead",
            f"what it has written is dated after this box's time, and others agree with this one: {dated}. {cost}",
            f"set the clock of that machine right, by NTP if it can be had ({sync}); this passes when the time has come"
            " that it wrote",
        )


def _memory(facts: Facts) -> Iterator[Warning]:
    if facts.memory_free < _LOW_MEMORY:
        yield Warning(
            "low_memory",
            "warning",
            "memory is nearly used up",
            f"{facts.memory_free:.0%} of it is free",
            "hold smaller models here, or lower engine.context_tokens",
        )


_RULES: Final[tuple[Callable[[Facts], Iterator[Warning]], ...]] = (
    _models,
    _doubts,
    _conversations,
    _engines,
    *LINK_RULES,
    _document,
    _audit,
    _own_key,
    _names,
    _versions,
    _clocks,
    _memory,
)
