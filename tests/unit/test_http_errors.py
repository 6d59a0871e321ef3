"""What an HTTP client sees of an error."""

from __future__ import annotations

import json

import pytest

from agent import errors as agent_errors
from agent.errors import HTTP_STATUS, AgentError, ContextLengthError, NoCapablePeerError, NoLocalModelError
from agent.http.errors import internal, problem_of
from agent.http.sse import encode_json, header_text
from fleet.errors import BacklogError, FleetError, RemoteError


def test_the_status_comes_from_the_one_table_and_details_stay() -> None:
    problem = problem_of(ContextLengthError("9 > 8", details={"prompt_tokens": 9, "context_tokens": 8}))
    assert problem is not None
    assert problem.status == 400
    error = problem.body()["error"]
    assert error == {
        "message": "9 > 8",
        "type": "invalid_request_error",
        "param": None,
        "code": "context_length_exceeded",
        "details": {"prompt_tokens": 9, "context_tokens": 8},
    }


def test_b5_retry_after_is_sent() -> None:
    problem = problem_of(NoCapablePeerError("none", retry_after=30))
    assert problem is not None
    assert (problem.status, problem.headers()) == (503, [("retry-after", "30")])


def test_clients_are_told_where_sending_again_is_useless() -> None:
    problem = problem_of(NoLocalModelError("none"))
    assert problem is not None
    assert ("x-should-retry", "false") in problem.headers()


def test_an_answer_that_was_not_read_in_time_can_be_asked_for_again() -> None:
    problem = problem_of(BacklogError("too much waits", details={"waiting_bytes": 9, "limit_bytes": 8}))
    assert problem is not None
    assert (problem.status, problem.code, problem.retryable) == (503, "backlog", True)
    assert ("x-should-retry", "false") not in problem.headers()
    assert problem.details == {"waiting_bytes": 9, "limit_bytes": 8}


def test_an_error_in_a_group_of_one_is_that_error() -> None:
    group = ExceptionGroup("a", [ExceptionGroup("b", [NoCapablePeerError("none")])])
    problem = problem_of(group)
    assert problem is not None
    assert problem.code == "no_capable_peer"


@pytest.mark.parametrize("error", [ValueError("/etc/x"), AgentError("x"), agent_errors.ConfigError("/etc/x")])
def test_what_is_no_client_error_is_hidden(error: Exception) -> None:
    assert problem_of(error) is None
    shown = json.dumps(internal("job-1").body())
    assert "/etc" not in shown
    assert "job-1" in shown


def test_errors_of_peers_keep_codes_that_are_known_and_lose_others() -> None:
    for code, expected in (
        ("overloaded", "overloaded"),
        ("shell", "peer_unreachable"),
        ("internal", "peer_unreachable"),
    ):
        problem = problem_of(RemoteError(code, "m" * 9000))
        assert problem is not None
        assert problem.code == expected
        assert len(problem.message) <= 4096
    problem = problem_of(FleetError("x"))
    assert problem is not None
    assert problem.status == 502


def test_every_code_of_the_tree_that_can_reach_a_client_has_a_status() -> None:
    for kind in vars(agent_errors).values():
        if isinstance(kind, type) and issubclass(kind, AgentError) and kind.code != "config":
            assert kind.code in HTTP_STATUS


def test_headers_and_json_are_safe_whatever_the_text() -> None:
    assert header_text("a\r\nSet-Cookie: x\x00é") == "a??Set-Cookie: x??"
    assert len(header_text("x" * 5000)) == 1024
    assert encode_json({"a": "\ud800\n\u2028"}).count(b"\n") == 0
