"""Turns what a user names as a model into a local folder that a shard can load.

`source` tells what a name means, `hub` fetches from the Hugging Face hub, `gguf` converts, `default_model` makes the
default model, `staging` puts finished folders in place, `cli` is the command line. Nothing heavy is imported before it
is needed: a model that is already there costs no import of PyTorch or Transformers.
"""
