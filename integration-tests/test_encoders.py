"""Encoders over HTTP: results equal those of plain Transformers, alone and in batches, and bad input is refused."""

import base64
import json
import math
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from support import encoders
from support.encoders import Reference
from support.server import Server, wait_for
from transformers import AutoModel, AutoTokenizer

TEXTS = [
    "A cat sits on the mat.",
    "A kitten is lying on a rug.",
    "Interest rates rose again in March.",
    "The central bank has raised its rate once more, to the surprise of those who had expected it to wait until June.",
    "Hi",
]


@pytest.fixture(scope="module")
def server(minilm: Path) -> Iterator[Server]:
    with Server("--model-id", minilm, "--max-client-batch-size", "8") as running:
        yield running


@pytest.fixture(scope="module")
def reference(minilm: Path) -> Reference:
    return Reference(minilm)


def close(got: list[float], expected: torch.Tensor, tolerance: float = 2e-5) -> None:
    assert len(got) == len(expected)
    assert float((torch.tensor(got) - expected).abs().max()) < tolerance


# --- vectors ------------------------------------------------------------------------------------------------------


def test_vectors_equal_those_of_transformers(server: Server, reference: Reference) -> None:
    for text, vector in zip(TEXTS, server.client.ok("/embed", {"inputs": TEXTS}), strict=True):
        close(vector, reference.embedding(text))
    (alone,) = server.client.ok("/embed", {"inputs": TEXTS[0]})
    close(alone, reference.embedding(TEXTS[0]))


