"""Settings of a small decoder, for configurations that differ from each other in a few."""

COMMON = {"vocab_size": 640, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "use_cache": True}


def adopt(config, given, **own):
    """Sets the attributes of a config, from `given` or by default, and returns what else was given.

    own: settings that COMMON lacks, and other defaults for those that it has.
    """
    rest = dict(given)
    for name, default in (COMMON | own).items():
        setattr(config, name, rest.pop(name, default))
    return rest
