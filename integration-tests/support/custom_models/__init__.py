"""Models with their own Python code, each with a habit of models on the hub, and their plain reference.

Every folder beside this file but `shared` holds one habit. `build` makes a model of it: its code with the shared parts,
a config as such a model carries it, random weights and a tokenizer. The expected answer is that of the model's own
`forward()` over the whole sequence, without a cache and alone in the batch: `greedy`.
"""

import inspect
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from ..models import EOS, SIZES, VOCAB_SIZE, tokenizer_file

_HERE = Path(__file__).parent

_SETTINGS = ("shared/settings.py",)
_LAWFUL = (*_SETTINGS, "contract/configuration_lawful.py", "contract/modeling_lawful.py")


@dataclass(frozen=True)
class Habit:
    """The parts of a model with this habit."""

    config_class: str | None
    """`file.Class`; None for a class of Transformers."""
    model_class: str | None
    config: dict[str, Any] = field(default_factory=dict)
    """Settings of its config.json besides `auto_map`."""
    tokenizer_class: str | None = None
    generates: bool = True
    """True if Transformers' own `generate()` can run it."""
    random_scale: float = 0.25
    parts: tuple[str, ...] = ()
    """Files beside the folder's own, which these import."""


#: By folder. The server has to find out which paths each model allows.
HABITS: dict[str, Habit] = {
    "tuple_cache": Habit(
        "configuration_packed.PackedConfig",
        "modeling_packed.PackedForCausalLM",
        {"model_type": "packed", "torch_dtype": "float32", "transformers_version": "4.29.1"},
        generates=False,
        parts=_SETTINGS,
    ),
    "alibi_transposed": Habit(
        "configuration_slope.SlopeConfig",
        "modeling_slope.SlopeForCausalLM",
        {"model_type": "slope", "torch_dtype": "float32"},
        generates=False,
        parts=_SETTINGS,
    ),
    "cache_position": Habit(
        "configuration_placed.PlacedConfig",
        "modeling_placed.PlacedForCausalLM",
        {"model_type": "placed", "torch_dtype": "float32", "transformers_version": "4.44.2"},
        parts=_SETTINGS,
    ),
    "seq_first": Habit(
        "configuration_glmlike.GlmLikeConfig",
        "modeling_glmlike.GlmLikeForConditionalGeneration",
        {"model_type": "glmlike", "torch_dtype": "float32", "eos_token_id": 0, "pad_token_id": 0},
        generates=False,
    ),
    "no_cache": Habit(
        "configuration_nano.NanoConfig",
        "modeling_nano.NanoLMHeadModel",
        {"model_type": "nano-decoder", "eos_token_id": 0},
        generates=False,
    ),
    "recurrent_state": Habit(
        "configuration_leaky.LeakyConfig", "modeling_leaky.LeakyForCausalLM", {"model_type": "leaky"}, random_scale=0.6
    ),
    "contract": Habit(
        "configuration_lawful.LawfulConfig",
        "modeling_lawful.LawfulForCausalLM",
        {"model_type": "lawful"},
        parts=_SETTINGS,
    ),
    "drops_kwargs": Habit(
        "configuration_forgetful.ForgetfulConfig",
        "modeling_forgetful.ForgetfulForCausalLM",
        {"model_type": "forgetful"},
        parts=_LAWFUL,
    ),
    "absolute_positions": Habit(
        "configuration_counted.CountedConfig",
        "modeling_counted.CountedLMHeadModel",
        {"model_type": "counted", "eos_token_id": 0},
        parts=_SETTINGS,
    ),
    "python_tokenizer": Habit(
        None,
        None,
        {
            "model_type": "llama",
            "vocab_size": VOCAB_SIZE,
            "bos_token_id": None,
            "eos_token_id": 0,
            **SIZES,
        },
        tokenizer_class="tokenization_trie.TrieTokenizer",
    ),
    "nested_relative": Habit(
        "configuration_nested.NestedConfig",
        "modeling_nested.NestedForCausalLM",
        {"model_type": "nested", "text_config": {"model_type": "nested_text", "num_hidden_layers": 2}},
        parts=_SETTINGS,
    ),
    "stale_cache_api": Habit(
        "configuration_stale.StaleConfig",
        "modeling_stale.StaleForCausalLM",
        {"model_type": "stale", "eos_token_id": 0},
        generates=False,
        parts=_SETTINGS,
    ),
}


