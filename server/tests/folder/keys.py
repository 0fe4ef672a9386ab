"""Every key of the files that Transformers, PEFT and sentence-transformers read from a folder, and its fate here.

The tests beside this file check each entry, and that no key of the installed versions is missing.

The keys of generation_config.json are in `gridwork_server.model.generation_defaults.KEYS`.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Key:
    """What becomes of a key."""

    reason: str
    """What it does here; of a key without effect, why it has none."""
    samples: tuple[Any, ...] = ()
    """Values to try."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Further keys that go with the samples."""


@dataclass(frozen=True)
class Read(Key):
    """Works as it does in the package that it is from."""


@dataclass(frozen=True)
class Refused(Key):
    """The folder is refused, with a message that has the key's name."""


@dataclass(frozen=True)
class WithoutEffect(Key):
    """Changes nothing here."""


_TOKEN = {"content": "<|new|>", "special": True, "normalized": False}

TOKENIZER_CONFIG: dict[str, Key] = {
    "tokenizer_class": Read("the class makes its own tokenizer of the file's vocabulary", ("GPT2Tokenizer", "Unknown")),
    "auto_map": Read("the model's own class tokenizes; needs --trust-remote-code"),
    "added_tokens_decoder": Read(
        "tokens that tokenizer.json may lack",
        ({"400": _TOKEN}, {"7": {"content": "(", "special": False, "normalized": True}}),
    ),
    "additional_special_tokens": Read("tokens that tokenizer.json may lack", (["<|new|>"], ["<|end|>"])),
    "extra_special_tokens": Read("the same, also by name", (["<|new|>"], {"image_token": "<|image|>"})),
    "model_specific_special_tokens": Read("the same", ({"image_token": "<|image|>"},)),
    **{
        f"{name}_token": Read(
            "added when tokenizer.json lacks it; known to chat templates", ("<|new|>", "<|end|>", "a")
        )
        for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
    },
    "image_token": Read("any other name of a token, as `bos_token`", ("<|image|>",)),
    "split_special_tokens": Read("special tokens in a text are cut like other text; the router reads it"),
    "add_bos_token": Read("without tokenizer.json; beside it, Transformers does not read it", (True, False)),
    "add_eos_token": Read("the same", (True, False)),
    "add_prefix_space": Read(
        "by classes that make their own tokenizer", (True, False), {"tokenizer_class": "GPT2Tokenizer"}
    ),
    "do_lower_case": Read("by classes that make their own tokenizer", (True, False)),
    "fix_mistral_regex": Read("as Transformers decides", (True, False)),
    "tokenizer_file": Read("as Transformers decides: a path there is not followed"),
    "vocab_file": Read("the same"),
    "merges_file": Read("the same"),
    "vocab": Read("by classes without a file"),
    "merges": Read("the same"),
    "unk_id": Read("the same"),
    "fast_tokenizer_files": Read("versions of tokenizer.json; Transformers chooses"),
    "init_inputs": Read("as Transformers takes them"),
    "post_processor": Read("as Transformers takes it"),
    "tokenizer_object": Read("as Transformers takes it"),
    "chat_template": Read("for chats"),
    "name": Read("of one of several chat templates"),
    "template": Read("the same"),
    "model_max_length": Read("the longest input of encoders without sentence-transformers' `max_seq_length`"),
    "max_len": WithoutEffect("older name of `model_max_length`, which folders of today have", (9,)),
    "clean_up_tokenization_spaces": WithoutEffect(
        "a token would change the text of an earlier one, which is sent already; as in vLLM",
        (True,),
    ),
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": WithoutEffect("the same", (True,)),
    "truncation_side": WithoutEffect("the request says which end is cut", ("left",)),
    "padding_side": WithoutEffect("nothing is padded", ("left",)),
    "pad_to_multiple_of": WithoutEffect("nothing is padded", (8,)),
    "pad_token_type_id": WithoutEffect("nothing is padded", (1,)),
    "max_length": WithoutEffect("of truncation, which the request asks for", (3,)),
    "stride": WithoutEffect("the same", (1,)),
    "truncation_strategy": WithoutEffect("the same", ("longest_first",)),
    "tokenizer_padding": WithoutEffect("nothing is padded"),
    "tokenizer_truncation": WithoutEffect("the request says whether it is cut"),
    "_json_padding": WithoutEffect("internal of Transformers"),
    "_json_truncation": WithoutEffect("internal of Transformers"),
    "_spm_precompiled_charsmap": WithoutEffect("internal of Transformers"),
    "model_input_names": WithoutEffect("token types are made where the model has them", (["input_ids"],)),
    "backend": WithoutEffect("a note of Transformers", ("tokenizers",)),
    "name_or_path": WithoutEffect("a note of Transformers", ("org/name",)),
    "is_local": WithoutEffect("a note of Transformers", (True,)),
    "local_files_only": WithoutEffect("a note of Transformers", (True,)),
    "gguf_file": WithoutEffect("an argument of Transformers, not a setting"),
    "processor_class": WithoutEffect("text alone is served", ("LlavaProcessor",)),
    "verbose": WithoutEffect("of Transformers' log", (True,)),
    "legacy": WithoutEffect("read by classes that make their own tokenizer, as Transformers decides", (True, False)),
    "errors": WithoutEffect("bytes that are no UTF-8 are replaced", ("strict",)),
    "use_fast": WithoutEffect("Transformers 5 always uses the fast one", (False,)),
    "response_template": WithoutEffect("answers are not taken apart by the model's template"),
    "response_schema": WithoutEffect("the same"),
    "chat_control_tokens": WithoutEffect("of Transformers' own chats"),
}

