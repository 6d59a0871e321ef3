"""One broken rule each: which text becomes which, and the test files that have to notice, each by itself.

The seven that the design names are shown to the tables, to the stories and to the oracle; most others to whichever is
quickest, because a run takes seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

OP: Final = "fleet/document/op.py"
BODIES: Final = "fleet/document/bodies.py"
ACCEPTANCE: Final = "fleet/document/acceptance.py"
AUTHORITY: Final = "fleet/document/authority.py"
FIREWALL: Final = "fleet/document/firewall.py"
SETTINGS: Final = "fleet/document/settings.py"
OPSET: Final = "fleet/document/opset.py"
CLAIMS: Final = "fleet/document/claims.py"
VIEW: Final = "fleet/document/view.py"
CLOCK: Final = "fleet/document/clock.py"
CBOR: Final = "fleet/cbor.py"
PLAIN_FORM: Final = "fleet/document/plain_form.py"

#: The oracle and the faults; the stories; and tables by module.
WORLD: Final = "tests/property/test_convergence.py"
STORIES: Final = "tests/property/test_authority.py"


def unit(name: str) -> str:
    return f"tests/unit/test_{name}.py"


@dataclass(frozen=True)
class Edit:
    """`old`, which stands in `file` exactly once, becomes `new`."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """A broken rule, and the files of which each must fail."""

    name: str
    edits: tuple[Edit, ...]
    killers: tuple[str, ...]


def mutant(name: str, killers: tuple[str, ...], *edits: tuple[str, str, str]) -> Mutant:
    return Mutant(name, tuple(Edit(*edit) for edit in edits), killers)


MUTANTS: Final = (
    # --- the seven that the design names -----------------------------------------------------------------------------
    mutant(
        "forged author",
        (unit("op"), WORLD),
        (
            OP,
            "    except BadSignatureError:\n        return False\n",
            "    except BadSignatureError:\n        return True\n",
        ),
    ),
    mutant(
        "erased entry: one author's fact takes another's place",
        (unit("acceptance"), STORIES, WORLD),
        (OPSET, "own = self._facts.get(op.author, {})", 'own = self._facts.get(b"", {})'),
        (OPSET, "self._facts[op.author] = after", 'self._facts[b""] = after'),
    ),
    mutant(
        "replayed seq: an older fact replaces a newer",
        (unit("acceptance"), STORIES, WORLD),
        (OPSET, "if held is not None and (held.seq, held.id) >= (op.seq, op.id):", "if held is op:"),
    ),
    mutant(
        "non-admin write enters the set",
        (unit("acceptance"), STORIES, WORLD),
        (ACCEPTANCE, "if op.kind in ADMIN_KINDS and not known.was_admin(op.author):", "if False:"),
    ),
    mutant(
        "non-admin firewall write counts in the view",
        (WORLD,),
        (SETTINGS, 'if op.kind in ("fw", "cfg") and op.author in authority.rank), ', 'if op.kind in ("fw", "cfg")), '),
        (
            AUTHORITY,
            "            op.author in self.rank\n            and op.seq <= self.cut",
            "            op.seq <= self.cut",
        ),
        (AUTHORITY, "return op.author in self.rank and op.seq <= self.cut", "return op.seq <= self.cut"),
    ),
    mutant(
        "un-deny without having seen the deny: any allow takes it back",
        (unit("firewall"), STORIES, WORLD),
        (
            SETTINGS,
            "        if (op.kind, op.path, op.id) not in superseded:\n",
            "        if _closes(op) and any(\n"
            '            o.kind == "fw" and o.path == op.path and not _closes(o) and authority.counts(o)\n'
            "            for o in candidates\n"
            "        ):\n"
            "            continue\n"
            "        if (op.kind, op.path, op.id) not in superseded:\n",
        ),
    ),
    mutant(
        "un-deny without having seen the deny: an allow outweighs it",
        (unit("firewall"), STORIES, WORLD),
        (FIREWALL, "        if denies:\n", '        if denies and all(e.verdict == "deny" for _, e in entries):\n'),
    ),
    mutant(
        "revoked admin's late write counts",
        (unit("settings"), STORIES, WORLD),
        (
            AUTHORITY,
            "            and op.seq <= self.cut.get(op.author, NO_LIMIT)\n"
            "            and op.seq < self.forked.get(op.author, NO_LIMIT)\n",
            "            and op.seq < self.forked.get(op.author, NO_LIMIT)\n",
        ),
    ),
    mutant(
        "forked admin's later writes count",
        (STORIES, WORLD),
        (
            AUTHORITY,
            "            and op.seq <= self.cut.get(op.author, NO_LIMIT)\n"
            "            and op.seq < self.forked.get(op.author, NO_LIMIT)\n",
            "            and op.seq <= self.cut.get(op.author, NO_LIMIT)\n",
        ),
    ),
    # --- revocation --------------------------------------------------------------------------------------------------
    mutant(
        "revoked admin's late deny counts",
        (STORIES,),
        (
            AUTHORITY,
            "return op.author in self.rank and op.seq <= self.cut.get(op.author, NO_LIMIT)",
            "return op.author in self.rank",
        ),
    ),
    mutant(
        "revoked admin makes admins",
        (STORIES,),
        (
            AUTHORITY,
            "return op.seq <= self._cut(op.author) and op.seq < self.forked.get(op.author, NO_LIMIT)",
            "return op.seq < self.forked.get(op.author, NO_LIMIT)",
        ),
    ),
    mutant(
        "revoked admin lets members in",
        (STORIES,),
        (AUTHORITY, "            if op.seq <= last.get(author, NO_LIMIT)\n", ""),
    ),
    mutant(
        "revoked admin revokes",
        (STORIES,),
        (
            AUTHORITY,
            'if op.kind != "revoke" or op.seq > self._cut_from_above.get(author, NO_LIMIT):',
            'if op.kind != "revoke":',
        ),
    ),
    mutant(
        "lower rank revokes a higher",
        (STORIES,),
        (AUTHORITY, "if theirs is not None and theirs < max(rank, 1):", "if theirs is not None and theirs < 1:"),
    ),
    mutant(
        "recovery key can be revoked",
        (STORIES,),
        (AUTHORITY, "if theirs is not None and theirs < max(rank, 1):", "if theirs is not None and theirs < rank:"),
    ),
    mutant(
        "equals do not suspend one another",
        (STORIES, WORLD),
        (
            AUTHORITY,
            "return min(self._cut_from_above.get(author, NO_LIMIT), self._cut_by_equals.get(author, NO_LIMIT))",
            "return self._cut_from_above.get(author, NO_LIMIT)",
        ),
    ),
    mutant(
        "the highest keep counts",
        (STORIES,),
        (
            AUTHORITY,
            "cuts[subject] = min(cuts.get(subject, NO_LIMIT), bodies.read_keep(op.body))",
            "cuts[subject] = max(cuts.get(subject, 0), bodies.read_keep(op.body))",
        ),
    ),
    mutant(
        "unclean revoker hides members",
        (STORIES, WORLD),
        (AUTHORITY, "if op.author not in self.forked and op.author not in self.revokes:", "if True:"),
    ),
    mutant(
        "forked revoker hides members",
        (STORIES,),
        (
            AUTHORITY,
            "if op.author not in self.forked and op.author not in self.revokes:",
            "if op.author not in self.revokes:",
        ),
    ),
    mutant(
        "clean revoker voids nothing",
        (STORIES,),
        (AUTHORITY, "if op.author not in self.forked and op.author not in self.revokes:", "if False:"),
    ),
    mutant(
        "revoked key is let in",
        (unit("firewall"),),
        (FIREWALL, "        if revokes:\n", "        if False:\n"),
    ),
    mutant(
        "revoked box is shown",
        (STORIES,),
        (
            VIEW,
            "return key in self.authority.members and key not in self.authority.revoked",
            "return key in self.authority.members",
        ),
    ),
    # --- forks -------------------------------------------------------------------------------------------------------
    mutant(
        "forked admin makes admins",
        (STORIES,),
        (
            AUTHORITY,
            "return op.seq <= self._cut(op.author) and op.seq < self.forked.get(op.author, NO_LIMIT)",
            "return op.seq <= self._cut(op.author)",
        ),
    ),
    mutant(
        "deny on a forked branch is lost",
        (STORIES, WORLD),
        (
            SETTINGS,
            "if not (authority.counts(op) or (_closes(op) and authority.closes_a_door(op))):",
            "if not authority.counts(op):",
        ),
    ),
    # --- firewall and settings ---------------------------------------------------------------------------------------
    mutant(
        "scoped deny ignored",
        (unit("firewall"),),
        (
            FIREWALL,
            'for _, entry in entries if entry.verdict == "deny" for scope in',
            "for _, entry in entries if False for scope in",
        ),
    ),
    mutant(
        "allow-list ignored",
        (unit("firewall"),),
        (FIREWALL, "return Policy(mode, frozenset(scopes))", 'return Policy("members", frozenset(scopes))'),
    ),
    mutant(
        "policy that nobody understands opens",
        (unit("firewall"),),
        (
            FIREWALL,
            'not all(map(bodies.is_scope, scopes)):\n        return Policy("allow-list", frozenset())',
            "not all(map(bodies.is_scope, scopes)):\n        return Policy()",
        ),
    ),
    mutant(
        "an op that does not count replaces others",
        (STORIES,),
        (SETTINGS, "if op.sup and authority.counts(op) for old", "if op.sup for old"),
    ),
    mutant(
        "an op replaces others of another path",
        (unit("settings"),),
        (SETTINGS, "superseded = {(op.kind, op.path, old) for", "superseded = {old for"),
        (SETTINGS, "if (op.kind, op.path, op.id) not in superseded:", "if op.id not in superseded:"),
    ),
    mutant(
        "nothing is ever replaced",
        (unit("settings"),),
        (SETTINGS, "if (op.kind, op.path, op.id) not in superseded:", "if True:"),
    ),
    mutant(
        "the order of arrival settles a conflict",
        (unit("settings"),),
        (
            SETTINGS,
            "ordered = sorted(ops, key=lambda op: (op.hlc, op.author, op.id), reverse=True)",
            "ordered = list(ops)",
        ),
    ),
    mutant(
        "a conflict is not shown",
        (unit("settings"),),
        (SETTINGS, "tuple(op for op in ordered[1:] if op.body != winner.body)", "()"),
    ),
    # --- invites -----------------------------------------------------------------------------------------------------
    mutant(
        "invite surplus let in",
        (STORIES, WORLD),
        (AUTHORITY, "if op.author not in takers and len(takers) >= min(invite.uses for invite in terms):", "if False:"),
    ),
    mutant(
        "a fork lifts a policy that shuts",
        (STORIES,),
        (SETTINGS, 'return op.path == POLICY_PATH and read_policy(op.body).mode == "allow-list"', "return False"),
    ),
    mutant(
        "the order of arrival decides who is surplus",
        (STORIES,),
        (
            AUTHORITY,
            "join.by in revoked, join.hlc, op.id, op, good))",
            "join.by in revoked, len(waiting), op.id, op, good))",
        ),
    ),
    mutant(
        "a member that backdates and is revoked keeps others out",
        (STORIES,),
        (AUTHORITY, ".append((join.by in revoked, join.hlc,", ".append((False, join.hlc,"),
    ),
    mutant(
        "an invite bound to one box lets in another",
        (STORIES,),
        (AUTHORITY, "if invite.key == join.key and invite.bound_to in (None, op.author)", "if invite.key == join.key"),
    ),
    mutant(
        "join without signatures",
        (unit("acceptance"),),
        (ACCEPTANCE, "if not bodies.join_is_vouched_for(op, join):", "if False:"),
    ),
    mutant(
        "join without the token",
        (unit("bodies"),),
        (
            BODIES,
            "return proof_holds(join.key, join.proof, op.fleet, op.path, op.author) and verify(",
            "return verify(",
        ),
    ),
    mutant(
        "join with a stranger's consent",
        (unit("acceptance"),),
        (ACCEPTANCE, "if not known.was_certified(join.by):", "if False:"),
    ),
    mutant(
        "a stranger's consent counts in the view",
        (STORIES,),
        (ACCEPTANCE, "if not known.was_certified(join.by):", "if False:"),
        (AUTHORITY, "for key in members for claim in", "for key in list(waiting) for claim in"),
    ),
    mutant(
        "one member's flood of claims keeps out another's",
        (WORLD,),
        (CLAIMS, "line.sort(key=lambda one: one[:2])", "line.sort(key=lambda one: one[1])"),
    ),
    mutant(
        "one member's claims fill the invite",
        (WORLD,),
        (CLAIMS, "_first_of_each(own)[: most_of_member(uses[terms])]", "_first_of_each(own)"),
        (OPSET, "if len(own) < claims.most_of_member(uses) and self._claimed", "if self._claimed"),
        (OPSET, "        return any(claim.order < other.order for other in own.values())\n", "        return True\n"),
    ),
    mutant(
        "what rested on a claim that was given up stays",
        (unit("acceptance"),),
        (OPSET, "for key in authors if not self.was_certified(key) for op in", "for key in authors if False for op in"),
    ),
    # --- the set -----------------------------------------------------------------------------------------------------
    mutant(
        "an op of another fleet",
        (unit("acceptance"),),
        (ACCEPTANCE, "if op.fleet != known.fleet_id:", "if False:"),
    ),
    mutant(
        "facts of strangers",
        (unit("acceptance"),),
        (ACCEPTANCE, 'if op.kind == "node" and not known.was_certified(op.author):', "if False:"),
    ),
    mutant(
        "the order of arrival decides which facts stay",
        (unit("acceptance"),),
        (OPSET, "            if gone is op:\n", "            if True:\n"),
    ),
    mutant("a form that is not canonical", (unit("op"),), (CBOR, "    if not same:\n", "    if False:\n")),
    mutant(
        "a number that is longer than it has to be",
        (unit("op"),),
        (PLAIN_FORM, r"|\x18[\x18-\xff]|\x19", r"|\x18.|\x19"),
    ),
    mutant(
        "a body whose length is longer than it has to be",
        (unit("op"),),
        (PLAIN_FORM, "elif first == 0x59 and signed[end + 1] > 0:", "elif first == 0x59:"),
    ),
    mutant("bytes after an op", (unit("op"),), (PLAIN_FORM, " or len(signed) != end + 1:", ":")),
    mutant(
        "the clock follows anybody",
        (unit("clock"),),
        (CLOCK, "if seen > self._last and seen >> _COUNTER_BITS <= now_ms + MAX_AHEAD_MS:", "if seen > self._last:"),
    ),
)
