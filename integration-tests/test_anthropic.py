"""`/v1/messages` works with the real client of Anthropic, and with the requests of Claude Code."""

from typing import Any

import pytest
from support.agents import claude_code
from support.client_programs import script
from support.server import Server

PARIS = "The capital of France is Paris."


def test_the_anthropic_package_works_unmodified(smollm2_server: Server) -> None:
    found = script("messages", smollm2_server.url)
    assert found["whole"] == found["streamed"] == found["async"] == PARIS
    assert (found["stop_reason"], found["accumulated"]) == ("end_turn", [PARIS, "end_turn", found["output_tokens"]])
    assert found["stopped"] == ["The capital of", "stop_sequence", " France"]
    assert found["short"] == ["max_tokens", 2]
    assert found["counted"] == found["usage"]
    assert found["continued"] == " Paris."
    assert len(found["models"]) == 1
    assert found["with tools"] == "text"
    begin, middle = ["message_start", "ping", "content_block_start"], set(found["raw"][3:-3])
    # The package hides pings.
    begin = [name for name in begin if name in found["raw"]]
    assert found["raw"][: len(begin)] == begin
    assert middle == {"content_block_delta"}
    assert found["raw"][-3:] == ["content_block_stop", "message_delta", "message_stop"]
    for name, error in found["errors"].items():
        assert error.startswith("BadRequestError: "), (name, error)
    assert "prompt is too long: " in found["errors"]["too long, False"]
    assert "temperature" in found["errors"]["wrong, True"]
    assert "messages[0].content[0].type" in found["errors"]["image, False"]


def usage(events: list[dict[str, Any]]) -> dict[str, Any]:
    (delta,) = [event for event in events if event["type"] == "message_delta"]
    return delta["usage"]


@pytest.mark.parametrize("kind", ["smollm2_server", "reciting_server"])
def test_the_turns_of_claude_code_share_their_prefix(kind: str, request: pytest.FixtureRequest) -> None:
    server: Server = request.getfixturevalue(kind)
    client = server.client
    before = 0
    for turn in range(3):
        body = claude_code(turn) | {"max_tokens": 32_000, "temperature": 0, "stop_sequences": ["."]}
        events = list(client.stream("/v1/messages?beta=true", body))
        assert events[0]["type"] == "message_start"
        assert events[-1]["type"] == "message_stop"
        used = usage(events)
        prompt = used["input_tokens"] + used["cache_read_input_tokens"] + used["cache_creation_input_tokens"]
        # The requests mark what they want to be cached.
        assert used["cache_creation_input_tokens"] > used["input_tokens"]
        assert sum(used["cache_creation"].values()) == used["cache_creation_input_tokens"]
        assert used["output_tokens_details"] == {"thinking_tokens": 0}
        assert used["service_tier"] == "standard"
        counted = client.ok("/v1/messages/count_tokens?beta=true", body)
        assert counted == {"input_tokens": prompt}
        assert used["cache_read_input_tokens"] >= 0.95 * before, (turn, used, before)
        before = prompt
    assert before > 1000


def test_tokens_count_as_written_to_the_cache_where_a_request_marks_them(smollm2_server: Server) -> None:
    client = smollm2_server.client
    text = "The tide comes in, the tide goes out, and nobody asks why. " * 12

    def used(mark: dict[str, Any] | None, salt: str) -> dict[str, Any]:
        block = {"type": "text", "text": text, "cache_control": mark}
        body = {"messages": [{"role": "user", "content": [block]}], "max_tokens": 1, "cache_salt": salt}
        return client.ok("/v1/messages", body)["usage"]

    plain = used(None, "a")
    prompt = plain["input_tokens"]
    assert (plain["cache_creation_input_tokens"], plain["cache_read_input_tokens"]) == (0, 0)
    short, long = used({"type": "ephemeral"}, "b"), used({"type": "ephemeral", "ttl": "1h"}, "c")
    for found, name in ((short, "ephemeral_5m_input_tokens"), (long, "ephemeral_1h_input_tokens")):
        assert found["cache_creation"][name] == found["cache_creation_input_tokens"] > 0
        assert found["input_tokens"] + found["cache_creation_input_tokens"] == prompt
    again = used({"type": "ephemeral"}, "b")
    assert again["cache_read_input_tokens"] > 0
    parts = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    assert sum(again[part] for part in parts) == prompt


def test_errors_have_the_shape_of_the_api(smollm2_server: Server) -> None:
    client = smollm2_server.client
    good: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages[0].content[0].text"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"thinking": {"type": "often"}}, "thinking.type"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
    ]
    for body, field in cases:
        response = client.post("/v1/messages", good | body)
        error = response.json()
        assert response.status_code == 400, (body, response.text)
        assert error["type"] == "error" and error["error"]["type"] == "invalid_request_error"
        assert field in error["error"]["message"], (body, error)
    missing = client.post("/v1/messages/batches", good)
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found_error")
    assert client.get("/v1/messages").status_code == 405
