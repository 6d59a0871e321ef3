"""An admin's or recovery key at work: finding its file, counting its ops, signing, and handing them to the box."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from agent.cli.client import ClientError
from agent.cli.document import Document, DocumentAccess
from fleet.document.clock import HybridClock
from fleet.document.op import Op, write_op
from fleet.document.replica import Draft
from fleet.errors import FleetError
from fleet.identity import keys
from fleet.identity.genesis import Genesis
from fleet.identity.keys import Identity

_MAX_NOTE: Final = 4096


class AdminKey:
    """A key that signs ops for the fleet.

    Two ops with one number make the fleet stop believing a key. Its highest number is therefore also noted beside the
    key's file, which travels with the key from box to box: an op that this box has not heard of yet counts too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.identity: Final[Identity] = keys.load(path, env={}, create=False)
        except FleetError as error:
            message = error.message
            if not path.exists():
                message = f"there is no admin key at {path}; say where it is with --admin-key or SHOAL_ADMIN_KEY_FILE"
            raise ClientError("identity", message) from None
        self._note = path.with_name(path.name + ".seq")

    def write(self, access: DocumentAccess, document: Document, drafts: Sequence[Draft]) -> list[Op]:
        """Sign ops and hand them to the box: `sign`, then `hand_over`."""
        ops = self.sign(document, drafts)
        self.hand_over(access, document, ops)
        return ops

    def sign(self, document: Document, drafts: Sequence[Draft]) -> list[Op]:
        """Sign ops that follow what the document holds, and keep them to oneself: what they would change can be
        shown before they are handed over. Ops that were signed and dropped leave no trace.

        Raises ClientError where the key has no standing, or an op is one that nobody would accept.
        """
        self.check_standing(document)
        fleet = document.fleet.fleet_id
        seq = max(document.highest_seq(self.identity.public_key), self._noted().get(fleet.hex(), 0))
        clock = HybridClock()
        now = int(time.time() * 1000)
        for op in document.ops:
            clock.observe(op.hlc, now)
        try:
            return [
                write_op(
                    self.identity,
                    fleet,
                    seq=seq + 1 + index,
                    hlc=clock.tick(now),
                    kind=draft.kind,
                    path=draft.path,
                    body=draft.body,
                    sup=draft.sup,
                )
                for index, draft in enumerate(drafts)
            ]
        except FleetError as error:
            raise ClientError(error.code, error.message, error.details) from None

    def hand_over(
        self, access: DocumentAccess, document: Document, ops: Sequence[Op], genesis: Genesis | None = None
    ) -> None:
        """Give signed ops to the box; they are on its disk when this returns. `genesis` founds the box's fleet.

        Raises ClientError where the box refuses one of them: what was refused has no effect. Also where another
        command has used the key meanwhile.
        """
        if not ops:
            return
        fleet = document.fleet.fleet_id.hex()
        with self._locked():
            noted = self._noted()
            if noted.get(fleet, 0) >= ops[0].seq:
                raise ClientError("busy", f"another command has used the key {self.path} meanwhile; run this one again")
            self._write_note({**noted, fleet: ops[-1].seq})
        outcomes = access.offer([op.raw for op in ops], genesis)
        refused = [outcome.reason for outcome in outcomes if outcome.state == "refused"]
        if refused:
            raise ClientError("refused_op", f"the box refused {len(refused)} of {len(ops)} ops: {', '.join(refused)}")

    def check_standing(self, document: Document) -> None:
        """Raise ClientError, with the remedy, unless what this key writes counts."""
        authority = document.view.authority
        key = self.identity.public_key
        if authority.is_admin(key):
            return
        if key in authority.forked:
            why = "it has signed two ops with one number, and is no longer believed; use another admin's key"
        elif key in authority.revoked:
            why = "it was revoked; use another admin's key, or the recovery key (shoal admin recover)"
        else:
            why = (
                "it is no admin of this fleet; an admin can make it one with: shoal admin add " + self.identity.peer_id
            )
        raise ClientError("denied", f"the key {self.path} cannot change the fleet: {why}")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the key's file against other commands on this machine."""
        with self.path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _noted(self) -> dict[str, int]:
        """The number of the key's last op, by fleet."""
        try:
            with self._note.open("rb") as file:
                noted = json.loads(file.read(_MAX_NOTE))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise ClientError(
                "identity", f"cannot read {self._note}: {error}; it holds the number of the key's last op"
            ) from None
        if not isinstance(noted, dict) or not all(type(seq) is int and seq >= 0 for seq in noted.values()):
            raise ClientError("identity", f"{self._note} is damaged; it holds the number of the key's last op")
        return noted

    def _write_note(self, noted: Mapping[str, int]) -> None:
        new = self._note.with_name(f".{self._note.name}.{secrets.token_hex(4)}")
        try:
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
                json.dump(noted, file)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._note)
        except OSError as error:
            new.unlink(missing_ok=True)
            raise ClientError(
                "identity", f"cannot write {self._note}: {error.strerror}; it keeps the key from using a number twice"
            ) from None