CONFIG: dict[str, Key] = {
    "transformers_version": WithoutEffect("a note"),
    "architectures": Read("says which task the model is for"),
    "output_hidden_states": WithoutEffect("what the paths ask `forward()` for is fixed"),
    "return_dict": WithoutEffect("the same"),
    "dtype": Read("of weights and activations, with --dtype auto"),
    "chunk_size_feed_forward": Read("by the model's own code"),
    "is_encoder_decoder": Read("chooses the path, and the class of embedders"),
    "id2label": Read("names of labels, and with their number the task"),
    "label2id": WithoutEffect("the inverse of `id2label`, which counts"),
    "problem_type": Read("how logits of labels become scores"),
}
"""Of all types of models; what else config.json has is read by the type's own class, of Transformers."""

CONFIG_OF_TASKS: dict[str, Key] = {
    "num_labels": Read("where there is no `id2label`"),
    "sentence_transformers": Read("a cross-encoder's `activation_fn`"),
    "sbert_ce_default_activation_function": Read("its older name"),
    "max_position_embeddings": Read("the context, or what rotary embeddings scale"),
    "rope_parameters": Read("the factor by which the context is longer"),
    "rope_scaling": Read("its older name"),
    "eos_token_id": Read("where generation_config.json has none"),
    "tokenizer_class": Read("where tokenizer_config.json has none"),
    "auto_map": Read("the model's own code; needs --trust-remote-code"),
    "quantization_config": Refused("see the documentation of formats"),
}

POOLING: dict[str, Key] = {
    "pooling_mode": Read("one way to pool or several"),
    "pooling_mode_cls_token": Read("a way to pool"),
    "pooling_mode_mean_tokens": Read("the same; on where the file does not say"),
    "pooling_mode_max_tokens": Read("a way to pool"),
    "pooling_mode_mean_sqrt_len_tokens": Read("a way to pool"),
    "pooling_mode_weightedmean_tokens": Read("a way to pool"),
    "pooling_mode_lasttoken": Read("a way to pool"),
    "include_prompt": Read("whether a prompt's tokens count"),
    "word_embedding_dimension": WithoutEffect("the model has that size"),
}

SENTENCE_BERT: dict[str, Key] = {
    "max_seq_length": Read("the longest input"),
    "do_lower_case": Read("texts are made lower case"),
}

SENTENCE_TRANSFORMERS: dict[str, Key] = {
    "prompts": Read("by name"),
    "default_prompt_name": Read("put before texts unless a request names another"),
    "similarity_fn_name": WithoutEffect("vectors are the same; clients compare them"),
    "model_type": WithoutEffect("modules.json says what is done"),
    "__version__": WithoutEffect("a note"),
}

MODULES: dict[str, Key] = {
    **{
        name: Read("as sentence-transformers does it")
        for name in ("Transformer", "Pooling", "Dense", "LayerNorm", "Normalize")
    },
    "Dropout": WithoutEffect("nothing is dropped outside training"),
    **{
        name: Refused("by name")
        for name in (
            "WeightedLayerPooling",
            "WordWeights",
            "CNN",
            "LSTM",
            "BoW",
            "WordEmbeddings",
            "StaticEmbedding",
            "Router",
            "CLIPModel",
        )
    },
}

