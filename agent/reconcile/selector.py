"""Whether a box is one that a selector means, and if not, why. Pure."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from agent.manifests.selector import NUMBERS, SIZES, Compare, Term, parse_selector
from fleet.document.bodies import read_labels
from fleet.document.facts import Box
from fleet.errors import RefusedOpError

_HOLDS: Final[Mapping[Compare, Callable[[float, float], bool]]] = {
    "=": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


def why_not(terms: Iterable[Term], box: Box) -> str:
    """The first term that does not hold of a box, with what the box says instead; empty where all hold."""
    for term in terms:
        reason = _why_not(term, box)
        if reason:
            return reason
    return ""


def read_terms(selector: object) -> tuple[Term, ...]:
    """The terms of a selector as it stands in a manifest: `labels`, and `where` in words.

    Raises RefusedOpError and SelectorError for what is none.
    """
    if not isinstance(selector, dict):
        raise RefusedOpError("body", "it is no mapping")
    labels = read_labels(selector.get("labels", {}))
    where = selector.get("where", "")
    if not isinstance(where, str):
        raise RefusedOpError("body", "where is no text")
    return (*(Term(key, "=", value, label=True) for key, value in labels), *parse_selector(where))


def best_rate(box: Box) -> float:
    """Tokens per second of the model that a box was measured to decode fastest; 0 where nothing was."""
    return max((rate.decode for rate in box.rates), default=0.0)


def _why_not(term: Term, box: Box) -> str:
    if isinstance(term.value, float):
        return _number_not(term, term.value, box)
    found = _word(term, box)
    if term.key == "gpu" and not term.label:
        holds = bool(found) if term.value == "any" else not found if term.value == "none" else _is_part(term, found)
    else:
        holds = found.lower() == term.value.lower() if term.key == "arch" else found == term.value
    if holds == (term.compare == "="):
        return ""
    what = f"label {term.key}" if term.label else term.key
    return f"{term}: {what} is {found}" if found else f"{term}: it has no {what}"


def _is_part(term: Term, found: str) -> bool:
    return bool(found) and str(term.value).lower() in found.lower()


def _word(term: Term, box: Box) -> str:
    if term.label:
        return dict(box.node.labels).get(term.key, "")
    return {"arch": box.node.arch, "gpu": box.node.gpu, "name": box.node.name}[term.key]


def _number_not(term: Term, wanted: float, box: Box) -> str:
    has = {
        "ram": float(box.node.memory),
        "disk": float(box.node.disk),
        "cpus": float(box.node.cpus),
        "rate": best_rate(box),
    }[term.key]
    if not has:
        # An older box says less; what is not known is never taken for enough.
        return f"{term}: no rate was measured there yet" if term.key == "rate" else f"{term}: it does not say"
    if _HOLDS[term.compare](has, wanted):
        return ""
    if term.key in SIZES:
        return f"{term}: it has {has / 1e9:.3g}GB"
    assert term.key in NUMBERS
    return f"{term}: it has {has:.3g}" + (" tok/s" if term.key == "rate" else "")
