"""JSON Schema's own test suite: a schema is enforced as the specification says, or refused with its place."""

import json
import subprocess
from collections import Counter
from typing import Any

import pytest
from support import schema_suite
from support.paths import JUDGE
from support.schema_suite import Case

#: Valid instances that a grammar does not write: words of their names, and the reason.
NOT_WRITTEN = {
    "is only an annotation by default": "formats are enforced in every draft",
    "leap second": "leap seconds are written in UTC",
    "format/ipv6: validation of IPv6 addresses": "addresses are written without a part in the form of IPv4",
    "format/email: validation of e-mail addresses": "names of mailboxes are written without quotes",
    "ref overrides any sibling keywords": "keywords beside `$ref` are enforced in every draft",
}


def verdicts(cases: list[Case]) -> list[dict[str, Any]]:
    """The verdict on each schema, and on the texts that spell its instances."""
    questions = [
        {"schema": case.schema, "texts": [text for each in case.instances for text in schema_suite.texts(each.value)]}
        for case in cases
    ]
    lines = "\n".join(json.dumps(question) for question in questions)
    done = subprocess.run([JUDGE], input=lines, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_schemas_are_enforced_exactly_or_refused() -> None:
    if not schema_suite.exists():
        pytest.fail("the suite is missing; run `make checkers`", pytrace=False)
    wrong: list[str] = []
    not_written: set[str] = set()
    for draft in schema_suite.DRAFTS:
        cases = list(schema_suite.cases(draft))
        counts: Counter[str] = Counter()
        for case, verdict in zip(cases, verdicts(cases), strict=True):
            if "refused" in verdict:
                counts["refused"] += 1
                assert verdict["refused"]["field"].startswith("schema"), (case.place, verdict)
                continue
            counts["enforced"] += 1
            accepted = iter(verdict["accepted"])
            for instance in case.instances:
                is_accepted = any([next(accepted) for _ in schema_suite.texts(instance.value)])
                name = f"{case.place}: {instance.description}"
                known = {words for words in NOT_WRITTEN if words in name}
                if is_accepted == instance.is_valid:
                    counts["accepted instances" if is_accepted else "rejected instances"] += 1
                elif known and instance.is_valid:
                    counts["not written"] += 1
                    not_written |= known
                else:
                    wrong.append(f"{name}: {json.dumps(instance.value)[:80]}")
        print(draft, dict(counts))
        assert counts["enforced"] > len(cases) // 3
    assert not wrong, "\n".join(wrong)
    assert not_written == NOT_WRITTEN.keys()
