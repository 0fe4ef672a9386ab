"""`/v1/responses` works with the real client of OpenAI, and with the requests of Codex."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.agents import codex
from support.client import events_of
from support.client_programs import script
from support.server import Server, wait_for

PARIS = "The capital of France is Paris."


def test_the_openai_package_works_unmodified(smollm2_server: Server) -> None:
    found = script("responses", smollm2_server.url)
    assert found["whole"] == found["streamed"] == found["accumulated"] == found["async"] == PARIS
    assert (found["status"], found["total"]) == ("completed", 0)
    names = [name.removeprefix("response.") for name in found["events"]]
    assert names[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(names[4:-4]) == {"output_text.delta"}
    assert names[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert found["numbers"] == list(range(len(names)))
    assert found["short"] == ["incomplete", "max_output_tokens"]
    assert found["logprobs"][0].startswith(PARIS)
    assert found["logprobs"][1] == 2
    stored = found["stored"]
    assert stored["read"] is True
    assert stored["longer"] > -20  # The instructions do not carry over; everything else does.
    assert stored["items"] == ["And of Italy?"]
    assert stored["referred"] == "completed"
    assert stored["still longer"] is True
    assert stored["after"] == {
        "read": [404, "id"],
        "continue": [404, "previous_response_id"],
        "cancel": [400, "id"],
        "not stored": [404, "id"],
    }
    background = found["background"]
    assert (background["begun"], background["status"], background["text"]) == ("queued", "completed", PARIS)
    names = [name.removeprefix("response.") for name in background["events"]]
    assert names[:4] == ["created", "queued", "in_progress", "output_item.added"]
    assert names[-1] == "completed"
    assert background["rest"] is True
    assert (background["cancelled"], background["again"]) == (["cancelled", "cancelled"], "cancelled")
    assert background["follow"] == "incomplete"


@pytest.mark.parametrize("kind", ["smollm2_server", "reciting_server"])
def test_the_turns_of_codex_share_their_prefix(kind: str, request: pytest.FixtureRequest) -> None:
    server: Server = request.getfixturevalue(kind)
    before = 0
    for turn in range(3):
        body = codex(turn) | {"max_output_tokens": 8, "temperature": 0}
        events: list[dict[str, Any]] = list(server.client.stream("/v1/responses", body))
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        last = events[-1]
        assert last["type"] in ("response.completed", "response.incomplete")
        usage = last["response"]["usage"]
        assert usage["input_tokens_details"]["cached_tokens"] >= 0.95 * before, (turn, usage, before)
        before = usage["input_tokens"]
        assert [tool["type"] for tool in last["response"]["tools"]] == [tool["type"] for tool in body["tools"]]
    assert before > 1000


def test_each_key_has_its_own_responses(tiny: Callable[[str], Path]) -> None:
    flags = ("--dtype", "float32", "--response-store-bytes", 20_000)
    with Server("--model-id", tiny("llama"), *flags, env={"API_KEY": "one,two"}) as server:
        http = server.client.http

        def call(method: str, path: str, key: str, **options: Any) -> Any:
            return http.request(method, path, headers={"authorization": f"Bearer {key}"}, **options)

        body = {"input": "hi", "max_output_tokens": 1}
        first = call("POST", "/v1/responses", "one", json=body).json()
        path = f"/v1/responses/{first['id']}"
        assert call("GET", path, "one").json() == first
        for method in ("GET", "DELETE"):
            assert call(method, path, "two").status_code == 404
            assert call(method, path, "three").status_code == 401
        assert http.get(path).status_code == 401
        assert call("GET", f"{path}/input_items", "one").json()["data"][0]["role"] == "user"
        for _ in range(20):
            last = call("POST", "/v1/responses", "one", json=body).json()
        assert call("GET", path, "one").status_code == 404, "the oldest has given way"
        assert call("GET", f"/v1/responses/{last['id']}", "one").status_code == 200
        assert call("DELETE", f"/v1/responses/{last['id']}", "one").json()["deleted"] is True


def test_errors_name_the_field(smollm2_server: Server) -> None:
    client = smollm2_server.client
    for body, field in [
        ({}, "input"),
        ({"input": 5}, "input"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0].type",
        ),
        ({"input": [{"type": "item_reference", "id": "nobody"}]}, "input[0].id"),
        ({"input": "Hi", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "Hi", "temperature": -1}, "temperature"),
        ({"input": "Hi", "top_logprobs": 21}, "top_logprobs"),
        ({"input": "Hi", "truncation": "some"}, "truncation"),
        ({"input": "Hi", "metadata": {"a": 1}}, "metadata"),
        ({"input": "Hi", "tool_choice": "required"}, "tool_choice"),
        ({"input": "Hi", "tools": [{"name": "f"}]}, "tools[0].type"),
        ({"input": "Hi", "text": {"format": {"type": "yaml"}}}, "text.format.type"),
        ({"input": "Hi", "conversation": "conv_1"}, "conversation"),
        ({"input": "Hi", "background": True, "store": False}, "background"),
        ({"input": "Hi", "background": "yes"}, "background"),
        ({"input": "hello " * 20_000, "truncation": "auto"}, "input"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "messages"),
        ({"input": "hello " * 20_000}, "input"),
    ]:
        response = client.post("/v1/responses", body)
        assert response.status_code == (404 if field == "input[0].id" else 400), (body, response.text[:200])
        assert response.json()["error"]["param"] == field, response.text[:200]


def read_events(server: Server, id: str, query: str) -> list[dict[str, Any]]:
    with server.client.http.stream("GET", f"/v1/responses/{id}?stream=true{query}") as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return list(events_of(response))


def test_a_response_in_the_background_goes_on_when_its_client_leaves(smollm2_server: Server) -> None:
    client = smollm2_server.client
    body = {"input": "Tell me about the sea.", "temperature": 0, "max_output_tokens": 40}
    with client.http.stream("POST", "/v1/responses", json=body | {"background": True, "stream": True}) as response:
        first = next(events_of(response))
    id = first["response"]["id"]
    assert (first["type"], first["response"]["status"]) == ("response.created", "queued")
    events = read_events(smollm2_server, id, "")
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["type"] == "response.incomplete"
    # The events again, now of a response that has ended: all of them, some, and none.
    assert read_events(smollm2_server, id, "") == events
    assert read_events(smollm2_server, id, "&starting_after=3") == events[4:]
    assert read_events(smollm2_server, id, f"&starting_after={len(events) - 1}") == []
    whole = client.get(f"/v1/responses/{id}").json()
    assert whole == events[-1]["response"]
    foreground = client.ok("/v1/responses", body)
    assert whole["output"][0]["content"] == foreground["output"][0]["content"]
    assert whole["background"] is True and foreground["background"] is False
    for query, field in [
        ("?starting_after=1", "starting_after"),
        ("?stream=true&starting_after=-1", "query"),
        ("?stream=maybe", "query"),
    ]:
        refused = client.get(f"/v1/responses/{id}{query}")
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)
    refused = client.get(f"/v1/responses/{foreground['id']}?stream=true")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "stream")


def test_a_response_that_runs_can_be_read_cancelled_and_removed(smollm2_server: Server) -> None:
    client = smollm2_server.client
    body = {"input": "Tell me a long story about the sea.", "background": True, "temperature": 0}
    begun = client.ok("/v1/responses", body)
    id = begun["id"]
    assert client.get(f"/v1/responses/{id}").json()["status"] in ("queued", "in_progress")
    [item] = client.get(f"/v1/responses/{id}/input_items").json()["data"]
    assert item["content"][0]["text"] == body["input"]
    refused = client.post("/v1/responses", {"input": "And?", "previous_response_id": id})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "previous_response_id")
    ended = client.together(
        [
            lambda: read_events(smollm2_server, id, ""),
            lambda: client.post(f"/v1/responses/{id}/cancel", {}).json(),
        ]
    )
    assert ended[1]["status"] == "cancelled"
    assert all(event["type"] != "response.completed" for event in ended[0])
    assert client.get(f"/v1/responses/{id}").json()["status"] == "cancelled"
    other = client.ok("/v1/responses", body)["id"]
    assert client.http.delete(f"/v1/responses/{other}").json()["deleted"] is True
    assert client.get(f"/v1/responses/{other}").status_code == 404
    wait_for(lambda: client.metric("gridwork_running_sequences") == 0, 30, "nothing runs")


def test_responses_in_the_background_are_bounded_by_the_store(tiny: Callable[[str], Path]) -> None:
    flags = ("--dtype", "float32", "--response-store-bytes", 30_000)
    with Server("--model-id", tiny("llama"), *flags) as server:
        client = server.client
        body = {"input": "hi", "background": True, "temperature": 1, "max_output_tokens": 600}
        refused = client.post("/v1/responses", body | {"input": "hello " * 6000})
        assert refused.status_code == 400
        # A random model may end at any token; this answer is long.
        long = {"type": "json_schema", "name": "long", "schema": {"type": "string", "minLength": 5000}}
        id = client.ok("/v1/responses", body | {"text": {"format": long}, "max_output_tokens": 900})["id"]
        wait_for(lambda: client.metric("gridwork_running_sequences") == 0, 60, "it ends")
        ended = lambda: client.get(f"/v1/responses/{id}").json().get("status")  # noqa: E731
        wait_for(lambda: ended() not in ("queued", "in_progress"), 20, "it is told")
        assert ended() in ("failed", None)
        assert client.ok("/v1/responses", {"input": "hi", "max_output_tokens": 1})["status"] == "incomplete"


def test_a_conversation_that_is_too_long_loses_its_oldest_turns(tiny: Callable[[str], Path]) -> None:
    with Server("--model-id", tiny("llama"), "--dtype", "float32", "--max-total-tokens", 400) as server:
        client = server.client
        turns: list[dict[str, Any]] = []
        for number in range(12):
            turns += [
                {"role": "user", "content": f"Question {number}: what does the harbour look like at night?"},
                {"role": "assistant", "content": f"Answer {number}: it is dark and quiet there."},
            ]
        last = {"role": "user", "content": "And by day?"}
        body = {"instructions": "Be brief.", "max_output_tokens": 4, "temperature": 0}
        refused = client.post("/v1/responses", body | {"input": [*turns, last]})
        assert refused.json()["error"]["code"] == "context_length_exceeded"
        cut = client.ok("/v1/responses", body | {"input": [*turns, last], "truncation": "auto"})
        assert cut["truncation"] == "auto"
        # Exactly the conversation without its oldest turns, of which as many stay as fit.
        tokens = []
        for left in range(0, len(turns) + 1, 2):
            response = client.post("/v1/responses", body | {"input": [*turns[len(turns) - left :], last]})
            if response.status_code == 200:
                tokens.append(response.json()["usage"]["input_tokens"])
        assert cut["usage"]["input_tokens"] == max(count for count in tokens if count <= 399 - 4)
        assert len(tokens) < 13
        short = client.ok("/v1/responses", body | {"input": [last], "truncation": "auto"})
        assert short["usage"]["input_tokens"] == tokens[0]
