"""Libraries for structured output and retrieval work unmodified, in each of their modes."""

import json
import re
from typing import Any

import pytest
from support.client_programs import script
from support.paths import CLIENTS_STRUCTURED, LONG
from support.reciter import ANSWER
from support.server import Server

CITY = {"city": "Paris"}
PARIS = "The capital of France is Paris."
COLOURS = ("red", "green", "blue")
RAIN = ("none", "some", "much")

#: Takes too long for every change.
LONG_FORM = pytest.mark.skipif(not LONG, reason="the long form runs it")


def is_forecast(made: Any) -> bool:
    return (
        set(made) == {"city", "days", "rain"}
        and made["city"] in ("Paris", "Rome")
        and 1 <= made["days"] <= 9
        and 1 <= len(made["rain"]) <= 2
        and all(one in RAIN for one in made["rain"])
    )


def is_person(made: Any) -> bool:
    return (
        made["name"] in ("Anna", "Bert")
        and 0 <= made["age"] <= 120
        and (made["colour"] is None or made["colour"] in COLOURS)
        and 1 <= len(made["pets"]) <= 2
        and all(pet["kind"] in ("cat", "dog") and 0 <= pet["age"] <= 20 for pet in made["pets"])
    )


@LONG_FORM
def test_instructor_reads_objects_in_each_mode(reciting_server: Server, smollm2_server: Server) -> None:
    found = script("instructor_modes", reciting_server.url, smollm2_server.url, environment=CLIENTS_STRUCTURED)
    for name, (made, has_usage, in_parts, last) in found["modes"].items():
        # The library names another tool when it streams.
        assert is_person(made) and is_person(last), (name, made, last)
        assert has_usage and in_parts, name
    assert set(found["told"]) == {"JSON", "MD_JSON"}
    for made in found["told"].values():
        assert made == {"name": "Anna", "age": 30, "colour": "red", "pets": [{"kind": "cat", "age": 3}]}
    assert found["parallel"] == [CITY, {"city": "Rome"}]
    # Each time, the call and its error are added.
    assert found["retries"] == [1, 3, 5, 3]
    assert found["async"] == found["modes"]["TOOLS"][0]
    assert is_person(found["anthropic"])
    assert "maximum context length" in found["overflow"]


def has_form(kind: str, text: str) -> bool:
    """True for an answer in the form of outlines_models.TYPES."""
    if kind == "choice":
        return text in COLOURS
    if kind == "integer":
        return re.fullmatch(r"[+-]?(0|[1-9][0-9]*)", text) is not None
    if kind == "regex":
        return re.fullmatch("[A-Z]{2}-[0-9]{3}", text) is not None
    if kind == "pattern":
        return re.fullmatch(r"\d{4}-\d{2}-\d{2}", text) is not None
    if kind == "list":
        return set(json.loads(text)) <= set(COLOURS)
    if kind == "person":
        person = json.loads(text)
        return len(person["name"]) <= 12 and 0 <= person["age"] <= 120 and person["colours"][0] in COLOURS
    return True


@LONG_FORM
def test_outlines_constrains_in_the_form_of_each_server(smollm2_server: Server) -> None:
    found = script("outlines_models", smollm2_server.url, environment=CLIENTS_STRUCTURED)
    answers = found["answers"]
    assert re.fullmatch(r"[0-9]{1,2}([+-][0-9]{1,2})?", answers.pop("vllm, grammar"))
    assert re.fullmatch(r"[0-9]{1,2}([+][0-9]{1,2})?", answers.pop("sglang, grammar"))
    assert len(both := answers.pop("vllm, n")) == 2 and set(both) <= set(COLOURS)
    assert len(answers) == 7 + 7 + 6 + 2
    for name, (whole, streamed) in answers.items():
        assert whole == streamed, name
        assert has_form(name.split(", ")[1], whole), (name, whole)
    assert found["async"].keys() == {"vllm", "tgi", "streamed"}
    assert set(found["async"].values()) <= set(COLOURS)


@LONG_FORM
def test_langchain_calls_tools_and_returns_objects(
    reciting_server: Server, smollm2_server: Server, minilm_server: Server
) -> None:
    urls = (reciting_server.url, smollm2_server.url, minilm_server.url)
    found = script("langchain_chains", *urls, environment=CLIENTS_STRUCTURED)
    for name in ("chat", "responses", "hub"):
        assert found["tools"][name] == ["get_weather", CITY, ANSWER, True], name
        assert found["tools"][f"{name}, streamed"] == [["get_weather", CITY]], name
        assert found["tools"][f"{name}, async"] == [CITY, {"city": "Rome"}], name
    assert len(found["forced"]) == 5
    for name, call in found["forced"].items():
        assert call in (["choose_city", CITY], ["choose_city", {"city": "Rome"}]), name
    structured = found["structured"]
    is_streamed, last = structured.pop("streamed")
    assert is_streamed and is_forecast(last)
    for name, made in structured.items():
        assert isinstance(made, dict) if "json_mode" in name else is_forecast(made), (name, made)
    hub = found["hub"]
    assert hub["text"] == hub["text, streamed"] == hub["text, async"] == " Paris.\n"
    assert hub["chat"] == hub["chat, streamed"] == hub["chat, async"] == PARIS
    (vector,) = minilm_server.client.ok("/embed", {"inputs": "On the mat."})
    for one in hub["embeddings"]:
        assert one == pytest.approx(vector[:3], abs=1e-5)


@LONG_FORM
def test_llama_index_chats_calls_embeds_and_ranks(
    reciting_server: Server, smollm2_server: Server, minilm_server: Server, reranker_server: Server
) -> None:
    urls = (reciting_server.url, smollm2_server.url, minilm_server.url, reranker_server.url)
    found = script("llama_index_agents", *urls, environment=CLIENTS_STRUCTURED)
    chats = found["chats"]
    assert chats.pop("complete") == chats.pop("complete, streamed") == " Paris.\n"
    assert len(chats) == 8
    assert set(chats.values()) == {PARIS}, chats
    tools = found["tools"]
    assert tools["call"] == ["get_weather", CITY]
    assert tools["called"] == "sunny in Paris"
    assert tools["required"] == tools["streamed"] == [CITY]
    assert tools["agent, True"] == tools["agent, False"] == ANSWER
    for name, made in found["structured"].items():
        assert is_forecast(made), (name, made)
    assert found["overflow"] == "BadRequestError"
    (vector,) = minilm_server.client.ok("/embed", {"inputs": "On the mat."})
    for name, (one, among, sizes) in found["embeddings"].items():
        assert one == pytest.approx(vector[:3], abs=1e-5), name
        assert among == pytest.approx(vector[:3], abs=1e-5), name
        assert sizes == [384] * 24, name
    texts = ["In the sky.", "On the mat.", "Nowhere."]
    ranks = reranker_server.client.ok("/rerank", {"query": "Where?", "texts": texts})
    assert found["ranks"] == [[rank["index"], pytest.approx(rank["score"])] for rank in ranks[:2]]
