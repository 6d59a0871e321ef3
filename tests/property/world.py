"""A small fleet with everything that can go wrong: replicas that lose, repeat, reorder and are cut off from each other,
clocks that are off, a member that lies, an outsider that forges, admins that contradict, equivocate and are revoked.

A run is a list of moves, each with a number that decides its details, so that a failing run shrinks to its few moves.
The world keeps its own books of what was written, for the oracle.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from fleet.document.opset import OpSet
from tests.property.fleet import Fleet, canonical, consent_of, hashed, pk, proof_of, receive, sealed
from tests.property.oracle import NEVER, Expected, Most, Record, expect

ADMINS: Final = ("a1", "a2", "a3")
#: Admins only if somebody makes them so.
RISING: Final = ("b1", "b2")
MEMBERS: Final = ("m1", "m2", "m3")
JOINERS: Final = ("j1", "j2", "j3", "j4")
LIAR: Final = "liar"
OUTSIDER: Final = "outsider"
EVERYBODY: Final = ("rec", *ADMINS, *RISING, *MEMBERS, *JOINERS, LIAR, OUTSIDER)
INVITES: Final = ("aa" * 16, "bb" * 16)
FACT_PATHS: Final = ("node", "addr", "hold/x", "hold/y", "perf/x")
SETTING_PATHS: Final = ("model/x", "place/y", "policy/firewall")
POLICIES: Final = (
    None,
    {"mode": "members"},
    {"mode": "allow-list"},
    {"mode": "allow-list", "scopes": ["blobs"]},
    {"mode": "members", "scopes": ["infer"]},
    "nonsense",
    {"mode": "open"},
)

#: Moves by name: how often each comes, in a fleet where all goes badly.
MOVES: Final = {
    "fact": 14,
    "firewall": 10,
    "setting": 8,
    "promote": 6,
    "member": 3,
    "revoke": 3,
    "recover": 2,
    "invite": 5,
    "join": 12,
    "fork": 2,
    "lie": 10,
    "forge": 6,
    "gossip": 16,
    "sync": 8,
    "split": 2,
    "mend": 2,
}
#: What a fleet does that is only unlucky: nobody lies, nobody is revoked, no seq is used twice.
PEACEFUL: Final = {
    name: weight for name, weight in MOVES.items() if name not in ("revoke", "recover", "fork", "lie", "forge")
}

Move = tuple[str, int]


@dataclass
class World:
    """Replicas and the books. `written` is what carries a good signature, by whomever; `sent` all bytes ever made."""

    replicas: int
    fleet: Fleet = field(default_factory=Fleet)
    written: dict[bytes, Record] = field(default_factory=dict)
    sent: list[bytes] = field(default_factory=list)
    max_facts: int = 256
    most: Most = field(default_factory=Most)
    #: What honest boxes said last, by (name, path): nobody but they may change it.
    said: dict[tuple[str, str], bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.boxes = [OpSet(self.fleet.genesis) for _ in range(self.replicas)]
        self._islands = [0] * self.replicas
        self._origin: dict[bytes, int] = {}
        self._seq: dict[str, int] = {}
        self._now = 1000
        for number, name in enumerate((*MEMBERS, LIAR)):
            self._write("a1", "cert", pk(name).hex(), "member", home=number % self.replicas)

    # --- the moves -------------------------------------------------------------------------------------------------

    def play(self, moves: Iterable[Move]) -> None:
        """Make the moves, then let everybody hear of everything."""
        for name, number in moves:
            turn: Callable[[random.Random, int], None] = getattr(self, f"_{name}")
            rng = random.Random(number)
            turn(rng, rng.randrange(self.replicas))
        self.heal()

    def heal(self) -> None:
        """Anti-entropy between all pairs until nothing changes; a set that never rests is a failure."""
        self._islands = [0] * self.replicas
        for _ in range(len(self.sent) + 2):
            before = [box.version for box in self.boxes]
            for raw, home in self._origin.items():
                receive(self.boxes[home], raw)  # whoever made it offers it once more: late, twice, or again refused
            for one in range(self.replicas):
                for other in range(one + 1, self.replicas):
                    self._exchange(one, other)
            if before == [box.version for box in self.boxes]:
                return
        raise AssertionError("the replicas never come to rest")

    def expected(self) -> Expected:
        """What the rules say of all that was written."""
        genesis = self.fleet.genesis
        return expect(
            genesis.recovery, genesis.admins, self.written.values(), map(pk, EVERYBODY), self.max_facts, self.most
        )

    def _fact(self, rng: random.Random, home: int) -> None:
        name, path = rng.choice((*MEMBERS, *JOINERS)), rng.choice(FACT_PATHS)
        raw = self._write(name, "node", path, rng.randrange(1 << 16), home=home)
        self.said[name, path] = hashed(raw[:-64])

    def _firewall(self, rng: random.Random, home: int) -> None:
        scopes = sorted(rng.sample(["admin", "blobs", "infer"], rng.choice((0, 0, 1, 2))))
        subject = pk(rng.choice((*MEMBERS, *JOINERS, LIAR, OUTSIDER))).hex()
        self._govern(rng, home, "fw", subject, [rng.choice(("allow", "deny")), scopes])

    def _setting(self, rng: random.Random, home: int) -> None:
        path = rng.choice(SETTING_PATHS)
        value = rng.choice(POLICIES) if path == "policy/firewall" else rng.choice((None, 1, 2, "x"))
        self._govern(rng, home, "cfg", path, value)

    def _promote(self, rng: random.Random, home: int) -> None:
        self._write(rng.choice(("rec", *ADMINS, *RISING)), "cert", pk(rng.choice(RISING)).hex(), "admin", home=home)

    def _member(self, rng: random.Random, home: int) -> None:
        subject = rng.choice((*MEMBERS, *JOINERS, LIAR))
        self._write(rng.choice((*ADMINS, *RISING)), "cert", pk(subject).hex(), "member", home=home)

    def _revoke(self, rng: random.Random, home: int) -> None:
        subject = rng.choice((*ADMINS, *RISING, *MEMBERS, *JOINERS, "rec"))
        keep = rng.choice((0, self._seq.get(subject, 0), rng.randrange(12)))
        self._write(rng.choice((*ADMINS, *RISING)), "revoke", pk(subject).hex(), keep, home=home)

    def _recover(self, rng: random.Random, home: int) -> None:
        subject = rng.choice((*ADMINS, *RISING, LIAR))
        keep = rng.randrange(self._seq.get(subject, 0) + 1)
        self._write("rec", "revoke", pk(subject).hex(), keep, home=home)

    def _invite(self, rng: random.Random, home: int) -> None:
        invite = rng.choice(INVITES)
        bound = pk(rng.choice(JOINERS)) if rng.random() < 0.2 else None
        uses = rng.choice((0, 1, 2, 3, 3, 3))
        body = {"key": pk("token " + invite), "uses": uses, "expires": 0, "for": bound, "labels": {}}
        self._govern(rng, home, "cfg", f"invite/{invite}", body)

    def _join(self, rng: random.Random, home: int) -> None:
        """A box with a token is let in by a member, here and now: nobody asks the other island."""
        member = rng.choice((*MEMBERS, *JOINERS, LIAR))
        self._claim(rng.choice(JOINERS), rng.choice(INVITES), member, self._clock(rng), home=home)

    def _fork(self, rng: random.Random, home: int) -> None:
        """An admin tells two boxes two things with one seq."""
        name = rng.choice(("a2", "a2", "a3", "b1"))
        seq = rng.choice((None, None, rng.randrange(1, self._seq.get(name, 0) + 2)))
        for verdict in (["allow", []], ["deny", []]):
            subject = pk(rng.choice((*MEMBERS, LIAR))).hex()
            if rng.random() < 0.3:
                raw = self._write(name, "cfg", "model/x", rng.randrange(9), seq=seq, home=home)
            else:
                raw = self._write(name, "fw", subject, verdict, seq=seq, home=rng.randrange(self.replicas))
            seq = self.written[hashed(raw[:-64])].seq
        self._write(name, "cert", pk("b2").hex(), "admin", seq=seq, home=home)

    def _lie(self, rng: random.Random, home: int) -> None:
        """A member writes what is not its to write, with its own good signature."""
        victim = pk(rng.choice((*ADMINS, *MEMBERS)))
        everything = rng.sample(sorted(self.written), min(len(self.written), 8))
        lies: Sequence[tuple[str, str, object]] = (
            ("fw", pk(LIAR).hex(), ["allow", []]),
            ("fw", victim.hex(), ["deny", []]),
            ("revoke", victim.hex(), 0),
            ("cert", pk(OUTSIDER).hex(), "admin"),
            ("cfg", "policy/firewall", {"mode": "members"}),
            ("cfg", f"invite/{INVITES[0]}", {"key": pk("m1"), "uses": 9, "expires": 0, "for": None, "labels": {}}),
            ("node", "hold/x", "twice"),
        )
        kind, path, body = rng.choice(lies)
        seq = rng.choice((None, 1, self._seq.get(LIAR, 0) + 1, (1 << 48) - 1 if kind != "node" else None))
        self._write(LIAR, kind, path, body, seq=seq, sup=everything, hlc=1 << 62, home=home)
        if kind == "node":
            self._write(LIAR, kind, path, "two faces", seq=self._seq[LIAR], home=rng.randrange(self.replicas))
        self._claim(rng.choice((LIAR, OUTSIDER)), rng.choice(INVITES), OUTSIDER, 1, home=home)

    def _forge(self, rng: random.Random, home: int) -> None:
        """An outsider signs with its own key what others are to have said, changes bits, and replays."""
        what = rng.randrange(6)
        author = pk(rng.choice((*ADMINS, *MEMBERS)))
        kind, path, body = rng.choice(
            (
                ("fw", pk(OUTSIDER).hex(), ["allow", []]),
                ("cert", pk(OUTSIDER).hex(), "admin"),
                ("node", "node", "FORGED"),
                ("cfg", "model/x", "FORGED"),
                ("revoke", pk("m1").hex(), 0),
            )
        )
        fields = [1, self.fleet.id, author, rng.randrange(1, 99), 1 << 62, kind, path, canonical(body), []]
        if what == 0:
            self._hand(sealed(OUTSIDER, fields), home)
        elif what == 1:
            raw = bytearray(rng.choice(self.sent))
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
            self._hand(bytes(raw), home)
        elif what == 2:
            self._hand(sealed("a1", [1, hashed(b"another fleet"), pk("a1"), *fields[3:]]), home)
        elif what == 3:
            self._write(OUTSIDER, kind, path, body, home=home)
        elif what == 4:
            self._claim(OUTSIDER, rng.choice(INVITES), rng.choice(MEMBERS), 1, home=home, signer=OUTSIDER)
        else:
            self._claim(OUTSIDER, rng.choice(INVITES), rng.choice(MEMBERS), 1, home=home, secret=OUTSIDER)

    def _gossip(self, rng: random.Random, home: int) -> None:
        """Something once sent reaches some boxes of the island again, late or for the second time."""
        raw = rng.choice(self.sent)
        for box in range(self.replicas):
            if self._islands[box] == self._islands[home] and rng.random() < 0.5:
                receive(self.boxes[box], raw)

    def _sync(self, rng: random.Random, home: int) -> None:
        other = rng.randrange(self.replicas)
        if self._islands[home] == self._islands[other]:
            self._exchange(home, other)

    def _split(self, rng: random.Random, home: int) -> None:
        self._islands = [rng.randrange(2) for _ in self.boxes]

    def _mend(self, rng: random.Random, home: int) -> None:
        self._islands = [0] * self.replicas

    # --- how things are written and travel -------------------------------------------------------------------------

    def _clock(self, rng: random.Random) -> int:
        """A clock that is off by a little, or by a year; two that show the same are common."""
        self._now += rng.randrange(3)
        return max(0, self._now + rng.choice((0, 0, rng.randrange(-9, 9), -(1 << 9), 1 << 50)))

    def _govern(self, rng: random.Random, home: int, kind: str, path: str, body: object) -> None:
        """An admin writes at a box and replaces what it sees there, or a part of it."""
        seen = [op.id for op in self.boxes[home].ops() if (op.kind, op.path) == (kind, path)]
        if rng.random() < 0.3:
            seen = rng.sample(seen, rng.randrange(len(seen) + 1))
        author = rng.choice(("rec", *ADMINS, *ADMINS, *RISING))
        self._write(author, kind, path, body, sup=seen[:64], hlc=self._clock(rng), home=home)

    def _claim(
        self,
        joiner: str,
        invite: str,
        by: str,
        at: int,
        *,
        home: int,
        secret: str | None = None,
        signer: str | None = None,
    ) -> None:
        honest = secret is None and signer is None
        proof = proof_of(secret or "token " + invite, self.fleet.id, invite, pk(joiner))
        sig = consent_of(signer or by, self.fleet.id, invite, pk(joiner), proof, at)
        body = {"key": pk("token " + invite), "proof": proof, "by": pk(by), "hlc": at, "sig": sig}
        self._write(joiner, "join", invite, body, home=home, books=(body["key"], body["by"], at, honest))

    def _write(
        self,
        name: str,
        kind: str,
        path: str,
        body: object,
        *,
        home: int,
        sup: Iterable[bytes] = (),
        seq: int | None = None,
        hlc: int | None = None,
        books: object = None,
    ) -> bytes:
        """Sign as `name`, note it in the books, hand it to one box."""
        if seq is None:
            seq = self._seq.get(name, 0) + 1
        self._seq[name] = max(self._seq.get(name, 0), seq if seq < 1 << 40 else 0)
        self._now += 1
        at = self._now if hlc is None else hlc
        sups = sorted(set(sup))
        raw = sealed(name, [1, self.fleet.id, pk(name), seq, at, kind, path, canonical(body), sups])
        record = Record(
            hashed(raw[:-64]), pk(name), seq, at, kind, path, body if books is None else books, frozenset(sups)
        )
        self.written[record.id] = record
        self._hand(raw, home)
        return raw

    def _hand(self, raw: bytes, home: int) -> None:
        self.sent.append(raw)
        self._origin[raw] = home
        receive(self.boxes[home], raw)

    def _exchange(self, one: int, other: int) -> None:
        """Each gives the other what it lacks, until that changes nothing; refused ones are offered again."""
        a, b = self.boxes[one], self.boxes[other]
        for giver, taker in ((a, b), (b, a), (a, b)):
            for _ in range(len(self.sent) + 2):
                missing = [op.raw for op in list(giver.ops()) if op.id not in taker]
                if not sum(receive(taker, raw) == "new" for raw in missing):
                    break


__all__ = ["EVERYBODY", "MOVES", "NEVER", "PEACEFUL", "Move", "World"]
