"""Finds the classes of a model's config and of the model, in Transformers or in code that comes with the model.

A model's own code is imported only when it is trusted. Its errors are reported with the file that raised them.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gridwork_server.config import ShardConfig
from gridwork_server.errors import ModelError
from gridwork_server.text import one_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def read_config(config: ShardConfig, content: Any) -> "PretrainedConfig":
    """Reads the model's config with Transformers or the model's own code. content: of config.json. Raises
    ModelError."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    file = config.model_path / "config.json"
    reference = _references(content).get("AutoConfig")
    runs_code = config.trust_remote_code and reference is not None
    from_pretrained: Any = AutoConfig.from_pretrained
    try:
        return from_pretrained(config.model_path, trust_remote_code=config.trust_remote_code, **_code_revision(config))
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{file} needs its own Python code; start with --trust-remote-code if you trust it"
            ) from None
        if "does not recognize this architecture" in str(error):
            import transformers

            raise ModelError(
                f"{file} has the model type `{content['model_type']}`, which Transformers "
                f"{transformers.__version__} does not know; the model may need a newer version of Gridwork"
            ) from None
        if runs_code and not isinstance(error, StrictDataclassError):
            _raise_for_code(error, config, "AutoConfig", str(reference))
        raise ModelError(f"{file} cannot be used: {one_line(error)}") from error


def find_model_class(model_config: "PretrainedConfig", config: ShardConfig) -> type["PreTrainedModel"]:
    """Finds the class that generates text with this config. Raises ModelError."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    references = _references(vars(model_config))
    key = _key_of_model(references, getattr(model_config, "architectures", None))
    if key is not None and config.trust_remote_code:
        reference = references[key]
        try:
            get_class: Any = get_class_from_dynamic_module
            return get_class(reference, str(config.model_path), **_code_revision(config))
        except Exception as error:
            _raise_for_code(error, config, key, reference)
    mapping = _mapping(model_config)
    if mapping is None:
        if key is not None:
            hint = "this one comes with its own code, start with --trust-remote-code if you trust it"
        elif references and config.trust_remote_code:
            hint = (
                f"auto_map of {config.model_path / 'config.json'} names no AutoModelForCausalLM either, but "
                f"{', '.join(sorted(references))}"
            )
        else:
            hint = "use another model"
        raise ModelError(
            f"models of type `{model_config.model_type}` do not generate text in the installed Transformers; {hint}"
        )
    found: Any = mapping[type(model_config)]
    return found[0] if isinstance(found, tuple) else found


def _mapping(model_config: "PretrainedConfig") -> Any:
    """Mapping to the classes of Transformers that generate with this config; None when there are none. Where both kinds
    exist, decoders and encoder-decoders, the class that the model was saved from decides."""
    import transformers
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    fitting = [
        mapping
        for mapping in (AutoModelForCausalLM._model_mapping, AutoModelForSeq2SeqLM._model_mapping)
        if type(model_config) in mapping
    ]
    saved = set(getattr(model_config, "architectures", None) or [])
    named = [mapping for mapping in fitting if _names(mapping[type(model_config)]) & saved]
    if not named and model_config.is_encoder_decoder:
        fitting.reverse()
    if fitting:
        return next(iter(named or fitting))
    # Parts of larger models that were saved separately are in no mapping.
    found: list[Any] = [getattr(transformers, name, None) for name in sorted(saved)]
    return next(({type(model_config): each} for each in found if each is not None and each.can_generate()), None)


def _names(found: Any) -> set[str]:
    return {each.__name__ for each in (found if isinstance(found, tuple) else (found,))}


def _key_of_model(references: dict[str, str], architectures: list[str] | None) -> str | None:
    """Entry of `auto_map` for a model that generates text. Some models list it under another name; then the config's
    `architectures` decides."""
    if "AutoModelForCausalLM" in references:
        return "AutoModelForCausalLM"
    named = [key for key in references if key.startswith("AutoModel")]
    return next((key for key in named if references[key].rpartition(".")[2] in (architectures or [])), None)


def _references(content: Any) -> dict[str, str]:
    """The entries of `auto_map`: classes as `file.Class` or `repository--file.Class`, by the auto class they serve."""
    found = content.get("auto_map") if isinstance(content, dict) else None
    return {key: value for key, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}


def _code_revision(config: ShardConfig) -> dict[str, str]:
    return {"code_revision": config.code_revision} if config.code_revision and config.trust_remote_code else {}


def _raise_for_code(error: Exception, config: ShardConfig, key: str, reference: str) -> NoReturn:
    """Raises a ModelError that says what is wrong with a model's own code."""
    repository, _, rest = reference.rpartition("--")
    module, _, name = rest.rpartition(".")
    where = f"{config.model_path / 'config.json'}, auto_map.{key} (`{reference}`)"
    if not module or not name:
        raise ModelError(f"{where}: it must be of the form file.Class or repository--file.Class") from error
    if repository:
        revision = f" at {config.code_revision}" if config.code_revision else ""
        if isinstance(error, OSError):
            raise ModelError(
                f"{where}: the code of {repository}{revision} is neither in the cache nor can it be fetched "
                f"({one_line(error)}); fetch it where there is a network, name another --code-revision, or put "
                f"{module}.py into the model's folder and `{rest}` here"
            ) from error
        raise ModelError(f"{where}: the code of {repository}{revision} fails: {one_line(error)}") from error
    file = config.model_path / f"{module}.py"
    missing = _missing_file(error, config.model_path)
    if not file.is_file() or missing is not None:
        raise ModelError(f"{where}: {missing or file} is missing; download the model again") from error
    if isinstance(error, AttributeError) and name in str(error) and "has no attribute" in str(error):
        raise ModelError(f"{where}: {file} defines no {name}; download the model again") from error
    if isinstance(error, ImportError) and "packages that were not found" in str(error):
        raise ModelError(f"{where}: {one_line(error)}") from error
    raise ModelError(
        f"{where}: the code in {file} fails: {one_line(error)}; it may have been written for another version of "
        "Transformers"
    ) from error


def _missing_file(error: Exception, folder: Path) -> Path | None:
    """File of the model's folder that the error reports as missing; None otherwise."""
    if isinstance(error, FileNotFoundError) and error.filename:
        path = Path(error.filename)
        return path if path.parent == folder else None
    return None
