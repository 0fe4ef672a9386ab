"""Answers follow the grammar that a request asks for, in every spelling; what cannot be enforced is refused."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from support.client import Client
from support.paths import LONG
from support.schemas import schemas
from support.server import Server, wait_for

CHAT = "/v1/chat/completions"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
MESSAGES = [{"role": "user", "content": "Describe a person."}]
NUMBER = "[1-9][0-9]{2}-[A-F]{2}"
EBNF = 'root ::= "<" word ("," word)* ">"\nword ::= [a-z]{2,4}'
LARK = 'start: "<" WORD ("," WORD){0,3} ">"\nWORD: /[a-z]{2,4}/'
LIST = "<[a-z]{2,4}(,[a-z]{2,4})*>"

Check = Callable[[str], object]


def is_person(text: str) -> None:
    jsonschema.validate(json.loads(text), PERSON)


def matches(pattern: str) -> Check:
    def check(text: str) -> None:
        assert re.fullmatch(pattern, text), text

    return check


def is_object(text: str) -> None:
    assert isinstance(json.loads(text), dict)


TAG = {"begin": "<f>", "schema": {"type": "boolean"}, "end": "</f>"}
#: Fields of a request on OpenAI's routes, and the check of the answer.
SPELLINGS: list[tuple[dict[str, Any], Check]] = [
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON, "strict": True}}},
        is_person,
    ),
    ({"response_format": {"type": "json_object", "value": PERSON}}, is_person),
    ({"response_format": {"type": "regex", "value": NUMBER}}, matches(NUMBER)),
    ({"guided_json": PERSON}, is_person),
    ({"guided_json": json.dumps(PERSON)}, is_person),
    ({"guided_regex": NUMBER}, matches(NUMBER)),
    ({"guided_choice": ["positive", "negative"]}, matches("positive|negative")),
    ({"guided_grammar": LARK}, matches(LIST)),
    ({"guided_grammar": EBNF}, matches(LIST)),
    ({"structured_outputs": {"json": PERSON}}, is_person),
    ({"structured_outputs": {"json": PERSON, "disable_any_whitespace": True}}, is_person),
    ({"structured_outputs": {"regex": NUMBER}}, matches(NUMBER)),
    ({"structured_outputs": {"choice": ["positive", "negative"]}}, matches("positive|negative")),
    ({"structured_outputs": {"grammar": EBNF}}, matches(LIST)),
    ({"json_schema": json.dumps(PERSON)}, is_person),
    ({"regex": NUMBER}, matches(NUMBER)),
    ({"ebnf": EBNF}, matches(LIST)),
    ({"grammar": EBNF}, matches(LIST)),
    ({"grammar": {"type": "json", "value": PERSON}}, is_person),
    ({"format": PERSON}, is_person),
    (
        {
            "structural_tag": {
                "format": {
                    "type": "tag",
                    "begin": "<f>",
                    "content": {"type": "json_schema", "json_schema": {"type": "boolean"}},
                    "end": "</f>",
                }
            }
        },
        matches("<f>(true|false)</f>"),
    ),
    (
        {
            "structured_outputs": {
                "structural_tag": {
                    "format": {
                        "type": "sequence",
                        "elements": [
                            {"type": "const_string", "value": "A: "},
                            {"type": "regex", "pattern": "[0-9]{2}"},
                        ],
                    }
                }
            }
        },
        matches("A: [0-9]{2}"),
    ),
]


@pytest.fixture(scope="module", params=["plain", "drafts"])
def server(smollm2: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    """SmolLM2, which drafts the tokens that grammars force: while all requests have a grammar, and always."""
    more = ["--speculate", "8"] if request.param == "drafts" else []
    with Server("--model-id", smollm2, "--max-concurrent-requests", "256", *more) as running:
        yield running


def chat(client: Client, **fields: Any) -> tuple[str, str]:
    """The answer's text and finish reason."""
    body = {"messages": MESSAGES, "max_tokens": 200, "temperature": 1.0, "seed": 5} | fields
    choice = client.ok(CHAT, body)["choices"][0]
    return choice["message"]["content"], choice["finish_reason"]


