"""What the fleet ought to agree on, worked out from what the world knows it wrote.

Written from the rules in words and not from the code: keys stand in plain sets, and every rule is asked of all records
at once, over and over, until nothing changes any more. That is slow, and has nothing in common with a walk down the
ranks, with indexes, or with anything that looks at the order of arrival.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import combinations

DEFAULT_SCOPES = frozenset({"infer", "blobs", "models"})
GOVERNING = ("cert", "revoke", "fw", "cfg")
NEVER = 1 << 62


@dataclass(frozen=True, eq=False)
class Record:
    """What somebody wrote, as plain values. `value` is a join's (invite's key, countersigner, hlc, honestly signed)."""

    id: bytes
    author: bytes
    seq: int
    hlc: int
    kind: str
    path: str
    value: object
    sup: frozenset[bytes] = frozenset()

    @property
    def subject(self) -> bytes:
        return bytes.fromhex(self.path)

    @property
    def invite(self) -> str:
        return self.path.removeprefix("invite/")


@dataclass(frozen=True)
class Most:
    """How many claims of an invite are kept: of one member beyond its uses, and in all."""

    of_member: int = 16
    shares: int = 4
    surplus: int = 128


@dataclass
class Expected:
    """The answer, in the terms of the rules."""

    held: set[bytes] = field(default_factory=set)
    rank: dict[bytes, int] = field(default_factory=dict)
    cut: dict[bytes, int] = field(default_factory=dict)
    forked: dict[bytes, int] = field(default_factory=dict)
    members: set[bytes] = field(default_factory=set)
    surplus: set[bytes] = field(default_factory=set)
    standing: dict[bytes, frozenset[str] | None] = field(default_factory=dict)
    settings: dict[str, tuple[object, frozenset[bytes]]] = field(default_factory=dict)
    facts: dict[tuple[bytes, str], bytes] = field(default_factory=dict)


def expect(
    recovery: Iterable[bytes],
    admins: Iterable[bytes],
    written: Iterable[Record],
    keys: Iterable[bytes],
    max_facts: int,
    most: Most,
) -> Expected:
    """What holds after everybody heard of everything. `written` are the records with a good signature."""
    rec, first, records = frozenset(recovery), frozenset(admins), {record.id: record for record in written}
    expected = Expected()
    held = _accepted(rec | first, list(records.values()), max_facts, most)
    expected.held = {record.id for record in held}
    governing = [record for record in held if record.kind in GOVERNING]
    expected.forked = _forks(governing)
    standing = _Standing(rec, first, governing, expected.forked)
    expected.rank, expected.cut = standing.rank, standing.cut
    expected.members, expected.surplus = _membership(standing, held)
    live = _live(standing, governing)
    policy = _value_of(live.get(("cfg", "policy/firewall"), []))
    expected.settings = {
        path: (_winner(found), _losers(found)) for (kind, path), found in live.items() if kind == "cfg"
    }
    for key in keys:
        expected.standing[key] = _may(
            key, key in expected.members, key in expected.cut, live.get(("fw", key.hex()), []), policy
        )
    for record in held:
        if record.kind == "node" and record.author in expected.members and record.author not in expected.cut:
            expected.facts[record.author, record.path] = record.id
    return expected


def _accepted(first: frozenset[bytes], records: list[Record], max_facts: int, most: Most) -> list[Record]:
    """What may be kept: governance by whoever was ever an admin, facts and joins by whoever was ever let in."""
    admins, held = set(first), set[Record]()
    records = [one for one in records if one.kind in GOVERNING or not one.sup]  # boxes replace nothing by its id
    while True:
        more = {one for one in records if one.kind in GOVERNING and one.author in admins} - held
        if not more:
            break
        held |= more
        admins |= {record.subject for record in more if record.kind == "cert" and record.value == "admin"}
    known = {record.subject for record in held if record.kind == "cert"}
    invites: dict[tuple[str, object], int] = {}
    for record in held:
        if record.kind == "cfg" and record.path.startswith("invite/"):
            value = _dict(record.value)
            place = (record.invite, value["key"])
            invites[place] = max(invites.get(place, 0), _int(value["uses"]))
    signed = [one for one in records if one.kind == "join" and _join(one)[3] and _place(one) in invites]
    kept: set[Record] = set()
    generation = set(known)
    while generation:
        found: set[Record] = set()
        for place, uses in invites.items():
            here = [one for one in signed if _place(one) == place and _join(one)[1] in generation]
            # A box that was let in twice by one member was let in the first time.
            here = [one for one in here if not any(_same(one, other) and _rank(other) < _rank(one) for other in here)]
            turn = {
                one.id: sum(_join(one)[1] == _join(other)[1] and _rank(other) < _rank(one) for other in here)
                for one in here
            }
            here = [one for one in here if turn[one.id] < uses + most.of_member]
            room = most.shares * uses + most.surplus - sum(_place(one) == place for one in kept)
            found |= set(sorted(here, key=lambda one: (turn[one.id], _rank(one)))[: max(0, room)])
        kept |= found
        generation = {one.author for one in found} - known
        known |= generation
    held |= kept | {record for record in records if record.kind == "node" and record.author in known}
    return [record for record in held if record.kind != "node"] + _latest_facts(held, max_facts)


def _place(record: Record) -> tuple[str, object]:
    return record.path, _join(record)[0]


def _rank(record: Record) -> tuple[int, bytes]:
    return _join(record)[2], record.id


def _same(one: Record, other: Record) -> bool:
    return (one.author, _join(one)[1]) == (other.author, _join(other)[1])


def _latest_facts(held: Iterable[Record], max_facts: int) -> list[Record]:
    facts = [record for record in held if record.kind == "node"]
    latest = [
        one
        for one in facts
        if not any(
            (other.author, other.path) == (one.author, one.path) and (other.seq, other.id) > (one.seq, one.id)
            for other in facts
        )
    ]
    return [
        one
        for one in latest
        if sum(other.author == one.author and (other.seq, other.id) > (one.seq, one.id) for other in latest) < max_facts
    ]


def _forks(governing: list[Record]) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    for one, other in combinations(governing, 2):
        if (one.author, one.seq) == (other.author, other.seq):
            found[one.author] = min(one.seq, found.get(one.author, NEVER))
    return found


class _Standing:
    """Who has which rank and which revocations bite, found by trying again until the answer stays the same."""

    def __init__(
        self, recovery: frozenset[bytes], admins: frozenset[bytes], governing: list[Record], forked: dict[bytes, int]
    ) -> None:
        self.recovery, self.forked, self.governing = recovery, forked, governing
        base = dict.fromkeys(admins, 1) | dict.fromkeys(recovery, 0)
        # Two admins that only certify one another drag themselves down for ever: a chain is no longer than its keys.
        longest = len({record.author for record in governing}) + 1
        self.rank, self.biting = dict(base), list[Record]()
        for _ in range(4 * len(governing) + 16):
            before = (self.rank, {record.id for record in self.biting})
            self.biting = [record for record in governing if record.kind == "revoke" and self._bites(record)]
            rank = dict(base)
            for record in governing:
                if record.kind == "cert" and record.value == "admin" and self.believed(record):
                    one_more = self.rank[record.author] + 1
                    if one_more <= longest:
                        rank[record.subject] = min(one_more, rank.get(record.subject, NEVER))
            self.rank = rank
            if before == (self.rank, {record.id for record in self.biting}):
                break
        else:
            raise AssertionError("the oracle does not come to rest")
        self.cut = {record.subject: self.keep(record.subject) for record in self.biting}

    def _bites(self, record: Record) -> bool:
        """A revocation bites unless its author has no rank, a higher one stands in its way, or one cut it off."""
        mine, theirs = self.rank.get(record.author), self.rank.get(record.subject, NEVER)
        if mine is None or theirs < mine or record.subject in self.recovery:
            return False
        return not any(
            other.subject == record.author and self.rank[other.author] < mine and record.seq > _int(other.value)
            for other in self.biting
            if other.author in self.rank
        )

    def keep(self, key: bytes) -> int:
        return min((_int(record.value) for record in self.biting if record.subject == key), default=NEVER)

    def believed(self, record: Record) -> bool:
        author = record.author
        return author in self.rank and record.seq <= self.keep(author) and record.seq < self.forked.get(author, NEVER)

    def still_closes(self, record: Record) -> bool:
        return record.author in self.rank and record.seq <= self.keep(record.author)

    def vouches(self, record: Record) -> bool:
        """Whether a member's certificate or an invite holds: a fork, or an equal that is not clean, takes none back."""
        if record.author not in self.rank:
            return False
        for other in self.biting:
            if other.subject != record.author or record.seq <= _int(other.value):
                continue
            higher = self.rank[other.author] < self.rank[record.author]
            clean = other.author not in self.forked and all(third.subject != other.author for third in self.biting)
            if higher or clean:
                return False
        return True


