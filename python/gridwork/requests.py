"""Requests and answers of the HTTP API, as prompts, parameters and results of this package."""

import base64
import struct
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gridwork.outputs import (
    CompletionOutput,
    Logprob,
    LogprobsOfPosition,
    RequestMetrics,
    RequestOutput,
)
from gridwork.prompts import Prompt
from gridwork.sampling import SamplingParams


def completion_body(prompt: Prompt, params: SamplingParams | None, stream: bool) -> dict[str, Any]:
    """Body of `/v1/completions`."""
    return _common(params, stream) | {"prompt": prompt.body}


def chat_body(
    messages: object, params: SamplingParams | None, stream: bool, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Body of `/v1/chat/completions`. options: further fields, such as `tools`."""
    body = _common(params, stream) | {"messages": messages}
    if params is not None and params.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": params.logprobs}
    return body | {name: value for name, value in options.items() if value is not None}


def _common(params: SamplingParams | None, stream: bool) -> dict[str, Any]:
    body: dict[str, Any] = {"return_token_ids": True, **(params.body() if params is not None else {})}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


def output_of(
    answer: Mapping[str, Any], headers: Mapping[str, str], request_id: str, prompt: str | None, began: float
) -> RequestOutput:
    """The result that an answer is."""
    choices = answer["choices"]
    first = choices[0]
    usage = answer.get("usage") or {}
    prompt_logprobs = first.get("prompt_logprobs") or answer.get("prompt_logprobs")
    return RequestOutput(
        request_id=request_id,
        prompt=prompt,
        prompt_token_ids=first.get("prompt_token_ids") or answer.get("prompt_token_ids") or [],
        outputs=[_choice(choice) for choice in choices],
        prompt_logprobs=_logprobs(prompt_logprobs),
        num_cached_tokens=_cached(usage),
        metrics=RequestMetrics(
            arrival_time=began,
            finished_time=time.time(),
            time_in_queue=_seconds(headers, "x-queue-time"),
            inference_time=_seconds(headers, "x-inference-time"),
        ),
    )


def _choice(choice: Mapping[str, Any]) -> CompletionOutput:
    message = choice.get("message")
    text = message.get("content") or "" if message is not None else choice["text"]
    token_ids = choice.get("token_ids") or []
    logprobs = [position or {} for position in _logprobs(choice.get("logprobs_by_id")) or []] or None
    return CompletionOutput(
        index=choice["index"],
        text=text,
        token_ids=token_ids,
        logprobs=logprobs,
        cumulative_logprob=_cumulative(logprobs, token_ids),
        finish_reason=choice["finish_reason"],
        stop_reason=choice.get("stop_reason"),
        message=message,
    )


def _logprobs(positions: Any) -> list[LogprobsOfPosition | None] | None:
    if positions is None:
        return None
    return [position and {int(token): Logprob(**entry) for token, entry in position.items()} for position in positions]


def _cumulative(logprobs: list[LogprobsOfPosition] | None, token_ids: list[int]) -> float | None:
    if logprobs is None:
        return None
    return sum(
        position[token].logprob for position, token in zip(logprobs, token_ids, strict=False) if token in position
    )


def _cached(usage: Mapping[str, Any]) -> int | None:
    details = usage.get("prompt_tokens_details")
    return details.get("cached_tokens") if details else None


def _seconds(headers: Mapping[str, str], name: str) -> float | None:
    value = headers.get(name)
    return float(value) / 1000 if value is not None else None


class Growing:
    """A result that grows with the chunks of a stream."""

    def __init__(self, request_id: str, prompt: str | None, num_choices: int) -> None:
        outputs = [CompletionOutput(index, "") for index in range(num_choices)]
        metrics = RequestMetrics(arrival_time=time.time())
        self._output = RequestOutput(request_id, prompt, outputs=outputs, finished=False, metrics=metrics)

    def add(self, chunk: Mapping[str, Any]) -> RequestOutput:
        """Adds a chunk; returns the result so far, a new object each time."""
        output = self._output
        assert output.metrics is not None
        for each in output.outputs:
            each.delta = ""
        for choice in chunk["choices"]:
            output.prompt_token_ids = choice.get("prompt_token_ids") or output.prompt_token_ids
            _grow(output.outputs[choice["index"]], choice)
            output.metrics.first_token_time = output.metrics.first_token_time or time.time()
        if usage := chunk.get("usage"):
            output.num_cached_tokens = _cached(usage)
            output.metrics.finished_time = time.time()
            output.finished = True
        return _copied(output)


def _grow(output: CompletionOutput, choice: Mapping[str, Any]) -> None:
    delta = choice.get("delta")
    output.delta = (delta.get("content") or "") if delta is not None else choice["text"]
    output.text += output.delta
    if delta is not None:
        output.message = _grown_message(output.message or {}, delta)
    token_ids = choice.get("token_ids") or []
    output.token_ids += token_ids
    if choice.get("logprobs_by_id") is not None:
        new = [position or {} for position in _logprobs(choice["logprobs_by_id"]) or []]
        output.logprobs = [*(output.logprobs or []), *new]
        output.cumulative_logprob = (output.cumulative_logprob or 0.0) + (_cumulative(new, token_ids) or 0.0)
    output.finish_reason = choice.get("finish_reason") or output.finish_reason
    output.stop_reason = choice.get("stop_reason", output.stop_reason)


def _grown_message(message: dict[str, Any], delta: Mapping[str, Any]) -> dict[str, Any]:
    grown = dict(message)
    for name in ("content", "reasoning_content", "reasoning"):
        if delta.get(name):
            grown[name] = (grown.get(name) or "") + delta[name]
    if delta.get("role"):
        grown["role"] = delta["role"]
    for call in delta.get("tool_calls") or []:
        calls = [dict(each) for each in grown.get("tool_calls", [])]
        while len(calls) <= call["index"]:
            calls.append({"type": "function", "function": {"name": "", "arguments": ""}})
        known = calls[call["index"]]
        known.update({name: call[name] for name in ("id", "type") if call.get(name)})
        function, new = dict(known["function"]), call["function"]
        known["function"] = {
            "name": new.get("name") or function["name"],
            "arguments": function["arguments"] + (new.get("arguments") or ""),
        }
        grown["tool_calls"] = calls
    return grown


def _copied(output: RequestOutput) -> RequestOutput:
    outputs = [
        replace(each, token_ids=list(each.token_ids), logprobs=None if each.logprobs is None else list(each.logprobs))
        for each in output.outputs
    ]
    metrics = RequestMetrics(**vars(output.metrics)) if output.metrics else None
    return RequestOutput(**(vars(output) | {"outputs": outputs, "metrics": metrics}))


def vector(text: str) -> list[float]:
    """The vector in base64 of little-endian 32-bit floats."""
    data = base64.b64decode(text)
    return list(struct.unpack(f"<{len(data) // 4}f", data))