@pytest.mark.parametrize("spelling", range(len(SPELLINGS)), ids=lambda index: "-".join(SPELLINGS[index][0]))
def test_every_spelling_is_enforced(server: Server, spelling: int) -> None:
    fields, check = SPELLINGS[spelling]
    text, reason = chat(server.client, **fields)
    assert reason == "stop", text
    check(text)


def test_any_object_and_the_other_routes(server: Server) -> None:
    client = server.client
    text, reason = chat(client, response_format={"type": "json_object"}, max_tokens=400)
    if reason == "stop":
        is_object(text)
    answer = client.ok(
        "/v1/completions",
        {"prompt": ["A person: ", "Another: "], "guided_json": PERSON, "max_tokens": 100, "temperature": 1, "n": 2},
    )
    assert len(answer["choices"]) == 4
    for choice in answer["choices"]:
        assert choice["finish_reason"] == "stop"
        is_person(choice["text"])
    for kind, value, check in [
        ("json", PERSON, is_person),
        ("json_object", PERSON, is_person),
        ("json_schema", {"name": "p", "schema": PERSON}, is_person),
        ("regex", NUMBER, matches(NUMBER)),
    ]:
        asked = {"grammar": {"type": kind, "value": value}, "max_new_tokens": 100, "do_sample": True, "seed": 3}
        answer = client.generate("A person: ", **asked)
        check(answer.text)
        assert answer.finish_reason == "eos_token"
        assert client.generate_stream("A person: ", **asked).token_ids == answer.token_ids


def test_an_object_has_the_keys_that_its_schema_names(server: Server) -> None:
    pet = {"type": "object", "properties": {"kind": {"enum": ["cat", "dog"]}}, "required": ["kind"]}
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer", "maximum": 99}, "pet": pet},
        "required": ["pet"],
    }
    for seed in range(4):
        text, reason = chat(server.client, guided_json=schema, max_tokens=60, seed=seed)
        assert reason == "stop"
        jsonschema.validate(found := json.loads(text), schema)
        assert set(found) <= {"age", "pet"} and set(found["pet"]) == {"kind"}


def test_structural_tags_leave_other_text_free(server: Server) -> None:
    tag = {"structures": [TAG], "triggers": ["<f"]}
    messages = [{"role": "user", "content": "Write <f>true</f> and <f>false</f> often."}]
    for seed in range(4):
        text, _ = chat(server.client, messages=messages, structural_tag=tag, seed=seed)
        assert re.fullmatch(r"(?s)((?!<f).)*(<f>(true|false)</f>((?!<f).)*)*(<f>?(t|f)?[a-z]*)?(</?f?)?", text), text


def test_an_end_by_length_or_stop_leaves_a_beginning(server: Server) -> None:
    client = server.client
    text, reason = chat(client, guided_regex="[a-z]{100}", max_tokens=5)
    assert reason == "length"
    assert re.fullmatch("[a-z]*", text)
    text, reason = chat(client, guided_json=PERSON, stop=['"age"'])
    assert reason == "stop"
    assert re.fullmatch(r'\{\s*"name"\s*:\s*"[^"]*"\s*,\s*', text), text
    text, reason = chat(client, guided_regex="a*", min_tokens=20, max_tokens=40)
    assert re.fullmatch("a+", text)
    text, reason = chat(client, guided_regex="ab", min_tokens=20, max_tokens=40)
    assert (text, reason) == ("ab", "stop")
    text, reason = chat(client, guided_regex="ab", ignore_eos=True)
    assert (text, reason) == ("ab", "stop")
    text, reason = chat(client, guided_choice=["yes"], logit_bias={"0": 100}, presence_penalty=2, top_k=1)
    assert (text, reason) == ("yes", "stop")


def test_the_same_seed_gives_the_same_text_streamed_or_not(server: Server) -> None:
    body = {"messages": MESSAGES, "guided_json": PERSON, "max_tokens": 100, "temperature": 1, "seed": 11}
    whole = server.client.ok(CHAT, body)["choices"][0]["message"]["content"]
    events = server.client.stream(CHAT, body | {"stream": True})
    pieces = [choice["delta"].get("content") or "" for event in events for choice in event["choices"]]
    assert "".join(pieces) == whole
    is_person(whole)


