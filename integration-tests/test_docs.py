"""The documentation matches the programs."""

import re
import subprocess

from support.paths import GRIDWORK, ROOT
from support.server import child_environment


def help_text() -> str:
    command = [str(GRIDWORK), "--help"]
    return subprocess.run(command, capture_output=True, text=True, env=child_environment(), check=True).stdout


def test_every_flag_and_variable_is_documented() -> None:
    page = (ROOT / "docs" / "flags.md").read_text()
    text = help_text()
    flags = set(re.findall(r"^ +(?:-\w, )?(--[\w-]+)", text, flags=re.MULTILINE)) - {"--help", "--version"}
    assert len(flags) > 30
    assert {flag for flag in flags if f"| `{flag}" not in page} == set()
    variables = set(re.findall(r"\[env:\s+(\w+)", text))
    assert {name for name in variables if f"`{name}`" not in page} == set()


def test_no_documented_flag_is_missing_from_the_program() -> None:
    page = (ROOT / "docs" / "flags.md").read_text()
    documented = set(re.findall(r"^\| `(--[\w-]+)", page, flags=re.MULTILINE))
    for flag in sorted(documented - set(re.findall(r"--[\w-]+", help_text()))):
        # Hidden in the help: flags of text-generation-inference, and flags of other servers, some of which are refused
        # with the right one.
        command = [str(GRIDWORK), f"{flag}=x", "--version"]
        done = subprocess.run(command, capture_output=True, text=True, env=child_environment(), check=False)
        assert done.returncode == 0 or "unexpected argument" not in done.stderr, flag


def test_flags_of_text_generation_inference_are_documented() -> None:
    page = (ROOT / "docs" / "flags.md").read_text()
    tables = page[page.index("## Flags of text-generation-inference") :]
    for flag, variable in (("--disable-custom-kernels", "DISABLE_CUSTOM_KERNELS"), ("--rope-factor", "ROPE_FACTOR")):
        assert f"| `{flag}` | `{variable}` |" in tables


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
