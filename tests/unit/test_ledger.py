"""Cells are counted as a plain set of cells would count them."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from agent.engine.ledger import Ledger

SEQS = range(4)
MOVES = st.lists(
    st.tuples(
        st.sampled_from(["append", "trim", "share", "drop"]),
        st.sampled_from(SEQS),
        st.sampled_from(SEQS),
        st.integers(0, 12),
    ),
    max_size=40,
)


@given(MOVES)
def test_cells_are_counted_once_however_many_share_them(moves: list[tuple[str, int, int, int]]) -> None:
    ledger = Ledger(1000)
    cells: dict[int, list[int]] = {seq: [] for seq in SEQS}
    fresh = itertools.count()
    for move, seq, other, count in moves:
        match move:
            case "append":
                ledger.append(seq, count)
                cells[seq] += [next(fresh) for _ in range(count)]
            case "trim":
                ledger.trim(seq, count)
                del cells[seq][count:]
            case "share" if not cells[seq] and seq != other:
                ledger.share(other, seq, count)
                cells[seq] = cells[other][:count]
            case "drop":
                ledger.drop(seq)
                cells[seq] = []
        used = set().union(*cells.values())
        assert ledger.used == len(used)
        assert ledger.free == 1000 - len(used)
        for one in SEQS:
            assert ledger.length(one) == len(cells[one])
            others = set().union(*(cells[two] for two in SEQS if two != one))
            assert ledger.own(one) == len(set(cells[one]) - others)
