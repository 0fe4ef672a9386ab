"""Transformers' own `generate()`, greedy, one prompt at a time: reads a question as JSON, and prints the tokens.

A process of its own, so that a model's memory is free again, and nothing of the server is imported beside it.
"""

import json
import sys


def main() -> None:
    question = json.load(sys.stdin)
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(question["folder"], dtype=question["dtype"].removeprefix("torch."))
    model.eval()
    answers = []
    for prompt in question["prompts"]:
        ids = torch.tensor([prompt])
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=question["num_tokens"],
            pad_token_id=0,
        )
        answers.append(output[0, len(prompt) :].tolist())
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
