"""What the end of a model's process means for the model: whose fault it was, and what is to be tried next. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Death:
    """How a process ended.

    `how` says it in words, `last_line` is the last thing it wrote. `loaded` is whether it had its model; `refused` is
    what it said of a model that it could not load, or that it took too long. `killed` is whether it died of a kill,
    and `ended_here` whether that was this agent's, because it hung or wrote what is no message. `out_of_memory` is
    whether the kernel killed it for want of memory. `excused` is whether this agent, having ended it, does not hold
    that against the model: it hung, and the process before it did not, or the model has given something since.
    """

    how: str
    last_line: str = ""
    loaded: bool = False
    refused: str = ""
    killed: bool = False
    ended_here: bool = False
    out_of_memory: bool = False
    excused: bool = False

    @property
    def words(self) -> str:
        """How it ended, with what it said last."""
        return self.how + (f": {self.last_line}" if self.last_line else "")


#: What is to be done: load it again, with less memory or as it was; wait a while, or for another file.
Next = Literal["smaller", "again", "later", "another file"]


@dataclass(frozen=True)
class Judgement:
    """What a death means. `reason` is what those are told who wait for the model, or had work in it.

    `crash` is whether it speaks against the model, which is put aside after two of them.
    """

    next: Next
    reason: str
    crash: bool = False


def judge(name: str, death: Death) -> Judgement:
    """The meaning of a death of a model's process."""
    if death.out_of_memory:
        return Judgement("smaller", f"the kernel ended the process that runs {name} for want of memory")
    if death.loaded:
        # A kill from outside says nothing of the model; a process killed here hung, or wrote what is no message.
        crash = (not death.killed or death.ended_here) and not death.excused
        return Judgement("again", f"the process that runs {name} {death.how}", crash)
    if death.refused:
        # Too slow may be other programs' doing; what llama.cpp says of a file it says again.
        return Judgement("later" if death.killed else "another file", death.refused)
    reason = f"the process that loads it {death.words}"
    return Judgement("later", reason) if death.killed else Judgement("again", reason, crash=True)
