"""`gridwork completions`: the scripts, in real shells."""

import shutil
import subprocess
from pathlib import Path

import pytest
from support.paths import GRIDWORK


def script(shell: str, code: int = 0) -> str:
    done = subprocess.run([GRIDWORK, "completions", shell], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def bash(words: list[str], folder: Path) -> set[str]:
    """The words that bash offers for the last of these."""
    (folder / "script").write_text(script("bash"))
    program = """
        source "$1"; shift
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
        name=$(complete -p gridwork | grep -o -e "-F [^ ]*" | cut -c4-)
        "$name" gridwork "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    command = ["bash", "--norc", "-c", program, "bash", str(folder / "script"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["gridwork", "--model-i"], {"--model-id", "--model-impl"}),
        (["gridwork", "--model-id"], {"--model-id"}),
        (["gridwork", "ru"], {"run-batch"}),
        (["gridwork", "comp"], {"completions"}),
        (["gridwork", "completions", "b"], {"bash"}),
        (["gridwork", "--dtype", "fl"], {"float16", "float32"}),
        (["gridwork", "bench", "--shared"], {"--shared-prefix-tokens"}),
        (["gridwork", "bench", "--api", "c"], {"chat", "completions"}),
        (["gridwork", "chat", "x", "--model-id"], {"--model-id"}),
        (["gridwork", "serve", "x", "--quantiz"], {"--quantize"}),
        (["gridwork", "env", "--model"], set()),
    ],
)
def test_bash_completes(words: list[str], expected: set[str], tmp_path: Path) -> None:
    assert bash(words, tmp_path) == expected


def test_hidden_flags_are_not_offered(tmp_path: Path) -> None:
    offered = bash(["gridwork", "--"], tmp_path)
    assert "--model-id" in offered and "--disable-custom-kernels" not in offered
    # A model may be a folder, for which bash looks by itself where there is no word.
    assert bash(["gridwork", "check", "my-"], tmp_path) == set() and "-o default" in script("bash")


def test_zsh_and_fish_take_their_scripts(tmp_path: Path) -> None:
    """Each shell that is installed reads its script; fish completes, too."""
    for shell in ("zsh", "fish"):
        text = script(shell)
        assert "run-batch" in text and "shared-prefix-tokens" in text and "disable-custom-kernels" not in text
        (tmp_path / shell).write_text(text)
        if shutil.which(shell):
            done = subprocess.run([shell, "-n", tmp_path / shell], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
    if shutil.which("fish"):
        program = f"source {tmp_path / 'fish'}; complete -C 'gridwork ru'"
        done = subprocess.run(["fish", "--no-config", "-c", program], capture_output=True, text=True, check=False)
        assert done.stdout.split("\t")[0] == "run-batch"


def test_a_shell_without_a_script_is_refused() -> None:
    assert "give one of bash, zsh, fish" in script("tcsh", code=1)