def test_schemas_of_real_shapes_are_followed(server: Server) -> None:
    count = 300 if LONG else 36
    finished, refused = 0, []

    def ask(number: int, schema: dict[str, Any]) -> tuple[dict[str, Any], int, Any]:
        body = {
            "messages": MESSAGES,
            "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
            "max_tokens": 250,
            "temperature": 1.0,
            "seed": number,
        }
        response = server.client.post(CHAT, body)
        return schema, response.status_code, response.json()

    all_schemas = list(enumerate(schemas(count)))
    for first in range(0, count, 12):
        calls = [lambda each=each: ask(*each) for each in all_schemas[first : first + 12]]
        for schema, status, answer in server.client.together(calls):
            if status == 400:
                assert "cannot be enforced" in answer["error"]["message"], answer
                refused.append(schema)
                continue
            assert status == 200, answer
            choice = answer["choices"][0]
            if choice["finish_reason"] == "stop":
                finished += 1
                # RFC 3339 has the year 0, which Python's dates lack; it was a leap year.
                text = choice["message"]["content"].replace('"0000-', '"2000-')
                kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
                kind(schema, format_checker=kind.FORMAT_CHECKER).validate(json.loads(text))
    assert len(refused) <= count // 20, refused[:3]
    assert finished >= count * 0.7, f"{finished} of {count} finished"


def test_free_requests_beside_grammars_and_refusals_are_undisturbed(server: Server) -> None:
    client, free = server.client, 8
    prompts = [f"The story number {number} begins" for number in range(free)]
    asked = {"max_new_tokens": 30, "ignore_eos": True}
    alone = client.together([lambda prompt=prompt: client.generate(prompt, **asked) for prompt in prompts])
    calls: list[Any] = [lambda prompt=prompt: client.generate(prompt, **asked) for prompt in prompts]
    calls += [lambda seed=seed: chat(client, guided_json=PERSON, seed=seed) for seed in range(free)]
    calls += [
        lambda kind=kind: client.post(CHAT, {"messages": MESSAGES, "guided_json": {"type": kind}}) for kind in "abcd"
    ]
    together = client.together(calls)
    assert [answer.token_ids for answer in together[:free]] == [answer.token_ids for answer in alone]
    for text, reason in together[free : 2 * free]:
        assert reason == "stop"
        is_person(text)


def test_forced_text_is_drafted_and_changes_no_token(server: Server) -> None:
    client = server.client
    keys = {
        "type": "object",
        "properties": {"customer_number": {"type": "integer"}, "account_holder": {"enum": ["yes"]}},
    }
    schema = keys | {"required": [*keys["properties"]], "additionalProperties": False}
    body = {
        "messages": MESSAGES,
        "guided_json": schema,
        "temperature": 1,
        "seed": 8,
        "max_tokens": 60,
        "logprobs": True,
    }

    def answer() -> list[str]:
        return [token["token"] for token in client.ok(CHAT, body)["choices"][0]["logprobs"]["content"]]

    accepted = client.metric("gridwork_speculation_accepted_tokens_total")
    alone = answer()
    assert client.metric("gridwork_speculation_accepted_tokens_total") > accepted
    long = {"max_new_tokens": 200, "ignore_eos": True}
    calls: list[Any] = [answer, lambda: client.generate("The story of a long river begins", **long)]
    assert client.together(calls)[0] == alone


def test_a_grammar_survives_the_death_of_the_shard(smollm2: Path) -> None:
    with Server("--model-id", smollm2, "--dtype", "float32") as server:
        client = server.client
        body = {
            "messages": MESSAGES,
            "guided_regex": "([a-z]{1,8} ){40}end",
            "max_tokens": 300,
            "temperature": 1,
            "seed": 2,
        }
        expected = client.ok(CHAT, body)["choices"][0]["message"]["content"]
        found: list[str] = []
        before = client.metric("gridwork_generated_tokens_total")
        thread = threading.Thread(
            target=lambda: found.append(client.ok(CHAT, body)["choices"][0]["message"]["content"])
        )
        thread.start()
        wait_for(lambda: client.metric("gridwork_generated_tokens_total") > before + 10, 60, "the answer has begun")
        server.shards()[0].kill()
        thread.join()
        assert found == [expected]
        assert re.fullmatch("([a-z]{1,8} ){40}end", expected)