def test_similar_sentences_have_closer_vectors(server: Server) -> None:
    body = {"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS[1:4]}}
    kitten, rates, bank = server.client.ok("/similarity", body)
    assert kitten > 0.5
    assert max(rates, bank) < 0.2


def test_many_clients_get_the_vectors_of_one(server: Server) -> None:
    texts = [f"{text} {' and more' * (i % 9)} {i}" for i in range(12) for text in TEXTS]
    alone = [server.client.ok("/embed", {"inputs": text})[0] for text in texts]
    batches = server.client.metric("gridwork_steps_total")

    def call(text: str) -> Callable[[], Any]:
        return lambda: server.client.ok("/embed", {"inputs": text})[0]

    together = server.client.together([call(text) for text in texts])
    for one, other in zip(alone, together, strict=True):
        close(one, torch.tensor(other), 1e-5)
    assert server.client.metric("gridwork_steps_total") - batches < len(texts), "nothing was batched"


def test_openais_client_gets_vectors(server: Server, reference: Reference) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        model = client.models.list().data[0].id
        # The client requests base64 by default.
        reply = client.embeddings.create(model=model, input=TEXTS[:2])
        for item, text in zip(reply.data, TEXTS, strict=False):
            close(item.embedding, reference.embedding(text))
        token_ids = reference.tokenizer(TEXTS[0])["input_ids"]
        by_ids = client.embeddings.create(model=model, input=[token_ids, token_ids], encoding_format="float")
        assert [item.index for item in by_ids.data] == [0, 1]
        close(by_ids.data[1].embedding, reference.embedding(TEXTS[0]))
        assert by_ids.usage.prompt_tokens == by_ids.usage.total_tokens == 2 * len(token_ids)
        assert client.embeddings.create(model="text-embedding-3-small", input="a").model == model
        with pytest.raises(openai.BadRequestError) as caught:
            client.embeddings.create(model=model, input="a", dimensions=385)
        assert "1 to 384" in caught.value.message


def test_base64_holds_the_same_numbers(server: Server) -> None:
    body = {"input": "A cat"}
    numbers = server.client.ok("/v1/embeddings", body)["data"][0]["embedding"]
    text = server.client.ok("/v1/embeddings", body | {"encoding_format": "base64"})["data"][0]["embedding"]
    close(list(struct.unpack(f"<{len(numbers)}f", base64.b64decode(text))), torch.tensor(numbers), 1e-6)


def test_fewer_dimensions_are_the_first_ones_normalized(server: Server, reference: Reference) -> None:
    expected = torch.nn.functional.normalize(reference.embedding("A cat")[:64], dim=0)
    (vector,) = server.client.ok("/embed", {"inputs": "A cat", "dimensions": 64})
    close(vector, expected)
    data = server.client.ok("/v1/embeddings", {"input": "A cat", "dimensions": 64})["data"]
    close(data[0]["embedding"], expected)
    (plain,) = server.client.ok("/embed", {"inputs": "A cat", "normalize": False})
    assert abs(float(torch.tensor(plain).norm()) - 1) > 0.1
    close(torch.nn.functional.normalize(torch.tensor(plain), dim=0).tolist(), reference.embedding("A cat"))


def test_token_vectors_are_not_pooled(server: Server, reference: Reference) -> None:
    (vectors,) = server.client.ok("/embed_all", {"inputs": "A cat"})
    assert len(vectors) == len(reference.tokenizer("A cat")["input_ids"])
    pooled = torch.nn.functional.normalize(torch.tensor(vectors).mean(0), dim=0)
    close(pooled.tolist(), reference.embedding("A cat"))


def test_truncation_keeps_the_special_tokens(server: Server, reference: Reference) -> None:
    words = " ".join(f"word{i}" for i in range(300))
    (vector,) = server.client.ok("/embed", {"inputs": words, "truncate": True})
    ids = reference.tokenizer(words)["input_ids"]
    kept = [*ids[:255], ids[-1]]
    (expected,) = server.client.ok("/embed", {"inputs": kept})
    close(vector, torch.tensor(expected))


def test_long_inputs_are_truncated_by_default(server: Server) -> None:
    client = server.client
    long = " ".join(f"word{i}" for i in range(300))
    (cut,) = client.ok("/embed", {"inputs": long, "truncate": True})
    (by_default,) = client.ok("/embed", {"inputs": long})
    close(by_default, torch.tensor(cut), 1e-6)
    for more in ({}, {"truncate": True}, {"truncate_prompt_tokens": -1}, {"truncate_prompt_tokens": 256}):
        reply = client.ok("/v1/embeddings", {"input": long} | more)
        close(reply["data"][0]["embedding"], torch.tensor(cut), 1e-6)
        assert reply["usage"]["prompt_tokens"] == 256
    short = client.ok("/v1/embeddings", {"input": [long, list(range(1000, 1020))], "truncate_prompt_tokens": 9})
    assert short["usage"]["prompt_tokens"] == 18


def test_the_root_serves_the_models_task(server: Server) -> None:
    client = server.client
    for path in ("/", "/invocations"):
        assert client.ok(path, {"inputs": TEXTS[0]}) == client.ok("/embed", {"inputs": TEXTS[0]})
        body = {"input": TEXTS[:2]}
        assert client.ok(path, body) == client.ok("/v1/embeddings", body) == client.ok("/embeddings", body)
        refused = client.post(path, {"inputs": ""})
        assert (refused.status_code, refused.json()["error_type"]) == (400, "Empty")
    (tokens,) = client.ok("/tokenize", {"inputs": "A cat"})
    ids = [token["id"] for token in tokens]
    assert client.ok("/decode", {"ids": [ids, ids[1:2]]}) == ["a cat", "a"]
    assert client.ok("/decode", {"ids": ids, "skip_special_tokens": False}) == ["[CLS] a cat [SEP]"]


def test_info_names_the_served_task(server: Server) -> None:
    info = server.client.get("/info").json()
    assert (info["task"], info["model_impl"], info["model_impl_reason"]) == ("embed", "flat", "")
    assert (info["embedding_size"], info["max_input_tokens"], info["normalizes"]) == (384, 256, True)
    (tokens,) = server.client.ok("/tokenize", {"inputs": "A cat"})
    assert [token["text"] for token in tokens] == ["[CLS]", "A", "cat", "[SEP]"]
    assert [token["special"] for token in tokens] == [True, False, False, True]


def test_vllms_forms_of_tokenize_and_detokenize_work_for_encoders(server: Server) -> None:
    client = server.client
    (own,) = client.ok("/tokenize", {"inputs": "A cat"})
    reply = client.ok("/tokenize", {"prompt": "A cat", "return_token_strs": True})
    assert reply["tokens"] == [token["id"] for token in own]
    assert (reply["count"], reply["max_model_len"]) == (4, 256)
    assert reply["token_strs"] == ["[CLS]", "a", "cat", "[SEP]"]
    assert client.ok("/detokenize", {"tokens": reply["tokens"]}) == {"prompt": "[CLS] a cat [SEP]"}
    assert client.ok("/tokenize", {"prompt": "A cat", "add_special_tokens": False})["count"] == 2


def test_bad_input_is_refused_with_its_reason(server: Server) -> None:
    long = " ".join(["word"] * 300)
    for path, body, status, words in [
        ("/embed", {"inputs": ""}, 400, "empty"),
        ("/embed", {"inputs": []}, 400, "empty"),
        ("/embed", {"inputs": ["a", ""]}, 400, "empty"),
        ("/embed", {"inputs": long, "truncate": False}, 413, "at most 256 tokens. Given: 302"),
        ("/embed", {"inputs": ["a"] * 9}, 413, "--max-client-batch-size"),
        ("/embed", {"inputs": "a", "dimensions": 385}, 413, "1 to 384"),
        ("/embed", {"inputs": "a", "dimensions": 0}, 413, "1 to 384"),
        ("/embed", {"inputs": [30522]}, 413, "token 30522"),
        ("/embed", {"inputs": "a", "prompt_name": "query"}, 413, "prompt_name"),
        ("/embed", {"inputs": {"a": 1}}, 422, "expected a string"),
        ("/embed", {}, 422, "`inputs` is missing"),
        ("/v1/embeddings", {"input": ""}, 400, "empty"),
        ("/v1/embeddings", {"input": long, "truncate": False}, 400, "maximum context length is 256 tokens"),
        ("/v1/embeddings", {"input": "a", "truncate_prompt_tokens": 0}, 400, "-1, or 1 to 256"),
        ("/v1/embeddings", {"input": "a", "truncate_prompt_tokens": 257}, 400, "-1, or 1 to 256"),
        ("/v1/embeddings", {"input": ["a"] * 9}, 400, "--max-client-batch-size"),
        ("/v1/embeddings", {"input": [[30522]]}, 400, "token 30522"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "int8"}, 400, "encoding_format"),
    ]:
        response = server.client.post(path, body)
        assert response.status_code == status, (body, response.text)
        assert words in response.text, (body, response.text)
    refused = server.client.post("/v1/embeddings", {"input": long, "truncate": False}).json()["error"]
    assert refused["code"] == "context_length_exceeded"


