"""What a box does next about its models: `plan(desired, actual)` says one action, the most urgent first. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from agent.reconcile.homes import memory_for

Reason = Literal["pulled", "placed"]

#: Fetches that move blocks at a time: more share the same link and disk, and all come later.
AT_ONCE: Final = 1
#: Fetches that are under way, those counted that wait for somebody who holds the model.
MOST: Final = 8
#: Seconds a model has to be unwanted before it is deleted for room, so that a short absence deletes nothing.
UNWANTED: Final = 60.0


@dataclass(frozen=True)
class Want:
    """A model that is to be here. `urgent` where the fleet has fewer copies than it is to keep. Sizes in bytes."""

    hash: str
    name: str
    size: int
    reason: Reason = "placed"
    urgent: bool = False


@dataclass(frozen=True)
class Desired:
    """What is wanted of this box. `known` are the models of the fleet that have a manifest; of nothing else is
    anything served. `wants` come in the order in which they matter."""

    wants: tuple[Want, ...] = ()
    known: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Copy:
    """A whole model in this box's store. `served` is whether requests reach it; `others` how many boxes that are there
    hold the whole of it besides this one. `unwanted_for` is seconds since it was last wanted here, None where it is.
    `busy` while something reads it: a job, or a check. `pinned` where an operator asked for it on this box."""

    hash: str
    size: int
    served: bool = False
    others: int = 0
    unwanted_for: float | None = None
    busy: bool = False
    pinned: bool = False


@dataclass(frozen=True)
class Fetching:
    """A fetch that is under way; `moving` is whether blocks come, as against waiting for somebody or for the disk."""

    hash: str
    moving: bool = True


@dataclass(frozen=True)
class Actual:
    """What is on this box. `free` bytes its disk takes before only what is to be kept free is left; `parts` are bytes
    that are kept already for models that are not whole. `memory` is what models may take, None where it runs none.

    `closed` says why nothing may be fetched now, `failed` why something is not tried again yet. Models of `own` files,
    which the configuration names, are here already, and are nobody's to delete; those that are `linkable` take no room
    in the store. `broken` are models that requests reach although their files are whole no longer, `suspect` those of
    which the engine says that their files are other ones than the manifests name.
    """

    copies: tuple[Copy, ...] = ()
    fetching: tuple[Fetching, ...] = ()
    parts: Mapping[str, int] = field(default_factory=dict)
    own: frozenset[str] = frozenset()
    linkable: frozenset[str] = frozenset()
    broken: frozenset[str] = frozenset()
    suspect: frozenset[str] = frozenset()
    free: int = 0
    memory: int | None = None
    closed: str = ""
    failed: Mapping[str, str] = field(default_factory=dict)
    surplus_after: float = 3600.0


@dataclass(frozen=True)
class Fetch:
    """Begin to fetch a model."""

    hash: str


@dataclass(frozen=True)
class Stop:
    """End a fetch of what is not wanted any more, or not now; what has come stays on disk."""

    hash: str
    why: str


@dataclass(frozen=True)
class Serve:
    """Let requests reach a model."""

    hash: str


@dataclass(frozen=True)
class Withdraw:
    """Let no request reach a model any more."""

    hash: str
    why: str


@dataclass(frozen=True)
class Check:
    """Hash a model's file again, block by block: what is damaged is withdrawn by that, and fetched again."""

    hash: str


@dataclass(frozen=True)
class Adopt:
    """Take a model into the store that the configuration names, so that others can have it from here."""

    hash: str


@dataclass(frozen=True)
class Drop:
    """Withdraw a model and delete its file."""

    hash: str
    why: str


Action: TypeAlias = Fetch | Stop | Serve | Withdraw | Check | Adopt | Drop


def plan(desired: Desired, actual: Actual) -> Action | None:
    """The next thing to do, None where all is as it should be or nothing can be done about it now."""
    return (
        _withdraw(desired, actual)
        or _check(actual)
        or _stop(desired, actual)
        or _serve(desired, actual)
        or _fetch(desired, actual)
        or _adopt(desired, actual)
        or _drop_for_room(desired, actual)
        or _drop_surplus(actual)
    )