DENSE: dict[str, Key] = {
    "in_features": Read("of the layer"),
    "out_features": Read("of the layer"),
    "bias": Read("of the layer"),
    "activation_function": Read("a module of PyTorch"),
    "module_input_name": Refused("layers on the tokens' vectors", ("token_embeddings",)),
    "module_output_name": Refused("the same", ("token_embeddings",)),
}

_TARGETS = {"target_modules": ["q_proj", "v_proj"]}
_OF_TRAINING = "of the beginning of a training; the weights are what they have become"

LORA: dict[str, Key] = {
    "peft_type": Read("which method; those that add tokens in place of changing weights are refused"),
    "task_type": Read("which class the base is loaded by"),
    "auto_mapping": WithoutEffect("the base's config says its class"),
    "peft_version": WithoutEffect("a note"),
    "base_model_name_or_path": Read("a folder or a name on the hub"),
    "revision": WithoutEffect("the base is taken as it is found; name the folder of a revision"),
    "inference_mode": WithoutEffect("always"),
    "r": Read("rank", (2,), _TARGETS),
    "target_modules": Read("of the base", (["q_proj"], "all-linear", ["embed_tokens", "q_proj"], ["lm_head"])),
    "exclude_modules": Read("of the base", ("down_proj",), {"target_modules": "all-linear"}),
    "lora_alpha": Read("scale", (3,), _TARGETS),
    "lora_dropout": WithoutEffect("nothing is dropped outside training", (0.5,), _TARGETS),
    "fan_in_fan_out": Read("how the base keeps its weights, which PEFT finds itself", (False,), _TARGETS),
    "bias": Read("biases of the base are saved too", ("all", "lora_only"), _TARGETS),
    "use_rslora": Read("scale", (True,), _TARGETS),
    "modules_to_save": Read(
        "replaced as a whole", (["embed_tokens", "lm_head"], ["lm_head"], ["embed_tokens"], ["norm"]), _TARGETS
    ),
    "init_lora_weights": Read(
        "ways that change the base are saved as a difference", ("pissa", "olora", "gaussian"), _TARGETS
    ),
    "layers_to_transform": Read("by number", ([1],), _TARGETS),
    "layers_pattern": Read("the same", ("layers",), _TARGETS | {"layers_to_transform": [0]}),
    "rank_pattern": Read("ranks of single modules", ({"q_proj": 2},), _TARGETS),
    "alpha_pattern": Read("scales of single modules", ({"v_proj": 3},), _TARGETS),
    "megatron_config": WithoutEffect("of training with Megatron"),
    "megatron_core": WithoutEffect("the same"),
    "trainable_token_indices": Read(
        "rows of the embeddings", ([5, 9], {"embed_tokens": [5], "lm_head": [3]}), _TARGETS
    ),
    "loftq_config": WithoutEffect(_OF_TRAINING),
    "eva_config": WithoutEffect(_OF_TRAINING),
    "corda_config": WithoutEffect(_OF_TRAINING),
    "lora_ga_config": WithoutEffect(_OF_TRAINING),
    "use_dora": Read("magnitudes", (True,), _TARGETS),
    "velora_config": WithoutEffect("saves memory in training"),
    "alora_invocation_tokens": Refused("from some tokens on only", ([5, 9],), _TARGETS),
    "use_qalora": Read("merged as far as PEFT merges it; else refused with its words"),
    "qalora_group_size": Read("the same"),
    "monteclora_config": Read("merged as far as PEFT merges it; else refused with its words"),
    "layer_replication": Read("layers are repeated, each with an adapter of its own", ([[0, 2], [1, 2]],), _TARGETS),
    "runtime_config": WithoutEffect("of running an adapter that is not merged"),
    "lora_bias": Read("a bias of the adapter's own"),
    "target_parameters": Read("parameters in place of modules", (["mlp.down_proj.weight"],), {"target_modules": []}),
    "use_bdlora": Read("merged as far as PEFT merges it; else refused with its words"),
    "arrow_config": Refused("mixes adapters anew for each token"),
    "kasa_config": Read("merged as far as PEFT merges it; else refused with its words"),
    "ensure_weight_tying": Read(
        "embeddings and head stay one", (True,), _TARGETS | {"modules_to_save": ["embed_tokens"]}
    ),
}
