"""What a box says is wrong with it, from facts alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.observe.clocks import ClockFact
from agent.observe.known import (
    FEW_NUMBERS,
    AuditFact,
    DocumentFacts,
    Facts,
    KnockFact,
    LostClaimFact,
    ModelFact,
    PeerFact,
)
from agent.observe.link_warnings import QUIET_DOWN
from agent.observe.warnings import evaluate

ME, JETSON, STRANGER = "12D3KooWme", "12D3KooWjetson", "12D3KooWstranger"
WELL = Facts(
    peer_id=ME,
    name="pos-1",
    version="1.2.0",
    addrs=(f"/ip4/10.0.0.4/tcp/4210/p2p/{ME}",),
    allowed=(JETSON,),
    targets=(JETSON,),
    mdns=True,
    models=(ModelFact("smol", "loaded", None),),
    peers=(PeerFact(JETSON, "jetson-1", "connected", "", None, "1.2.0"),),
    memory_free=0.5,
    document=DocumentFacts("shops"),
)

LOST = LostClaimFact(STRANGER, "late-1", "ab12", ("till-2",))


def peer(**changes: object) -> Facts:
    return replace(WELL, peers=(replace(WELL.peers[0], **changes),))  # type: ignore[arg-type]


def document(**changes: object) -> Facts:
    return replace(WELL, document=replace(WELL.document, **changes))  # type: ignore[arg-type,type-var]


def test_a_box_that_is_well_has_no_warnings() -> None:
    assert evaluate(WELL) == ()


UNWELL = [
    ("model_failed", "error", replace(WELL, models=(ModelFact("smol", "failed", "the file is truncated"),)),
     ["smol", "the file is truncated", "shoal models retry smol"]),
    ("model_misnamed", "warning",
     replace(WELL, models=(ModelFact("gemma-2b", "idle", None, ("the name says 2B, the header 268M",)),)),
     ["gemma-2b", "the name says 2B, the header 268M", "models.name"]),
    ("conversations_unsaved", "warning",
     replace(WELL, models=(ModelFact("smol", "loaded", None, unsaved="No space left on device"),)),
     ["smol", "No space left on device", "state folder", "engine.session_cache_mib"]),
    ("audit_unwritten", "error", replace(WELL, audit=AuditFact("No space left on device", 70, 5)),
     ["No space left on device", "70 lines", "5 were dropped", "state folder", "audit.max_mib"]),
    ("engine_missing", "error", replace(WELL, engine_installed=False), ["smol", "pip install 'shoal[engine]'"]),
    ("refused_by_peer", "error", peer(state="refused", down_for=5.0, version=None),
     ["jetson-1", ME, f"shoal firewall explain {ME}"]),
    ("peer_not_allowed", "error", peer(state="denied", down_for=5.0, version=None),
     [f"shoal firewall explain {JETSON}"]),
    ("peer_unreachable", "warning",
     peer(state="unreachable", down_for=QUIET_DOWN + 12, last_error="connection refused", version=None),
     ["jetson-1", f"{QUIET_DOWN + 12:.0f} s", "connection refused"]),
    ("peer_unreachable", "warning", peer(state="connecting", down_for=QUIET_DOWN + 1, version=None), ["no answer yet"]),
    ("unknown_key_knocks", "warning", replace(WELL, knocks=(KnockFact(STRANGER, "10.0.0.9", 7),)),
     [STRANGER, "10.0.0.9", "7 times", "shoal invite", f"shoal firewall allow {STRANGER}"]),
    ("no_way_to_find_peers", "warning", replace(WELL, targets=(), peers=(), mdns=False), ["net.peers", "net.mdns"]),
    ("no_fleet", "warning", replace(WELL, document=None), ["shoal join", "shoal fleet init"]),
    ("alone_in_fleet", "info", replace(WELL, allowed=()), ["shops", "shoal invite"]),
    ("not_admitted", "error", document(admitted=False, standing="revoked"),
     ["revoked", f"shoal firewall explain {ME}"]),
    ("document_unsaved", "error", document(unsaved=True), ["disk"]),
    ("identity_cloned", "error", document(clones=2), ["2 times", "identity.seed"]),
    ("admin_forked", "error", document(forked_admins=(STRANGER,)), [STRANGER, "revoke"]),
    ("setting_conflict", "warning", document(conflicts=("place/a",)), ["place/a", "shoal history"]),
    ("contested_invite", "warning", document(lost_claims=(LOST,)),
     ["ab12", "late-1", "till-2", f"shoal admit {STRANGER}", f"shoal revoke {STRANGER}"]),
    ("contested_invite", "warning", document(lost_claims=(replace(LOST, name="", taken_by=()),)),
     [STRANGER, "others took them"]),
    ("not_admitted", "error", document(admitted=False, lost_claims=(replace(LOST, peer_id=ME),)),
     ["ab12", "till-2", "shoal admit", "shoal join"]),
    ("numbers_used_up", "warning", document(numbers_left=FEW_NUMBERS - 1),
     [str(FEW_NUMBERS - 1), "new identity", f"shoal revoke {ME}"]),
    ("outcast", "error", replace(WELL, refused_by=("jetson-1",)),
     ["jetson-1", ME, "likeliest first: it was revoked or denied", "were off", f"shoal admit {ME}", "shoal join"]),
    ("outcast", "error", replace(document(came_with="ab12"), refused_by=("jetson-1",), join_problem="used up"),
     ["ab12", "used up"]),
    ("clock_behind", "warning", replace(WELL, clocks=(ClockFact("till-2", 3600.0), ClockFact("till-3", -90000.0))),
     ["till-2 60 min", "NTP"]),
    ("peer_clock_ahead", "warning", replace(WELL, clocks=(ClockFact("till-2", 3600.0), ClockFact("till-3", -2.0))),
     ["till-2 60 min", "NTP"]),
    ("no_fleet", "warning", replace(WELL, document=None, join_problem="nobody answers"), ["nobody answers"]),
    ("flooded", "warning", replace(WELL, turned_away={"half_open_dropped": 7, "handshake_timed_out": 2}),
     ["7 were dropped in mid-handshake", "2 did not finish", "ss -tn", "net.listen"]),
    ("flooded", "warning", replace(WELL, turned_away={"no_place_left": 3, "too_many_of_one_key": 4}),
     ["3 found every place", "4 came from a box", "shoal firewall deny"]),
    ("own_key_configured", "warning", replace(WELL, allowed=(JETSON, ME)), ["copied"]),
    ("own_key_configured", "warning", replace(WELL, targets=(JETSON, ME)), ["copied"]),
    ("low_memory", "warning", replace(WELL, memory_free=0.09), ["9%"]),
    ("loopback_only", "info", replace(WELL, addrs=(f"/ip4/127.0.0.1/tcp/4210/p2p/{ME}", "/ip6/::1/tcp/4210")),
     ["/ip4/127.0.0.1/tcp/4210", "net.listen"]),
    ("no_address", "info", replace(WELL, addrs=()), ["net.listen"]),
    ("duplicate_name", "info", peer(name="pos-1"), ["pos-1", "2 boxes"]),
    ("version_skew", "info", peer(version="1.1.0"), ["jetson-1", "1.1.0", "1.2.0"]),
]  # fmt: skip


@pytest.mark.parametrize(("code", "severity", "facts", "words"), UNWELL, ids=[row[0] for row in UNWELL])
def test_b34_a_problem_is_named_with_its_remedy(code: str, severity: str, facts: Facts, words: list[str]) -> None:
    found = evaluate(facts)
    assert [(warning.code, warning.severity) for warning in found] == [(code, severity)]
    text = "\n".join((found[0].title, found[0].text, found[0].remedy))
    assert all(word in text for word in words), text
    assert found[0].title
    assert found[0].text
    assert found[0].remedy


@pytest.mark.parametrize(
    "facts",
    [
        replace(WELL, models=(ModelFact("smol", "loading", None), ModelFact("b", "idle", None))),
        replace(WELL, models=(), engine_installed=False),
        peer(state="unreachable", down_for=QUIET_DOWN, last_error="x", version=None),
        peer(state="connecting", down_for=None, version=None),
        replace(WELL, knocks=(KnockFact(JETSON, "10.0.0.9", 3),)),
        replace(WELL, targets=(), peers=()),
        replace(WELL, mdns=False),
        replace(WELL, addrs=("/ip4/127.0.0.1/tcp/1", "/ip4/10.0.0.4/tcp/1")),
        replace(WELL, addrs=("not an address",)),
        replace(WELL, peers=(*WELL.peers, *WELL.peers)),
        replace(WELL, memory_free=0.10),
        replace(WELL, turned_away={"half_open_dropped": 0}),
        document(numbers_left=FEW_NUMBERS, came_with="ab12"),
    ],
)
def test_what_is_ordinary_is_not_reported(facts: Facts) -> None:
    assert evaluate(facts) == ()


def test_the_worst_comes_first() -> None:
    facts = replace(
        WELL,
        memory_free=0.01,
        addrs=(),
        models=(ModelFact("smol", "failed", "truncated"),),
        knocks=(KnockFact(STRANGER, "", 1),),
    )
    severities = [warning.severity for warning in evaluate(facts)]
    assert severities == ["error", "warning", "warning", "info"]


def test_every_peer_and_model_in_trouble_is_named() -> None:
    facts = replace(
        WELL,
        models=tuple(ModelFact(name, "failed", "truncated") for name in "ab"),
        peers=tuple(PeerFact(name, name, "refused", "", 1.0, None) for name in ("x", "y")),
    )
    titles = [warning.title for warning in evaluate(facts)]
    assert len(titles) == 4
    assert len(set(titles)) == 4
