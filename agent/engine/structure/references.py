"""What a reference in a schema points to. Pure."""

from __future__ import annotations

from urllib.parse import unquote

from agent.engine.structure.scalars import Problem


def resolve(root: object, ref: object, where: str, problem: Problem) -> tuple[str, object]:
    """The pointer that a reference is, and what is there in the schema `root`."""
    if not isinstance(ref, str):
        raise problem("a reference is a string", where)
    if not ref.startswith("#"):
        raise problem("only references into the schema itself are followed; put it into $defs", where)
    pointer = unquote(ref[1:])
    if pointer and not pointer.startswith("/"):
        raise problem("only references by JSON Pointer are followed, like #/$defs/NAME", where)
    found = root
    for part in pointer.split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and part in found:
            found = found[part]
        elif isinstance(found, list) and part.isascii() and part.isdigit() and len(part) < 6 and int(part) < len(found):
            found = found[int(part)]
        else:
            raise problem("there is nothing at this reference", where)
    return pointer, found