def _membership(standing: _Standing, held: list[Record]) -> tuple[set[bytes], set[bytes]]:
    members = {
        record.subject
        for record in held
        if record.kind == "cert" and record.value == "member" and standing.vouches(record)
    }
    certified = set(members)
    waiting = [record for record in held if record.kind == "join"]
    invites = [
        record
        for record in held
        if record.kind == "cfg" and record.path.startswith("invite/") and standing.vouches(record)
    ]
    takers: dict[str, set[bytes]] = {}
    surplus: list[Record] = []
    gone = {record.subject for record in standing.biting}
    while True:
        # Always the earliest of those whose countersigner is in by now; one that was revoked since comes last.
        ready = [
            record
            for record in waiting
            if _join(record)[1] in members and any(_fits(invite, record) for invite in invites)
        ]
        if not ready:
            break
        record = min(ready, key=lambda one: (_join(one)[1] in gone, _join(one)[2], one.id))
        waiting.remove(record)
        uses = min(_int(_dict(invite.value)["uses"]) for invite in invites if _fits(invite, record))
        taken = takers.setdefault(record.path, set())
        if record.author in taken or len(taken) < uses:
            taken.add(record.author)
            members.add(record.author)
        else:
            surplus.append(record)
    return members, {one.id for one in surplus if one.author not in members | certified | gone}


