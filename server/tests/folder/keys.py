"""Lists every key of the files that Transformers, PEFT and sentence-transformers read from a folder, and its treatment.

The tests beside this file check each entry, and that no key of the installed versions is missing.

The keys of generation_config.json are in `gridwork_server.model.generation_defaults.KEYS`.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Key:
    """Treatment of a key."""

    reason: str
    """Effect of the key here; for a key without effect, the reason."""
    samples: tuple[Any, ...] = ()
    """Values to try."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Further keys to set with the samples."""


@dataclass(frozen=True)
class Read(Key):
    """A key that works as in the package that it comes from."""


@dataclass(frozen=True)
class Refused(Key):
    """A key for which the folder is refused, with a message that names it."""


@dataclass(frozen=True)
class WithoutEffect(Key):
    """A key that changes nothing here."""


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
    "image_token": Read("any other name of a token, handled like `bos_token`", ("<|image|>",)),
    "split_special_tokens": Read("special tokens in a text are split like other text; the router reads it"),
    "add_bos_token": Read("read without tokenizer.json; with one, Transformers ignores it", (True, False)),
    "add_eos_token": Read("the same", (True, False)),
    "add_prefix_space": Read(
        "read by classes that make their own tokenizer", (True, False), {"tokenizer_class": "GPT2Tokenizer"}
    ),
    "do_lower_case": Read("read by classes that make their own tokenizer", (True, False)),
    "fix_mistral_regex": Read("as Transformers decides", (True, False)),
    "tokenizer_file": Read("as Transformers decides; it does not follow a path there"),
    "vocab_file": Read("the same"),
    "merges_file": Read("the same"),
    "vocab": Read("read by classes without a file"),
    "merges": Read("the same"),
    "unk_id": Read("the same"),
    "fast_tokenizer_files": Read("versions of tokenizer.json, from which Transformers chooses"),
    "init_inputs": Read("passed as Transformers passes them"),
    "post_processor": Read("used as Transformers uses it"),
    "tokenizer_object": Read("used as Transformers uses it"),
    "chat_template": Read("template for chats"),
    "name": Read("name of one of several chat templates"),
    "template": Read("text of one of several chat templates"),
    "model_max_length": Read("longest input of encoders without sentence-transformers' `max_seq_length`"),
    "max_len": WithoutEffect("older name of `model_max_length`, which today's folders have", (9,)),
    "clean_up_tokenization_spaces": WithoutEffect(
        "a token would change the text of an earlier one, which is already sent; as in vLLM",
        (True,),
    ),
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": WithoutEffect("the same", (True,)),
    "truncation_side": WithoutEffect("the request says which end is truncated", ("left",)),
    "padding_side": WithoutEffect("nothing is padded", ("left",)),
    "pad_to_multiple_of": WithoutEffect("nothing is padded", (8,)),
    "pad_token_type_id": WithoutEffect("nothing is padded", (1,)),
    "max_length": WithoutEffect("setting of truncation, which the request decides", (3,)),
    "stride": WithoutEffect("the same", (1,)),
    "truncation_strategy": WithoutEffect("the same", ("longest_first",)),
    "tokenizer_padding": WithoutEffect("nothing is padded"),
    "tokenizer_truncation": WithoutEffect("the request decides about truncation"),
    "_json_padding": WithoutEffect("internal of Transformers"),
    "_json_truncation": WithoutEffect("internal of Transformers"),
    "_spm_precompiled_charsmap": WithoutEffect("internal of Transformers"),
    "model_input_names": WithoutEffect("token types are made when the model has them", (["input_ids"],)),
    "backend": WithoutEffect("a note of Transformers", ("tokenizers",)),
    "name_or_path": WithoutEffect("a note of Transformers", ("org/name",)),
    "is_local": WithoutEffect("a note of Transformers", (True,)),
    "local_files_only": WithoutEffect("a note of Transformers", (True,)),
    "gguf_file": WithoutEffect("an argument of Transformers, not a setting"),
    "processor_class": WithoutEffect("only text is served", ("LlavaProcessor",)),
    "verbose": WithoutEffect("setting of Transformers' log", (True,)),
    "legacy": WithoutEffect("read by classes that make their own tokenizer, as Transformers decides", (True, False)),
    "errors": WithoutEffect("bytes that are not UTF-8 are replaced", ("strict",)),
    "use_fast": WithoutEffect("Transformers 5 always uses the fast tokenizer", (False,)),
    "response_template": WithoutEffect("answers are not parsed by the model's template"),
    "response_schema": WithoutEffect("the same"),
    "chat_control_tokens": WithoutEffect("setting of Transformers' own chats"),
}

CONFIG: dict[str, Key] = {
    "transformers_version": WithoutEffect("a note"),
    "architectures": Read("says which task the model is for"),
    "output_hidden_states": WithoutEffect("the paths always request the same outputs of `forward()`"),
    "return_dict": WithoutEffect("the same"),
    "dtype": Read("dtype of weights and activations, with --dtype auto"),
    "chunk_size_feed_forward": Read("read by the model's own code"),
    "is_encoder_decoder": Read("chooses the path, and the class of embedders"),
    "id2label": Read("names of labels, and with their number the task"),
    "label2id": WithoutEffect("inverse of `id2label`, which is read"),
    "problem_type": Read("decides how logits of labels become scores"),
}
"""Keys of all types of models. Other keys of config.json are read by the type's own class in Transformers."""

