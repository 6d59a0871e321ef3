"""How long a job would wait and take here, as far as can be told from the jobs before it. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from fleet.net.messages import InferRequest

#: Seconds that a job is taken to last, and tokens that an answer is taken to have, before anything has been measured.
JOB_SECONDS: Final = 5.0
ANSWER_TOKENS: Final = 128
#: Bytes of a prompt that make a token.
_BYTES_PER_TOKEN: Final = 4


@dataclass(frozen=True)
class Forecast:
    """What is known when a job comes: how many are `ahead` of it in the queue, how many run in how many slots.

    `job_seconds` is what jobs took in a slot lately, `decode_rate` tokens per second; None before the first one.
    """

    ahead: int
    running: int
    slots: int
    job_seconds: float | None
    decode_rate: float | None

    @property
    def wait(self) -> float:
        """Seconds until the job would get a slot."""
        before = max(0, self.ahead + self.running + 1 - self.slots)
        return before / self.slots * (self.job_seconds or JOB_SECONDS)

    @property
    def begins_in(self) -> float:
        """Seconds until the job would get a slot, at the best: jobs that run are half done."""
        if self.job_seconds is None:
            return 0.0
        return max(0.0, self.wait - self.job_seconds / self.slots / 2)

    def done_in(self, request: InferRequest) -> float:
        """Seconds until the job would be done, at the best: an answer may be as short as the last ones were."""
        most = request.sampling.max_tokens or ANSWER_TOKENS
        decoding = min(most, ANSWER_TOKENS) / self.decode_rate if self.decode_rate else 0.0
        return self.wait + (min(decoding, self.job_seconds) if self.job_seconds is not None else decoding)

    @property
    def retry_after(self) -> int:
        """Seconds after which a job that is refused now may find room.

        By then half of the jobs that wait before it have gone, and one in any case: the next place would be anybody's.
        """
        return max(1, math.ceil(max(self.wait / 2, (self.job_seconds or JOB_SECONDS) / self.slots)))

    def come_back(self, request: InferRequest) -> int:
        """Seconds after which a job that was refused may be taken: there is room then, and it would be in time."""
        late = 0.0 if request.deadline_ms is None else self.done_in(request) - request.deadline_ms / 1000
        early = 0.0 if request.begin_ms is None else self.begins_in - request.begin_ms / 1000
        return max(self.retry_after, math.ceil(late), math.ceil(early))

    def too_late(self, request: InferRequest) -> str | None:
        """Why the job cannot begin, or be done, by the time that it has for that, None where it may.

        Nothing speaks against a wait as long as no job has shown how long jobs take.
        """
        others = f"{self.ahead} jobs wait before it, {self.running} run"
        if request.deadline_ms is not None and (eta := self.done_in(request)) * 1000 > request.deadline_ms:
            return f"it would be done in about {eta:.1f} s and has {request.deadline_ms / 1000:g} s left ({others})"
        if request.begin_ms is not None and self.begins_in * 1000 > request.begin_ms:
            return (
                f"its turn would come in about {self.wait:.1f} s and it waits for {request.begin_ms / 1000:g} s"
                f" ({others})"
            )
        return None


def work_of(request: InferRequest) -> float:
    """About how many tokens a job is, of its prompt and its answer, for sharing turns; at least 1."""
    size = len(request.prompt) + len(request.prefix) + sum(map(len, request.texts))
    size += sum(len(message.content) for message in request.messages)
    answer = 0 if request.kind == "embedding" else request.sampling.max_tokens or ANSWER_TOKENS
    return max(1.0, size / _BYTES_PER_TOKEN + answer)
