"""Turns the model that a user names into a local folder that a shard can load.

`source` interprets the name, `hub` fetches from the Hugging Face hub, `gguf` converts, `default_model` makes the
default model, `staging` puts finished folders in place, and `cli` is the command line. Heavy packages are imported only
when they are needed: a model that is already there costs no import of PyTorch or Transformers.
"""
