"""The view as a Yjs document, for observers and local apps: a materialisation that this process alone writes.

Seven root maps, each flat, from text to JSON text (`plain_json`):

    fleet      name, id
    members    KEY           how (cert or join), and the name and labels that the box gives itself
    facts      KEY/PATH      the fact as the box wrote it; absent where it was taken back or is not CBOR
    firewall   KEY           admitted, scopes, reason: of members, and of every key that is revoked or named
    settings   PATH          the value; absent where it was deleted
    conflicts  PATH          the value that holds, and its rivals; at invite/ID the boxes that contest an invite
    admins     KEY           rank, whether what it writes now counts, cut and forked: the seqs that stop it

KEY is 64 hex digits. Nothing a peer or a client sends is ever applied: pycrdt gets values from here and nothing else.

The document is not kept on disk, so the next process writes another history. Were it written under the same client
id, a client that kept its copy over the restart would take it for the one it has, and stay wrong for ever without
anybody noticing. So every history has an id of its own, higher than the ones before it: then its entries win in the
client's copy, and `answer` adds the deletion of what earlier histories wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Final

import pycrdt

from fleet import cbor
from fleet.document import yjs
from fleet.document.facts import read_box
from fleet.document.op import Op
from fleet.document.plain_json import text_of
from fleet.document.settings import Setting
from fleet.document.view import View

MAPS: Final = ("admins", "conflicts", "facts", "firewall", "fleet", "members", "settings")

#: Upper 11 of the 53 bits of our client ids; the other 42 are milliseconds since the epoch. Yjs draws its own ids
#: from 32 bits, Yrs from 53: one in 2048 of those looks like ours, which matters to clients that edit their copy only.
_MARK: Final = 0x5A5
_TIME_BITS: Final = 42
#: Dead entries a document may have whatever its size, before it is overgrown; about 250 bytes each.
_DEAD_ENTRIES: Final = 10_000


@dataclass(frozen=True)
class Changed:
    """What one `apply` changed: (map, key) of every entry that was set or removed."""

    keys: frozenset[tuple[str, str]]


#: Map, key, and the text, None where the entry goes.
_Write = tuple[str, str, str | None]


class Projection:
    """A Yjs document that follows the view. It belongs to the thread that made it; no method waits for anything.

    `wall_ms` is the wall clock now, in milliseconds since the epoch: it only has to be later than in the process
    before (see yjs.StaleClientError for what happens where it is not).
    """

    def __init__(self, wall_ms: int) -> None:
        self.client_id = _MARK << _TIME_BITS | wall_ms % (1 << _TIME_BITS)
        self._view: View | None = None
        #: False while the document is somewhere between `_view` and the next one.
        self._whole = True
        self._listeners: list[Callable[[Changed], None]] = []
        self._update_listeners: list[Callable[[bytes], None]] = []
        self._doc, self._maps = _new_document(self.client_id)

    # --- reading ---------------------------------------------------------------------------------------------------

    def entries(self, name: str) -> Mapping[str, str]:
        """A copy of one of MAPS: JSON text by key."""
        return {key: str(text) for key, text in self._maps[name].items()}

    def vector(self) -> bytes:
        """The document's state vector: what a client has that took every update up to now."""
        return self._doc.get_state()

    def answer(self, vector: bytes) -> bytes:
        """The update that brings a copy with this state vector to the present, and cleans it of earlier histories.

        `vector` may come from anybody: it is read here, and only our own count goes on to pycrdt. Raises YjsError for
        what is no state vector, yjs.StaleClientError for a copy that cannot be brought to the present.
        """
        clocks = {client: clock for client, clock in yjs.read_vector(vector).items() if client >> _TIME_BITS == _MARK}
        has = clocks.pop(self.client_id, 0)
        if has > self._clock() or any(client > self.client_id for client in clocks):
            raise yjs.StaleClientError("the copy is not of this document; start again with an empty one")
        update = self._doc.get_update(yjs.vector({self.client_id: has} if has else {}))
        return pycrdt.merge_updates(update, yjs.deletion(clocks)) if any(clocks.values()) else update

    # --- listening -------------------------------------------------------------------------------------------------

    def subscribe(self, listener: Callable[[Changed], None]) -> Callable[[], None]:
        """Call `listener` after every change; it must not block or raise. Returns what ends the subscription."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def subscribe_updates(self, listener: Callable[[bytes], None]) -> Callable[[], None]:
        """Call `listener` with the Yjs update of every change, in order; it must not block or raise.

        Who takes the answer to a state vector and every update from then on has the document. Returns what ends the
        subscription.
        """
        self._update_listeners.append(listener)
        return lambda: self._update_listeners.remove(listener)

    # --- following the view ----------------------------------------------------------------------------------------

    def apply(self, view: View) -> int:
        """Bring the document to this view, in one transaction; in none where nothing changed.

        Returns how many entries were written. Only what changed since the last view is encoded and written: facts are
        compared by op, and what admins decide is looked at only when it is another Governance than last time.
        """
        return sum(self.steps(view, None))

    def steps(self, view: View, at_once: int | None) -> Iterator[int]:
        """As `apply`, but with at most `at_once` entries in a transaction, and with a pause after each.

        Nothing is done in a pause, so the caller can let others run: an entry takes some 40 us. What reads or follows
        the document between two steps finds part of the view in it. Where the caller leaves in the middle it stays so
        until the next call, which then compares every entry. One at a time: no other call may begin before the end.
        """
        writes = differences(self._view, view) if self._whole else self._mending(view)
        self._whole = False
        while batch := list(islice(writes, at_once)):
            self._write(batch)
            yield len(batch)
        self._view, self._whole = view, True

    def _mending(self, view: View) -> Iterator[_Write]:
        """What differs between a document that is between two views and a view."""
        left = {(name, key) for name in MAPS for key in self._maps[name].keys()}  # noqa: SIM118
        for name, key, text in differences(None, view):
            left.discard((name, key))
            if text is not None and (key not in self._maps[name] or self._maps[name][key] != text):
                yield name, key, text
        yield from ((name, key, None) for name, key in left)

    def _write(self, writes: Iterable[_Write]) -> None:
        keys: list[tuple[str, str]] = []
        update: list[bytes] = []
        with self._updates_to(update), self._doc.transaction():
            for name, key, text in writes:
                entries = self._maps[name]
                if text is not None:
                    entries[key] = text
                elif key in entries:
                    del entries[key]
                if self._listeners:
                    keys.append((name, key))
        for data in update:
            self._tell(data)
        if self._listeners:
            changed = Changed(frozenset(keys))
            for listener in list(self._listeners):
                listener(changed)

    @contextmanager
    def _updates_to(self, update: list[bytes]) -> Iterator[None]:
        """Put what a transaction changed into `update`; not where nobody listens, since encoding takes time too."""
        if not self._update_listeners:
            yield
            return
        subscription = self._doc.observe(lambda event: update.append(event.update))
        try:
            yield
        finally:
            self._doc.unobserve(subscription)

    # --- staying small ---------------------------------------------------------------------------------------------

    @property
    def dead(self) -> int:
        """Entries that were overwritten or removed, and that the document has to remember all the same."""
        return self._clock() - sum(len(entries) for entries in self._maps.values())

    @property
    def overgrown(self) -> bool:
        """Whether it is time for `rebuild`: more dead entries than live ones, and more than 10,000."""
        return self.dead > max(_DEAD_ENTRIES, self._clock() // 2)

    def rebuild(self) -> None:
        """Write the same entries into a fresh document, the next history, and forget the dead ones.

        Who listens to updates gets one that takes him along. Call it when `overgrown`, at a quiet moment: it takes as
        long as the first `apply`, less the encoding.
        """
        for _ in self.rebuild_steps(None):
            pass

    def rebuild_steps(self, at_once: int | None) -> Iterator[int]:
        """As `rebuild`, with a pause after every `at_once` entries, in which the old document is still the one.

        Where the caller leaves in the middle nothing has happened. One at a time, and no `steps` before its end.
        """
        doc, maps = _new_document(self.client_id + 1)
        held = ((name, key) for name in MAPS for key in list(self._maps[name].keys()))
        while batch := list(islice(held, at_once)):
            with doc.transaction():
                for name, key in batch:
                    maps[name][key] = self._maps[name][key]
            yield len(batch)
        earlier = {self.client_id: self._clock()}
        self.client_id += 1
        self._doc, self._maps = doc, maps
        if self._update_listeners:
            self._tell(self.answer(yjs.vector(earlier)))

    def _clock(self) -> int:
        return yjs.read_vector(self._doc.get_state()).get(self.client_id, 0)

    def _tell(self, update: bytes) -> None:
        for listener in list(self._update_listeners):
            listener(update)


_Document = pycrdt.Doc[pycrdt.Map[str]]


def _new_document(client_id: int) -> tuple[_Document, dict[str, pycrdt.Map[str]]]:
    doc: _Document = pycrdt.Doc(client_id=client_id)
    return doc, {name: doc.get(name, type=pycrdt.Map) for name in MAPS}


# --- what differs between two views, as text ------------------------------------------------------------------------


def differences(old: View | None, new: View) -> Iterator[_Write]:
    """Every entry that is not what it was: map, key, JSON text (None where it goes). Pure; each key comes once."""
    before, now = _by_author(old), _by_author(new)
    changed = [author for author, own in now.items() if before.get(author) is not own]
    yield from _facts(before, now, changed)
    if old is not None and old.governance is new.governance:
        for key in (*changed, *(before.keys() - now.keys())):
            if before.get(key, {}).get("node") is not now.get(key, {}).get("node"):
                yield _member(new, key)
        return
    yield from _members(old, new)
    yield from _firewall(old, new)
    yield from _settings(old, new)
    small_before, small_now = _small_maps(old) if old is not None else {}, _small_maps(new)
    for name, texts in small_now.items():
        had = small_before.get(name, {})
        yield from ((name, key, text) for key, text in texts.items() if had.get(key) != text)
        yield from ((name, key, None) for key in had.keys() - texts.keys())


def _by_author(view: View | None) -> Mapping[bytes, Mapping[str, Op]]:
    # As the view keeps them: to flatten 30,000 facts with `facts()` takes five times as long as to compare them here.
    return view._facts if view is not None else {}


def _facts(
    before: Mapping[bytes, Mapping[str, Op]], now: Mapping[bytes, Mapping[str, Op]], changed: Iterable[bytes]
) -> Iterator[_Write]:
    for author in changed:
        had, own = before.get(author, {}), now[author]
        for path, op in own.items():
            if path not in had or had[path].id != op.id:
                yield "facts", f"{author.hex()}/{path}", _text(op.body)
        yield from (("facts", f"{author.hex()}/{path}", None) for path in had.keys() - own.keys())
    for author in before.keys() - now.keys():
        yield from (("facts", f"{author.hex()}/{path}", None) for path in before[author])


def _members(old: View | None, new: View) -> Iterator[_Write]:
    before, now = _how(old), _how(new)
    had, has = _by_author(old), _by_author(new)
    for key, how in now.items():
        if before.get(key) != how or had.get(key, {}).get("node") is not has.get(key, {}).get("node"):
            yield _member(new, key)
    yield from (("members", key.hex(), None) for key in before.keys() - now.keys())


def _member(view: View, key: bytes) -> _Write:
    node = _by_author(view).get(key, {}).get("node")
    said = read_box(key, {"node": node} if node else {}).node
    member = view.authority.members[key]
    value = {"how": member.how, "name": said.name, "labels": {**dict(said.labels), **dict(member.labels)}}
    return "members", key.hex(), text_of(value)


def _how(view: View | None) -> dict[bytes, str]:
    """How the members that are shown became members."""
    if view is None:
        return {}
    revoked = view.authority.revoked
    return {key: member.how for key, member in view.authority.members.items() if key not in revoked}


def _firewall(old: View | None, new: View) -> Iterator[_Write]:
    texts: dict[tuple[bool, frozenset[str], str], str] = {}  # most keys of a fleet stand alike
    before, now = _keys(old), _keys(new)
    for key in now:
        stands = _stands(new, key)
        if old is not None and key in before and _stands(old, key) == stands:
            continue
        if stands not in texts:
            admitted, scopes, reason = stands
            texts[stands] = text_of({"admitted": admitted, "scopes": sorted(scopes), "reason": reason})
        yield "firewall", key.hex(), texts[stands]
    yield from (("firewall", key.hex(), None) for key in before - now)


def _keys(view: View | None) -> set[bytes]:
    """Keys of which there is more to say than that they are unknown."""
    if view is None:
        return set()
    return {*view.authority.members, *view.authority.revoked, *view.governance.firewall.named()}


def _stands(view: View, key: bytes) -> tuple[bool, frozenset[str], str]:
    standing = view.standing(key)
    return standing.admitted, standing.scopes, standing.reason


def _settings(old: View | None, new: View) -> Iterator[_Write]:
    before = old.settings if old is not None else {}
    for path, setting in new.settings.items():
        if path not in before or before[path].op.id != setting.op.id:
            yield "settings", path, _text(setting.op.body)
    yield from (("settings", path, None) for path in before.keys() - new.settings.keys())


def _small_maps(view: View) -> dict[str, dict[str, str]]:
    """The maps that are a few entries in any fleet, whole."""
    authority = view.authority
    fleet = {"name": view.genesis.name, "id": view.genesis.fleet_id.hex()}
    admins = {
        key.hex(): {
            "rank": rank,
            "active": authority.is_admin(key),
            "cut": authority.cut.get(key),
            "forked": authority.forked.get(key),
        }
        for key, rank in authority.rank.items()
    }
    conflicts: dict[str, object] = {
        path: {"holds": _claim(setting.op), "rivals": [_claim(op) for op in setting.rivals]}
        for path, setting in view.conflicts.items()
    }
    for invite, claims in authority.contested.items():
        boxes = sorted({op.author for op in claims})
        conflicts[f"invite/{invite}"] = {
            "members": [key.hex() for key in boxes if key in authority.members],
            "surplus": [key.hex() for key in boxes if key not in authority.members],
        }
    values: dict[str, Mapping[str, object]] = {"fleet": fleet, "admins": admins, "conflicts": conflicts}
    return {name: {key: text_of(value) for key, value in entries.items()} for name, entries in values.items()}


def _claim(op: Op) -> dict[str, object]:
    return {"author": op.author.hex(), "value": Setting(op).value}


def _text(body: bytes) -> str | None:
    """The JSON text of a body; None where it says nothing."""
    try:
        value = cbor.decode(body)
    except cbor.CborError:
        return None
    return None if value is None else text_of(value)