CONFIG_OF_TASKS: dict[str, Key] = {
    "num_labels": Read("read when there is no `id2label`"),
    "sentence_transformers": Read("a cross-encoder's `activation_fn`"),
    "sbert_ce_default_activation_function": Read("older name of `activation_fn`"),
    "max_position_embeddings": Read("the context, or the length that rotary embeddings scale"),
    "rope_parameters": Read("factor by which the context is longer"),
    "rope_scaling": Read("older name of `rope_parameters`"),
    "eos_token_id": Read("read when generation_config.json has none"),
    "tokenizer_class": Read("read when tokenizer_config.json has none"),
    "auto_map": Read("the model's own code; needs --trust-remote-code"),
    "quantization_config": Refused("see the documentation of formats"),
}

POOLING: dict[str, Key] = {
    "pooling_mode": Read("one way to pool or several"),
    "pooling_mode_cls_token": Read("a way to pool"),
    "pooling_mode_mean_tokens": Read("a way to pool, and the default"),
    "pooling_mode_max_tokens": Read("a way to pool"),
    "pooling_mode_mean_sqrt_len_tokens": Read("a way to pool"),
    "pooling_mode_weightedmean_tokens": Read("a way to pool"),
    "pooling_mode_lasttoken": Read("a way to pool"),
    "include_prompt": Read("whether a prompt's tokens are pooled"),
    "word_embedding_dimension": WithoutEffect("the model has that size"),
}

SENTENCE_BERT: dict[str, Key] = {
    "max_seq_length": Read("longest input"),
    "do_lower_case": Read("makes texts lower case"),
}

SENTENCE_TRANSFORMERS: dict[str, Key] = {
    "prompts": Read("prompts by name"),
    "default_prompt_name": Read("prompt before texts unless a request names another"),
    "similarity_fn_name": WithoutEffect("does not change vectors; clients compare them"),
    "model_type": WithoutEffect("modules.json lists the steps"),
    "__version__": WithoutEffect("a note"),
}

MODULES: dict[str, Key] = {
    **{
        name: Read("runs as in sentence-transformers")
        for name in ("Transformer", "Pooling", "Dense", "LayerNorm", "Normalize")
    },
    "Dropout": WithoutEffect("nothing is dropped outside training"),
    **{
        name: Refused("not supported; the message has the module's name")
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
    "in_features": Read("size of the layer"),
    "out_features": Read("size of the layer"),
    "bias": Read("whether the layer has one"),
    "activation_function": Read("a module of PyTorch"),
    "module_input_name": Refused("layers on the tokens' vectors are not supported", ("token_embeddings",)),
    "module_output_name": Refused("the same", ("token_embeddings",)),
}

_TARGETS = {"target_modules": ["q_proj", "v_proj"]}
_OF_TRAINING = "concerns the start of training; the saved weights are its result"

LORA: dict[str, Key] = {
    "peft_type": Read("method of the adapter; methods that add tokens in place of changing weights are refused"),
    "task_type": Read("chooses the class that loads the base"),
    "auto_mapping": WithoutEffect("the base's config tells its class"),
    "peft_version": WithoutEffect("a note"),
    "base_model_name_or_path": Read("a folder or a name on the hub"),
    "revision": WithoutEffect("the base is used as found; name the folder of a revision"),
    "inference_mode": WithoutEffect("always on"),
    "r": Read("rank", (2,), _TARGETS),
    "target_modules": Read("modules of the base", (["q_proj"], "all-linear", ["embed_tokens", "q_proj"], ["lm_head"])),
    "exclude_modules": Read("modules of the base", ("down_proj",), {"target_modules": "all-linear"}),
    "lora_alpha": Read("scale", (3,), _TARGETS),
    "lora_dropout": WithoutEffect("nothing is dropped outside training", (0.5,), _TARGETS),
    "fan_in_fan_out": Read("layout of the base's weights, which PEFT finds itself", (False,), _TARGETS),
    "bias": Read("biases of the base that are saved too", ("all", "lora_only"), _TARGETS),
    "use_rslora": Read("scale", (True,), _TARGETS),
    "modules_to_save": Read(
        "modules replaced as a whole", (["embed_tokens", "lm_head"], ["lm_head"], ["embed_tokens"], ["norm"]), _TARGETS
    ),
    "init_lora_weights": Read(
        "ways that change the base are saved as a difference", ("pissa", "olora", "gaussian"), _TARGETS
    ),
    "layers_to_transform": Read("layers by number", ([1],), _TARGETS),
    "layers_pattern": Read("the same", ("layers",), _TARGETS | {"layers_to_transform": [0]}),
    "rank_pattern": Read("ranks of single modules", ({"q_proj": 2},), _TARGETS),
    "alpha_pattern": Read("scales of single modules", ({"v_proj": 3},), _TARGETS),
    "megatron_config": WithoutEffect("setting of training with Megatron"),
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
    "alora_invocation_tokens": Refused("takes effect only from some tokens on", ([5, 9],), _TARGETS),
    "use_qalora": Read("merged if PEFT can merge it; otherwise refused with PEFT's reason"),
    "qalora_group_size": Read("the same"),
    "monteclora_config": Read("merged if PEFT can merge it; otherwise refused with PEFT's reason"),
    "layer_replication": Read("repeats layers, each with its own adapter", ([[0, 2], [1, 2]],), _TARGETS),
    "runtime_config": WithoutEffect("setting for running an unmerged adapter"),
    "lora_bias": Read("bias of the adapter itself"),
    "target_parameters": Read("parameters in place of modules", (["mlp.down_proj.weight"],), {"target_modules": []}),
    "use_bdlora": Read("merged if PEFT can merge it; otherwise refused with PEFT's reason"),
    "arrow_config": Refused("mixes adapters for each token"),
    "kasa_config": Read("merged if PEFT can merge it; otherwise refused with PEFT's reason"),
    "ensure_weight_tying": Read(
        "embeddings and head stay tied", (True,), _TARGETS | {"modules_to_save": ["embed_tokens"]}
    ),
}
