"""Frameworks for agents work unmodified: conversations with calls, typed answers, and errors of their own classes."""

from typing import Any

import pytest
from support.client_programs import script
from support.paths import CLIENTS_AGENTS, LONG
from support.reciter import ANSWER, SCRIPTS
from support.server import Server

CITY = {"city": "Paris"}
CALL = ["get_weather", CITY]

#: Takes too long for every change.
LONG_FORM = pytest.mark.skipif(not LONG, reason="the long form runs it")


def is_forecast(made: dict[str, Any]) -> bool:
    return (
        set(made) == {"city", "days", "rain"}
        and made["city"] in ("Paris", "Rome")
        and 1 <= made["days"] <= 9
        and 1 <= len(made["rain"]) <= 2
    )


def test_the_openai_agents_sdk_converses(reciting_server: Server, smollm2_server: Server) -> None:
    found = script("openai_agents", reciting_server.url, smollm2_server.url, environment=CLIENTS_AGENTS)
    for api in ("responses", "chat"):
        told = found[api]
        assert told["whole"] == [ANSWER, ["ToolCallItem", "ToolCallOutputItem", "MessageOutputItem"], ["Paris"]]
        assert told["usage"] == [2, 0]
        assert sorted(told["two calls"]) == ["Paris", "Rome"]
        assert told["streamed"] == [ANSWER, True, ["tool_called", "tool_output", "message_output_created"], ANSWER]
        assert told["session"] == [ANSWER, 6]
        assert told["required"] == ANSWER
    assert found["handoff"] == [["Weather agent", ANSWER]] * 2
    assert is_forecast(found["structured"]["responses"])
    assert found["structured"]["responses"] == found["structured"]["chat"]
    assert found["overflow"] == ["BadRequestError", "context_length_exceeded"]


@LONG_FORM
def test_pydantic_ai_converses_with_every_api(reciting_server: Server, smollm2_server: Server) -> None:
    found = script("pydantic_agents", reciting_server.url, smollm2_server.url, environment=CLIENTS_AGENTS)
    for prompted in found.pop("prompted"):
        assert isinstance(prompted, dict)
    for name, told in found.items():
        conversation = told["conversation"]
        assert conversation["whole"] == [ANSWER, ["Paris"]], name
        assert conversation["parts"] == ["user-prompt", "tool-call", "tool-return", "text"], name
        # A response of OpenAI's newer API is completed, whatever is in it.
        assert conversation["finish"] == ["stop" if name == "responses" else "tool_call", "stop"], name
        assert conversation["usage"] == [2, 1, True, True], name
        assert sorted(conversation["two calls"]) == ["Paris", "Rome"], name
        # The hub's client does not ask for the usage of a stream.
        assert conversation["streamed"] == [ANSWER, True, name != "huggingface"], name
        assert conversation["followed"] == ANSWER, name
        union = told["structured"].pop("union")
        assert union in ("Forecast", "str"), name
        for kind, made in told["structured"].items():
            assert made["city"] in ("Paris", "Rome") and made["days"] in (1, 2, 3), (name, kind, made)
            assert made["rain"] in ("none", "some", "much") and len(made) == 3, (name, kind, made)
        kind = "ModelRequestRejectedError" if name == "huggingface" else "ModelContextWindowExceededError"
        assert told["overflow"] == [kind, 400], name


@LONG_FORM
def test_smolagents_call_tools_and_write_code(reciting_server: Server, smollm2_server: Server) -> None:
    found = script("smol_agents", reciting_server.url, smollm2_server.url, environment=CLIENTS_AGENTS)
    for model in ("openai", "hub", "hub, base_url"):
        for streams in ("False", "True"):
            assert found[model][f"tools, {streams}"] == ["success", ANSWER, ["Paris"], True], model
            assert found[model][f"code, {streams}"] == ["success", "sunny in Paris", ["Paris"], True], model
    assert found["structured"] == ["code", "thought"]
    assert found["overflow"] == "BadRequestError"


def test_dspy_reads_fields_and_types(reciting_server: Server, smollm2_server: Server, minilm_server: Server) -> None:
    urls = (reciting_server.url, smollm2_server.url, minilm_server.url)
    found = script("dspy_programs", *urls, environment=CLIENTS_AGENTS)
    prediction = {"city": "Paris", "days": 3, "answer": ANSWER}
    streamed = found["chat"].pop("streamed")
    assert streamed == [ANSWER, True, prediction]
    for name, made in found["chat"].items():
        assert made == prediction, name
    assert found["tools"] == [CALL]
    for name, made in found["typed"].items():
        assert made["city"] in ("Paris", "Rome"), name
        assert isinstance(made["is_sunny"], bool), name
        assert made["today"]["rain"] in ("none", "some", "much") and -9 <= made["today"]["degrees"] <= 40, name
    assert found["text"].strip()
    assert found["overflow"] == ["ContextWindowExceededError"] * 2
    assert found["embed"] == [300, 384]


@LONG_FORM
def test_haystack_generates_embeds_and_ranks(
    reciting_server: Server, smollm2_server: Server, minilm_server: Server, reranker_server: Server
) -> None:
    urls = (reciting_server.url, smollm2_server.url, minilm_server.url, reranker_server.url)
    found = script("haystack_pipelines", *urls, environment=CLIENTS_AGENTS)
    told = found["conversations"]
    for name in ("openai", "vllm", "responses", "tgi"):
        calls, answer, reasons = told[name]
        assert (calls, answer) == ([CALL], ANSWER), name
        assert reasons == ["tool_calls", "stop"] or name == "responses"
        assert told[f"{name}, async"] == [CALL], name
        assert told[f"{name}, agent"] == ANSWER, name
        assert told[f"{name}, streamed"] == [ANSWER, True], name
    for name, made in found["structured"].items():
        assert made["city"] in ("Paris", "Rome") and 1 <= made["days"] <= 9, name
    assert found["overflow"] == ["BadRequestError"] * 3 + ["BadRequestError"]
    (vector,) = minilm_server.client.ok("/embed", {"inputs": "On the mat."})
    for name, (one, among, sizes) in found["embeddings"].items():
        assert one == pytest.approx(vector[:3], abs=1e-5), name
        assert among == pytest.approx(vector[:3], abs=1e-5), name
        assert sizes == [384] * 4, name
    texts = ["In the sky.", "On the mat.", "Nowhere."]
    ranks = reranker_server.client.ok("/rerank", {"query": "Where is the cat?", "texts": texts})
    for ranked in found["ranks"].values():
        assert ranked == [[rank["index"], pytest.approx(rank["score"])] for rank in ranks[:2]]


def test_the_reciting_model_recites(reciting_server: Server) -> None:
    """The other tests rest on this."""
    reply = reciting_server.client.ok("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]})
    assert reply["choices"][0]["message"]["content"] == SCRIPTS["hello"]
