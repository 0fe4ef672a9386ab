"""Every model type of the installed Transformers, tiny and random, served and compared with Transformers itself."""
