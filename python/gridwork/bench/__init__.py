"""Load on a server of OpenAI's API: when requests arrive, what they say, how they are sent, and what was measured."""
