"""`/v1/responses` works with the real client of OpenAI, and with the requests of Codex."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.agents import codex
from support.client_programs import script
from support.server import Server

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
        "background": [400, "background"],
    }


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
        ({"messages": [{"role": "user", "content": "Hi"}]}, "messages"),
        ({"input": "hello " * 20_000}, "input"),
    ]:
        response = client.post("/v1/responses", body)
        assert response.status_code == (404 if field == "input[0].id" else 400), (body, response.text[:200])
        assert response.json()["error"]["param"] == field, response.text[:200]