def obstacle(want: Want, actual: Actual) -> str:
    """Why a model that is wanted here is not fetched now; empty where nothing keeps it."""
    if actual.memory is not None and memory_for(want.size) > actual.memory:
        return f"it needs about {_mb(memory_for(want.size))} of memory, and models may take {_mb(actual.memory)} here"
    if want.hash in actual.failed:
        return actual.failed[want.hash]
    if actual.closed:
        return actual.closed
    lacks = _lacks(want, actual)
    if lacks > 0:
        return f"the disk is short of {_mb(lacks)} for it; see transfer.keep_free, and shoal models gc"
    return ""


def _withdraw(desired: Desired, actual: Actual) -> Action | None:
    for broken in sorted(actual.broken):
        return Withdraw(broken, "its file is damaged")
    for copy in actual.copies:
        if copy.served and copy.hash not in desired.known:
            return Withdraw(copy.hash, "no admin of the fleet vouches for it any more")
    return None


def _check(actual: Actual) -> Action | None:
    able = sorted(actual.suspect - actual.failed.keys())
    return Check(able[0]) if able else None


def _stop(desired: Desired, actual: Actual) -> Action | None:
    wanted = {want.hash for want in desired.wants}
    for fetch in actual.fetching:
        if fetch.hash not in wanted:
            return Stop(fetch.hash, "it is not wanted here any more")
        if actual.closed:
            return Stop(fetch.hash, actual.closed)
    return None


def _serve(desired: Desired, actual: Actual) -> Action | None:
    if actual.memory is None:
        return None
    for copy in actual.copies:
        if not copy.served and copy.hash in desired.known and copy.hash not in actual.own:
            return Serve(copy.hash)
    return None


def _fetch(desired: Desired, actual: Actual) -> Action | None:
    moving = sum(fetch.moving for fetch in actual.fetching)
    if moving >= AT_ONCE or len(actual.fetching) >= MOST:
        return None
    for want in _missing(desired, actual):
        if not obstacle(want, actual):
            return Fetch(want.hash)
    return None


def _adopt(desired: Desired, actual: Actual) -> Action | None:
    stored = {copy.hash for copy in actual.copies} | {fetch.hash for fetch in actual.fetching}
    able = sorted((actual.linkable & desired.known) - stored - actual.failed.keys())
    return Adopt(able[0]) if able else None


def _drop_for_room(desired: Desired, actual: Actual) -> Action | None:
    """What nobody wants here makes room for what somebody does, the largest first; never the last copy."""
    for want in _missing(desired, actual):
        lacks = _lacks(want, actual)
        if lacks <= 0 or actual.closed or want.hash in actual.failed:
            continue
        spare = [copy for copy in actual.copies if _is_spare(copy, UNWANTED)]
        if sum(copy.size for copy in spare) >= lacks:
            largest = max(spare, key=lambda copy: (copy.size, copy.hash))
            return Drop(largest.hash, f"{want.name} needs the room")
    return None


def _drop_surplus(actual: Actual) -> Action | None:
    for copy in actual.copies:
        if _is_spare(copy, actual.surplus_after):
            return Drop(copy.hash, "it is not wanted here any more, and others hold it")
    return None


def _missing(desired: Desired, actual: Actual) -> Sequence[Want]:
    here = {copy.hash for copy in actual.copies} | actual.own | {fetch.hash for fetch in actual.fetching}
    missing = [want for want in desired.wants if want.hash not in here]
    return sorted(missing, key=lambda want: (not want.urgent, want.reason != "pulled"))


def _is_spare(copy: Copy, after: float) -> bool:
    unwanted = copy.unwanted_for is not None and copy.unwanted_for >= after
    return unwanted and not copy.pinned and not copy.busy and copy.others > 0


def _lacks(want: Want, actual: Actual) -> int:
    return want.size - actual.parts.get(want.hash, 0) - actual.free


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
