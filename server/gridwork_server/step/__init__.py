"""One step of the model: a batch in, sampled tokens out."""