def build(habit: str, folder: Path) -> Path:
    """Writes a random model to `folder`; the same weights every time. Its own code is run."""
    chosen = HABITS[habit]
    if chosen.tokenizer_class is None:
        tokenizer_file(folder)
    else:
        _python_tokenizer(folder, chosen.tokenizer_class)
    for file in [*(_HERE / habit).glob("*.py"), *(_HERE / part for part in chosen.parts)]:
        shutil.copy(file, folder / file.name)
    config = dict(chosen.config)
    if chosen.config_class and chosen.model_class:
        config["architectures"] = [chosen.model_class.partition(".")[2]]
        config["auto_map"] = {"AutoConfig": chosen.config_class, "AutoModelForCausalLM": chosen.model_class}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    torch.manual_seed(29)
    model = _from_config(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            # Norms and biases get noise on their constants, so that ignoring one shows.
            parameter.copy_(noise * chosen.random_scale if parameter.dim() > 1 else parameter + noise * 0.1)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    return folder


def _from_config(folder: Path) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    return AutoModelForCausalLM.from_config(config, trust_remote_code=True).float()


def plain(folder: Path) -> Any:
    """The model as Transformers loads it, in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()


@torch.inference_mode()
def greedy(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    """The greedy continuation, with one `forward()` over the whole sequence for each token."""
    tokens = list(prompt)
    takes_use_cache = "use_cache" in inspect.signature(model.forward).parameters
    options = {"use_cache": False} if takes_use_cache else {}
    for _ in range(count):
        output = model(input_ids=torch.tensor([tokens]), **options)
        logits = output[0] if isinstance(output, tuple) else output.logits
        tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@torch.inference_mode()
def generated(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    """Greedy tokens of Transformers' `generate()`; no token ends the sequence."""
    ids = torch.tensor([list(prompt)])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    return output[0, len(prompt) :].tolist()


def marked(source: Path, root: Path) -> Path:
    """A copy in `root` whose modules create the file `root/has-run` when they are imported."""
    folder = Path(shutil.copytree(source, root / "marked"))
    for file in folder.glob("*.py"):
        text = file.read_text()
        mark = f'\nfrom pathlib import Path as _Path\n\n_Path(r"{root / "has-run"}").touch()\n'
        file.write_text(text + mark)
    return folder


REFERENCES = ("text_config", "processor_config.json", "preprocessor_config.json")
"""Parts of a model folder, besides the config itself, that can refer to Python code."""


def refer_from(place: str, folder: Path) -> str:
    """Lets only this part of a `nested_relative` model refer to its code; returns how the launcher names the part."""
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"]
    reference = {"AutoConfig": "text_settings.NestedTextConfig", "AutoProcessor": "blocks.PlainBlock"}
    if place == "text_config":
        config["text_config"]["auto_map"] = reference
    else:
        (folder / place).write_text(json.dumps({"auto_map": reference}))
    (folder / "config.json").write_text(json.dumps(config))
    return "config.json has text_config.auto_map" if place == "text_config" else f"{place} has auto_map"


def _python_tokenizer(folder: Path, name: str) -> None:
    """Writes the words of the usual tokenizer as a list for a tokenizer in Python, without a tokenizer.json."""
    tokenizer = tokenizer_file(folder)
    (folder / "trie_vocab.txt").write_text("".join(f"{word!r}\n" for word in words(tokenizer)))
    (folder / "tokenizer.json").unlink()
    settings = {"tokenizer_class": name.partition(".")[2], "auto_map": {"AutoTokenizer": [name, None]}}
    settings |= {"eos_token": EOS, "model_max_length": 1024}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def words(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes of every token, by id."""
    from tokenizers import decoders

    decoder = decoders.ByteLevel()
    byte_of = {}
    for byte in range(256):
        # GPT-2's alphabet: printable bytes of Latin-1 stand for themselves, the rest for U+0100 and on.
        printable = 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or 0xAE <= byte <= 0xFF
        byte_of[chr(byte) if printable else chr(0x100 + sum(1 for key in byte_of if ord(key) >= 0x100))] = byte
    assert decoder.decode([key for key, byte in byte_of.items() if byte == ord("A")]) == "A"
    by_id = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    return [token.encode() if token in special else bytes(byte_of[c] for c in token) for token, _ in by_id]
