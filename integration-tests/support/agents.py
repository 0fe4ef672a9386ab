"""Bodies in the shape that coding agents send: long instructions, tools of all types, nonces, histories."""

import random
from typing import Any

WORDS = ("read", "the file", "then change", "one line", "run its tests", "and tell", "what happened", "in few words")


def prose(num_words: int, seed: int) -> str:
    """Text that is the same for the same seed."""
    choose = random.Random(seed)
    return " ".join(choose.choice(WORDS) for _ in range(num_words))


def claude_code(turn: int) -> dict[str, Any]:
    """The body of Claude Code's request of a turn, from 0. Its first system block has another nonce in each."""
    marked = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    nonce = f"x-anthropic-billing-header: cc_version=2.1.328.b{turn}; cc_entrypoint=cli; cch={turn:05x};"
    tools = [
        {"name": name, "description": prose(40, seed), "input_schema": {"type": "object", "properties": {}}}
        for seed, name in enumerate(("Bash", "Edit", "Read"))
    ]
    messages: list[dict[str, Any]] = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": f"<system-reminder>\n{prose(300, 7)}\n</system-reminder>"},
                {"type": "text", "text": "Why does the test fail?", **marked},
            ],
        }
    ]
    for past in range(turn):
        call = f"toolu_{past:024d}"
        messages += [
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": prose(10, 50 + past), "signature": "EqQBCkYIBBgCKkA="},
                    {"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3pzix/LafPsn4"},
                    {"type": "text", "text": "I read the test."},
                    {
                        "type": "server_tool_use",
                        "id": f"srvtoolu_{past}",
                        "name": "web_search",
                        "input": {"query": "x"},
                    },
                    {"type": "web_search_tool_result", "tool_use_id": f"srvtoolu_{past}", "content": []},
                    {"type": "tool_use", "id": call, "name": "Read", "input": {"file_path": f"/src/test_{past}.py"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "tool_use_id": call,
                        "type": "tool_result",
                        "content": [{"type": "text", "text": prose(60, 80 + past)}],
                        "is_error": past % 2 == 1,
                        **marked,
                    }
                ],
            },
            {"role": "system", "content": [{"type": "text", "text": "The user watches."}]},
        ]
    return {
        "model": "claude-sonnet-4-5-20250929",
        "messages": messages,
        "system": [
            {"type": "text", "text": nonce},
            {"type": "text", "text": "You are Claude Code, Anthropic's official CLI for Claude.", **marked},
            {"type": "text", "text": prose(900, 3), **marked},
        ],
        "tools": [
            *tools,
            {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
            {"type": "a_type_of_tomorrow_20270101", "name": "tomorrow", "settings": {"turn": turn}},
        ],
        "metadata": {"user_id": "user_0123_account__session_4567"},
        "max_tokens": 32_000,
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
        "stream": True,
    }


def codex(turn: int) -> dict[str, Any]:
    """The body of Codex's request of a turn, from 0."""
    items: list[dict[str, Any]] = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": prose(200, 11)}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": prose(200, 12)}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Why does the test fail?"}]},
    ]
    for past in range(turn):
        output: Any = prose(60, 90 + past)
        items += [
            {"type": "reasoning", "summary": [], "content": None, "encrypted_content": "gAAAAABoISQ24OyVRYbkYf"},
            {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "I read the test."}],
            },
            {
                "type": "function_call",
                "name": "shell",
                "arguments": '{"command":["cat","test.py"]}',
                "call_id": f"call_{past}",
            },
            {
                "type": "function_call_output",
                "call_id": f"call_{past}",
                "output": output if past % 2 else [{"type": "input_text", "text": output}],
            },
            {"type": "custom_tool_call", "name": "apply_patch", "input": "*** Begin Patch", "call_id": f"patch_{past}"},
            {"type": "custom_tool_call_output", "call_id": f"patch_{past}", "output": "Done"},
            {"type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "pytest"}},
            {"type": "ghost_snapshot", "ghost_commit": {"id": f"{past:040x}", "parent": None}},
            {"type": "tool_search_call", "call_id": f"search_{past}", "execution": "client", "arguments": {"q": "x"}},
            {"type": "tool_search_output", "call_id": f"search_{past}", "tools": []},
        ]
    return {
        "model": "gpt-5-codex",
        "instructions": prose(900, 5),
        "input": items,
        "tools": [
            {
                "type": "function",
                "name": "shell",
                "description": prose(30, 1),
                "strict": False,
                "parameters": {"type": "object", "properties": {"command": {"type": "array"}}},
            },
            {
                "type": "custom",
                "name": "apply_patch",
                "description": prose(30, 2),
                "format": {"type": "grammar", "syntax": "lark", "definition": "start: /(.|\\n)+/"},
            },
            {"type": "web_search", "external_web_access": False},
            {"type": "image_generation", "output_format": "png"},
            {
                "type": "namespace",
                "name": "mcp__docs",
                "description": "Documentation",
                "tools": [{"type": "function", "name": "find", "parameters": {"type": "object", "properties": {}}}],
            },
            {"type": "local_shell"},
            {"type": "a_type_of_tomorrow", "settings": {"turn": turn}},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0199e2a4-7c3d-7f41-9a44-6f1f9f1c2a55",
        "text": {"verbosity": "low"},
        "client_metadata": {"x-codex-installation-id": "0199"},
    }