def test_other_tasks_are_refused_with_the_served_one(server: Server, smollm2_server: Server) -> None:
    for path, body in [
        ("/generate", {"inputs": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/v1/completions", {"prompt": "a"}),
        ("/rerank", {"query": "a", "texts": ["b"]}),
        ("/predict", {"inputs": "a"}),
    ]:
        response = server.client.post(path, body)
        assert response.status_code == 400, response.text
        assert "--task embed" in response.text and "/v1/embeddings" in response.text
    for path, body in [("/v1/embeddings", {"input": "a"}), ("/embed", {"inputs": "a"})]:
        response = smollm2_server.client.post(path, body)
        assert response.status_code == 400, response.text
        assert "--task generate" in response.text and "/v1/chat/completions" in response.text


def test_the_server_survives_a_killed_shard(minilm: Path) -> None:
    with Server("--model-id", minilm) as running:
        (before,) = running.client.ok("/embed", {"inputs": TEXTS[3]})
        running.shards()[0].kill()
        (after,) = running.client.ok("/embed", {"inputs": TEXTS[3]})
        close(after, torch.tensor(before), 1e-6)
        wait_for(running.is_healthy, 60, "the server is healthy again")


# --- other tasks --------------------------------------------------------------------------------------------------


def test_a_classifier_returns_labels(minilm: Path, tmp_path: Path) -> None:
    folder = encoders.classifier(tmp_path / "classifier", minilm, ["bad", "fair", "good"])
    reference = Reference(folder)
    with Server("--model-id", folder) as running:
        client = running.client
        assert client.get("/info").json()["labels"] == ["bad", "fair", "good"]
        for inputs, texts in [(TEXTS[0], (TEXTS[0],)), (TEXTS[:2], TEXTS[:2])]:
            logits = reference.logits(*texts)
            for raw, expected in [(False, logits.softmax(0)), (True, logits)]:
                got = client.ok("/predict", {"inputs": inputs, "raw_scores": raw})
                assert [one["score"] for one in got] == sorted((one["score"] for one in got), reverse=True)
                by_label = {one["label"]: one["score"] for one in got}
                close([by_label[label] for label in ("bad", "fair", "good")], expected)
        many = client.ok("/predict", {"inputs": [[text] for text in TEXTS] + [TEXTS[1:3]]})
        assert len(many) == len(TEXTS) + 1
        for got, text in zip(many, TEXTS, strict=False):
            assert got[0]["label"] == ["bad", "fair", "good"][int(reference.logits(text).argmax())]
        best = client.ok("/predict", {"inputs": TEXTS[0]})[:2]
        assert client.ok("/", {"inputs": TEXTS[0], "parameters": {"top_k": 2}}) == best
        assert "--task classify" in client.post("/rerank", {"query": "a", "texts": ["b"]}).json()["error"]


def test_a_reranker_orders_texts(minilm: Path, tmp_path: Path) -> None:
    folder = encoders.classifier(tmp_path / "reranker", minilm, ["relevance"])
    reference = Reference(folder)
    query = "Where is the cat?"
    logits = [reference.logits(query, text)[0] for text in TEXTS]
    order = sorted(range(len(TEXTS)), key=lambda index: -float(logits[index]))
    with Server("--model-id", folder) as running:
        body = {"query": query, "texts": TEXTS, "return_text": True}
        ranks = running.client.ok("/rerank", body)
        assert [rank["index"] for rank in ranks] == order
        assert [rank["text"] for rank in ranks] == [TEXTS[index] for index in order]
        expected = torch.stack([logits[index] for index in order])
        close([rank["score"] for rank in ranks], expected.sigmoid())
        raw = running.client.ok("/rerank", {"query": query, "texts": TEXTS, "raw_scores": True})
        close([rank["score"] for rank in raw], expected)
        assert "text" not in raw[0]
        assert running.client.ok("/", body) == ranks
        for path in ("/v1/rerank", "/v2/rerank", "/rerank", "/invocations"):
            got = running.client.ok(path, {"model": "any", "query": query, "documents": TEXTS, "top_n": 3})
            assert [one["index"] for one in got["results"]] == order[:3]
            assert [one["document"]["text"] for one in got["results"]] == [TEXTS[index] for index in order[:3]]
            close([one["relevance_score"] for one in got["results"]], expected.sigmoid()[:3])
            assert got["usage"]["total_tokens"] > 0 and got["id"] and got["model"] == str(folder)
        many = running.client.ok(
            "/v1/rerank",
            {"query": query, "documents": [{"text": text} for text in TEXTS] * 20, "return_documents": False},
        )
        assert len(many["results"]) == 100 and "document" not in many["results"][0]
        for field, value in (("query", ""), ("documents", []), ("top_n", 0), ("max_tokens_per_doc", 5)):
            refused = running.client.post("/v1/rerank", {"query": query, "documents": TEXTS} | {field: value})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)
        assert running.client.post("/rerank", {"query": query, "texts": []}).status_code == 400
        assert running.client.post("/rerank", {"query": "", "texts": ["a"]}).status_code == 400
        # The query counts for each of its texts, and is not copied for them.
        before = running.router().memory_info().rss
        for texts, flag in ((["a"] * 20_000, "--max-client-batch-size"), (["a"] * 32, "--payload-limit")):
            refused = running.client.post("/rerank", {"query": "why " * 75_000, "texts": texts})
            assert refused.status_code == 413 and flag in refused.json()["error"]
        assert running.router().memory_info().rss - before < 300e6


def test_a_masked_language_model_fills_masks(minilm: Path, tmp_path: Path) -> None:
    folder = encoders.masked(tmp_path / "masked", minilm)
    reference = Reference(folder)
    text = "The [MASK] of France is Paris, which lies on the river Seine, and not on the sea."
    mask = reference.tokenizer.mask_token_id
    place = reference.tokenizer(text)["input_ids"].index(mask)
    expected = reference.logits(text)[place].softmax(0).topk(3)
    with Server("--model-id", folder) as running:
        got = running.client.ok("/predict", {"inputs": text, "top_k": 3})
        assert [one["token"] for one in got] == expected.indices.tolist()
        close([one["score"] for one in got], expected.values)
        two = running.client.ok("/predict", {"inputs": [[text], ["[MASK] and [MASK]"]]})
        assert [one["token"] for one in two[0]][:3] == expected.indices.tolist()
        assert [len(one) for one in two[1]] == [5, 5]
        refused = running.client.post("/predict", {"inputs": "Paris"})
        assert refused.status_code == 413 and "[MASK]" in refused.text
        (sparse,) = running.client.ok("/embed_sparse", {"inputs": "Paris"})
        weights = reference.logits("Paris").relu().log1p().amax(0)
        assert len(sparse) == int((weights > 0).sum())
        close([one["value"] for one in sparse], weights[[one["index"] for one in sparse]], 1e-4)


def test_a_decoder_embeds_by_its_last_token(smollm2: Path, tmp_path: Path) -> None:
    with Server("--model-id", smollm2, "--task", "embed", "--dtype", "float32") as running:
        info = running.client.get("/info").json()
        assert (info["task"], info["model_impl"]) == ("embed", "flat")
        (vector,) = running.client.ok("/embed", {"inputs": TEXTS[0]})
        (tokens,) = running.client.ok("/embed_all", {"inputs": TEXTS[0]})
    close(vector, torch.nn.functional.normalize(torch.tensor(tokens[-1]), dim=0))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("mode", ["lasttoken", "mean"])
def test_a_causal_model_embeds_as_its_files_say(
    tiny: Callable[[str], Path], tmp_path: Path, family: str, mode: str
) -> None:
    folder = tmp_path / f"{family}-embedder"
    shutil.copytree(tiny(family), folder)
    modules = ["Transformer", "Pooling", "Normalize"] if mode == "lasttoken" else ["Transformer", "Pooling"]
    listed = [
        {
            "idx": index,
            "name": str(index),
            "path": "" if index == 0 else f"{index}_{kind}",
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, kind in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    flags = {"pooling_mode_lasttoken": mode == "lasttoken", "pooling_mode_mean_tokens": mode == "mean"}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64} | flags))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()

    def expected(text: str) -> torch.Tensor:
        with torch.inference_mode():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        pooled = hidden[-1] if mode == "lasttoken" else hidden.mean(0)
        return torch.nn.functional.normalize(pooled, dim=0)

    texts = [*TEXTS, "a", " ".join(["hello"] * 100)]
    with Server("--model-id", folder, "--task", "embed", "--dtype", "float32") as running:
        assert running.client.get("/info").json()["embedding_size"] == 64
        vectors = running.client.ok("/embed", {"inputs": texts, "normalize": True})
        listed_by_openai = running.client.ok("/v1/embeddings", {"input": texts})["data"]
        alone = running.client.ok("/embed", {"inputs": texts[1], "normalize": True})
    for text, vector, openais in zip(texts, vectors, listed_by_openai, strict=True):
        close(vector, expected(text))
        length = math.sqrt(sum(value * value for value in openais["embedding"]))
        # Without a module that normalizes, OpenAI's route gives the pooled vector as it is.
        assert (abs(length - 1) < 1e-3) == (mode == "lasttoken")
        close(torch.nn.functional.normalize(torch.tensor(openais["embedding"]), dim=0).tolist(), expected(text))
    close(alone[0], torch.tensor(vectors[1]))


def test_a_task_that_the_folder_contradicts_is_refused(minilm: Path, tmp_path: Path) -> None:
    headless = tmp_path / "headless"
    shutil.copytree(minilm, headless)
    config = json.loads((headless / "config.json").read_text())
    (headless / "config.json").write_text(json.dumps(config | {"architectures": ["BertForTokenClassification"]}))
    (headless / "modules.json").unlink()
    shutil.rmtree(headless / "1_Pooling")
    for folder, task, words in [
        (minilm, "rerank", "--task embed"),
        (minilm, "generate", "--task embed"),
        (headless, "auto", "--task embed"),
    ]:
        running = Server("--model-id", folder, "--task", task)
        running.start()
        try:
            assert running.wait_exit(timeout_s=60) > 0
            assert words in running.log()
        finally:
            running.kill()