def _fits(invite: Record, join: Record) -> bool:
    value = _dict(invite.value)
    return invite.invite == join.path and value["key"] == _join(join)[0] and value["for"] in (None, join.author)


def _live(standing: _Standing, governing: list[Record]) -> dict[tuple[str, str], list[Record]]:
    live: dict[tuple[str, str], list[Record]] = {}
    for record in governing:
        if record.kind not in ("fw", "cfg"):
            continue
        if not (standing.believed(record) or (_shuts(record) and standing.still_closes(record))):
            continue
        replaced = any(
            standing.believed(other)
            and record.id in other.sup
            and (other.kind, other.path) == (record.kind, record.path)
            for other in governing
        )
        if not replaced:
            live.setdefault((record.kind, record.path), []).append(record)
    return live


def _shuts(record: Record) -> bool:
    """Whether it keeps somebody out: a deny, or a policy by which membership alone is not enough."""
    if record.kind == "fw":
        return _entry(record)[0] == "deny"
    if record.path != "policy/firewall" or record.value is None:
        return False
    value = record.value
    return not isinstance(value, dict) or value.get("mode", "members") != "members" or not _understood(value)


def _understood(policy: dict[str, object]) -> bool:
    scopes = policy.get("scopes", [])
    return isinstance(scopes, list)


def _best(found: list[Record]) -> Record:
    return max(found, key=lambda record: (record.hlc, record.author, record.id))


def _winner(found: list[Record]) -> object:
    return _best(found).value


def _losers(found: list[Record]) -> frozenset[bytes]:
    return frozenset(record.id for record in found if record.value != _winner(found))


def _value_of(found: list[Record]) -> object:
    return _winner(found) if found else None


def _may(key: bytes, member: bool, revoked: bool, entries: list[Record], policy: object) -> frozenset[str] | None:
    """The scopes of a key; None where it is not let in."""
    mode, defaults = "members", DEFAULT_SCOPES
    if isinstance(policy, dict) and policy.get("mode", mode) in ("members", "allow-list"):
        mode, defaults = policy.get("mode", mode), frozenset(policy.get("scopes", defaults))
    elif policy is not None:  # not understood: nobody comes in by membership alone. None was deleted: as if never set
        mode, defaults = "allow-list", frozenset()
    allows = [_entry(record)[1] for record in entries if _entry(record)[0] == "allow"]
    denies = [_entry(record)[1] for record in entries if _entry(record)[0] == "deny"]
    if revoked or frozenset() in denies:
        return None
    if not allows and (not member or mode == "allow-list"):
        return None
    scopes: frozenset[str] = defaults if member else frozenset()
    for named in allows:
        scopes |= named or defaults or DEFAULT_SCOPES
    for named in denies:
        scopes -= named
    return scopes or None


def _entry(record: Record) -> tuple[str, frozenset[str]]:
    assert isinstance(record.value, list)
    return record.value[0], frozenset(record.value[1])


def _join(record: Record) -> tuple[bytes, bytes, int, bool]:
    assert isinstance(record.value, tuple)
    return record.value[0], record.value[1], record.value[2], record.value[3]


def _dict(value: object) -> dict[str, object]:
    assert isinstance(value, dict)
    return value


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value
