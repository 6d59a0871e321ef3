"""Where messages go in the child: cancels and questions straight to the engine, requests to threads that prepare them.

Preparing takes as long as a template and a tokenizer take on what somebody sent: seconds for a megabyte of the wrong
kind. Requests with little text have a thread of their own, so that they never wait for such ones.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import traceback
from typing import Final, TypeAlias

from agent.engine.answers import failed
from agent.engine.embedding import Texts, tokenise
from agent.engine.inbox import Inbox
from agent.engine.llama import Model
from agent.engine.prepare import Prepared, Preparer
from agent.engine.protocol import Cancel, Embed, Failed, Message, Probe, Stats, Submit, Unload
from agent.errors import AgentError, BadRequestError

#: Characters of a request up to which it is prepared beside the larger ones.
LITTLE: Final = 32 * 1024

#: What the decoding thread is handed.
Item: TypeAlias = Prepared | Texts | Failed | Stats | Probe | Unload


class Desk:
    """Takes messages in and hands on what has become of them."""

    def __init__(self, inbox: Inbox[Item], model: Model, context_tokens: int, preparer: Preparer | None) -> None:
        """`preparer` is None for a model that gives vectors and no text."""
        self._inbox = inbox
        self._model = model
        self._context_tokens = context_tokens
        self._preparer = preparer
        self._little: queue.SimpleQueue[Submit | Embed] = queue.SimpleQueue()
        self._large: queue.SimpleQueue[Submit | Embed] = queue.SimpleQueue()

    def start(self) -> None:
        """Prepare requests from now on, in threads."""
        for requests in (self._little, self._large):
            threading.Thread(target=self._prepare_forever, args=(requests,), daemon=True).start()

    def put(self, message: Message) -> None:
        """Take in a message, in the reading thread."""
        match message:
            case Submit() | Embed():
                self._inbox.announce(message.id)
                (self._little if size_of(message) <= LITTLE else self._large).put(message)
            case Cancel(id):
                self._inbox.cancel(id)
            case Stats() | Probe() | Unload():
                self._inbox.put(message)

    def prepared(self, message: Submit | Embed) -> Prepared | Texts | Failed:
        """What becomes of a request; never raises an Exception."""
        try:
            if isinstance(message, Embed):
                return tokenise(self._model, message, self._context_tokens)
            if self._preparer is None:
                raise BadRequestError("the model gives vectors and no text; use /v1/embeddings")
            return self._preparer.prepare(message)
        except AgentError as error:
            return failed(message.id, error)
        except Exception as error:  # noqa: BLE001 - whatever somebody sent makes of a template harms nobody else
            sys.stderr.write(traceback.format_exc(limit=-3))
            sys.stderr.flush()
            return failed(message.id, BadRequestError(f"the request cannot be prepared ({type(error).__name__})"))

    def _prepare_forever(self, requests: queue.SimpleQueue[Submit | Embed]) -> None:
        try:
            while True:
                message = requests.get()
                if self._inbox.knows(message.id):
                    self._inbox.put(self.prepared(message))
        finally:
            os._exit(4)  # a process that prepares nothing any more is of no use, and looks as if it were


def size_of(message: Submit | Embed) -> int:
    """Characters of a request."""
    if isinstance(message, Embed):
        return sum(map(len, message.texts))
    parts = (message.prompt, message.prefix, message.tools, message.output_text)
    return sum(map(len, parts)) + sum(len(content) + len(more) for _, content, more in message.messages)
