"""Single programs: bandwidth, profiles of a step, perplexity, rooflines, and the program that runs `generate()`."""
