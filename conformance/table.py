"""Writes the page docs/models.md."""

import platform

import torch
import transformers

from conformance.generation import NUM_NEW_TOKENS, PROMPT_LENGTHS, Verdict
from conformance.planted import BATCHED, PAGED, Planted
from conformance.sections import Found
from conformance.shrink import CANNOT_GENERATE
from conformance.tensor_parallel import Outcome

_INTRODUCTION = """# Which models run, and how

`make conformance` writes this page. It makes a tiny random model of every type that Transformers {version} knows, from
the type's own default config with every kind of layer kept, serves it in float32 and compares the results.

**Generating types.** {num_requests} requests of {lengths} tokens, joining one after another, {num_tokens} greedy tokens
each. *Exact* means that all tokens equal those of `generate()`. The path is the fastest one that passed the comparison
with plain `forward()` at start; `paged` is the fastest of all. The reason for a slower path stands beside it, as in the
server's log and `/info`. *bfloat16*: the path of the same model in bfloat16, where the comparison must distinguish
errors from rounding.

**Over two ranks** (types with a tensor-parallel plan in Transformers): *exact* means that the logits of two processes
equal those of one; the percentage is the largest share of the weights' bytes that a rank has.

**Planted errors.** The self-check must find paths with one error each, in bfloat16. An error counts if it changes the
float32 logits by more than 0.2 % of their spread.

**Encoders.** The largest difference of any hidden state from plain `forward()`; up to 1e-5 counts as the same.

PyTorch {torch}, Python {python}, {machine}.
"""


def page(found: Found) -> str:
    """The whole page in Markdown."""
    ranks = {outcome.model_type: outcome for outcome in found.tensor_parallel}
    parts = [
        _INTRODUCTION.format(
            version=transformers.__version__,
            torch=torch.__version__,
            python=platform.python_version(),
            machine=platform.machine(),
            num_requests=len(PROMPT_LENGTHS),
            lengths=f"{min(PROMPT_LENGTHS)} to {max(PROMPT_LENGTHS)}",
            num_tokens=NUM_NEW_TOKENS,
        )
    ]
    for section, title in (("causal", "Causal language models"), ("seq2seq", "Encoder-decoder text models")):
        verdicts = found.generators.get(section)
        if verdicts:
            parts.append(f"## {title}\n\n{_summary(verdicts)}\n\n{_generators(verdicts, ranks)}\n")
    if found.planted:
        parts.append(f"## Planted errors\n\n{_planted(found.planted)}\n")
    if found.encoders:
        lines = ["| type | path | largest difference | why |", "|---|---|---|---|"]
        for row in found.encoders:
            difference = "" if row.difference is None else f"{row.difference:.1e}"
            lines.append(f"| {row.model_type} | {row.path} | {difference} | {_cell(row.reason)} |")
        parts.append("## Encoders\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _summary(verdicts: list[Verdict]) -> str:
    exact = [v for v in verdicts if v.exact]
    paths = {path: sum(v.path == path for v in exact) for path in ("paged", "batched", "solo")}
    unknown = sum(bool(v.reference_error) for v in verdicts)
    text = f"{len(verdicts)} types: {len(exact)} exact ({', '.join(f'{n} {path}' for path, n in paths.items() if n)})"
    if unknown:
        text += f"; {unknown} of which Transformers itself makes no text here"
    wrong = len(verdicts) - len(exact) - unknown
    text += f"; {wrong} wrong." if wrong else "."
    same = sum(v.path_in_16_bits == v.path for v in exact)
    others = [v.model_type for v in exact if v.path_in_16_bits != v.path]
    return f"{text} In bfloat16, {same} of these run on the same path" + (
        f"; not {', '.join(others)}." if others else "."
    )


def _generators(verdicts: list[Verdict], ranks: dict[str, Outcome]) -> str:
    lines = ["| type | path | bfloat16 | exact | two ranks | why |", "|---|---|---|---|---|---|"]
    for verdict in verdicts:
        outcome = ranks.get(verdict.model_type)
        over_two = "no plan" if outcome is None else f"{outcome.verdict} ({outcome.detail})"
        exact = "yes" if verdict.exact else "–" if verdict.reference_error else "**no**"
        reference = CANNOT_GENERATE.get(verdict.model_type, verdict.reference_error)
        why = "; ".join(filter(None, (verdict.error, reference, verdict.reason, verdict.reason_in_16_bits)))
        paths = f"{verdict.path} | {verdict.path_in_16_bits or '–'}"
        lines.append(f"| {verdict.model_type} | {paths} | {exact} | {_cell(over_two)} | {_cell(why)} |")
    return "\n".join(lines)


def _planted(found: list[Planted]) -> str:
    refused = [each.model_type for each in found if each.refused]
    counts = ", ".join(f"{sum(each.path == path for each in found)} {path}" for path in ("paged", "batched"))
    lines = [
        f"Into {len(found)} types ({counts}) with bfloat16 weights. Without an error, "
        + (f"{', '.join(refused)} would be refused." if refused else "none is refused."),
        "",
        "| path | error | types whose logits it changes | least change | found in bfloat16 |",
        "|---|---|---|---|---|",
    ]
    for path, errors in (("paged", PAGED), ("batched", BATCHED)):
        for error in errors:
            changed = [each for each in found if each.path == path and error in each.effects]
            if changed:
                least = min(each.effects[error] for each in changed)
                missed = [each.model_type for each in changed if error in each.missed]
                which = "all" if not missed else f"**{len(changed) - len(missed)}**, not {', '.join(missed)}"
                change = "its code fails" if least == float("inf") else f"{100 * least:.{0 if least >= 0.1 else 1}f} %"
                lines.append(f"| {path} | {error} | {len(changed)} | {change} | {which} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
