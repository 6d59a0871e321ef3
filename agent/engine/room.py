"""Who has which part of the memory that models may take, and who leaves when another is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
import trio

from agent.engine.box_memory import BoxMemory, box_memory
from agent.engine.memory import Estimate, Plan, TooLarge, Wish, budget_of, plan, reserve
from fleet.models.gguf import GgufFacts

#: Seconds a model with waiting jobs waits for others to become idle before those jobs are refused.
ROOM_LIMIT: Final = 20.0

log = structlog.get_logger("shoal.engine")


class Tenant(Protocol):
    """A model that is loaded or wants to be."""

    name: str

    @property
    def last_used(self) -> float:
        """When it last had work, on trio's clock."""

    @property
    def idle(self) -> bool:
        """Whether it is loaded and has no work, neither running nor waiting."""

    def leave(self) -> None:
        """Unload; `Room.give_back` follows when its process is gone."""


class NoRoomError(Exception):
    """There is no memory for a model. With `ever` False there is not even when no other is loaded."""

    def __init__(self, too_large: TooLarge, *, ever: bool, holders: tuple[str, ...] = ()) -> None:
        self.details = too_large.details
        self.ever = ever
        self.reason = too_large.reason + (f"; {', '.join(holders)} cannot be unloaded now" if holders else "")
        super().__init__(self.reason)


@dataclass(frozen=True)
class _Claim:
    estimate: Estimate
    gone: trio.Event


class Room:
    """The memory for models, as claims on a budget.

    `setting` is `engine.memory_budget`. Without one the budget is what the box has available when nothing is loaded,
    less a reserve, and no model is loaded into memory that other programs have taken since.
    """

    def __init__(self, setting: int | str | None, look: Callable[[], BoxMemory] = box_memory) -> None:
        self._setting = setting
        self._look = look
        self._budget: int | None = None
        self._claims: dict[Tenant, _Claim] = {}
        self._turn = trio.Lock()
        self._changed = trio.Event()

    @property
    def budget(self) -> int:
        """Bytes for all models together."""
        if self._budget is None or (self._setting is None and not self._claims):
            box = self._look()
            self._budget = budget_of(self._setting, box.total, box.available)
        return self._budget

    @property
    def total(self) -> int:
        """Bytes of memory the box has."""
        return self._look().total

    def claimed(self, tenant: Tenant) -> int:
        """Bytes that a model has."""
        claim = self._claims.get(tenant)
        return claim.estimate.total if claim else 0

    def available(self) -> int:
        """Bytes that nobody has; may be negative where other programs have grown."""
        left = self.budget - sum(claim.estimate.total for claim in self._claims.values())
        if self._setting is not None:
            return left
        # The kernel counts mapped weights as available, as it could drop them; it must not have to.
        box = self._look()
        weights = sum(claim.estimate.weights for claim in self._claims.values())
        return min(left, box.available - reserve(box.total) - weights)

    async def take(self, tenant: Tenant, facts: GgufFacts, wish: Wish, *, most: int | None, urgent: bool) -> Plan:
        """Claim memory for a model, `most` bytes at most; what the plan says is then its own until `give_back`.

        Where the whole context of one request does not fit and the model is needed now (`urgent`), idle ones are
        unloaded, the least recently used first. Then the largest plan that fits is taken. Raises NoRoomError: at once
        where it never fits or is not urgent, else after ROOM_LIMIT. Those who come at the same time take turns.
        """
        with trio.move_on_after(ROOM_LIMIT) as waiting:
            async with self._turn:
                taken = await self._take(tenant, facts, wish, most, urgent=urgent)
        if waiting.cancelled_caught:
            short = self._found(facts, wish, most)
            if isinstance(short, Plan):  # it came free while another had the turn
                short = TooLarge(short.estimate.total, 0)
            raise NoRoomError(short, ever=True, holders=self._holders(tenant))
        return taken

    async def _take(self, tenant: Tenant, facts: GgufFacts, wish: Wish, most: int | None, *, urgent: bool) -> Plan:
        while True:
            found = self._found(facts, wish, most)
            idle = self._idle_others(tenant) if urgent else []
            if isinstance(found, Plan) and (not idle or found.context >= min(wish.context, facts.context_length)):
                self._claims[tenant] = _Claim(found.estimate, trio.Event())
                return found
            if isinstance(found, TooLarge):
                alone = plan(facts, _least(self.budget, most), wish)
                if isinstance(alone, TooLarge):
                    raise NoRoomError(alone, ever=False)
                if not urgent:
                    raise NoRoomError(found, ever=True, holders=self._holders(tenant))
            if idle:
                await self._unload(idle[0], tenant)
            else:
                await self._changed.wait()

    def give_back(self, tenant: Tenant) -> None:
        """The model's process is gone."""
        claim = self._claims.pop(tenant, None)
        if claim is not None:
            claim.gone.set()
            self.note_change()

    def note_change(self) -> None:
        """A model may have become idle."""
        self._changed.set()
        self._changed = trio.Event()

    def _found(self, facts: GgufFacts, wish: Wish, most: int | None) -> Plan | TooLarge:
        return plan(facts, _least(self.available(), most), wish)

    def _idle_others(self, tenant: Tenant) -> list[Tenant]:
        return sorted((t for t in self._claims if t is not tenant and t.idle), key=lambda t: t.last_used)

    def _holders(self, tenant: Tenant) -> tuple[str, ...]:
        return tuple(other.name for other in self._claims if other is not tenant)

    async def _unload(self, other: Tenant, tenant: Tenant) -> None:
        log.info("engine.unloaded", model=other.name, for_model=tenant.name, freed_bytes=self.claimed(other))
        gone = self._claims[other].gone
        other.leave()
        await gone.wait()


def _least(available: int, most: int | None) -> int:
    return available if most is None else min(available, most)
