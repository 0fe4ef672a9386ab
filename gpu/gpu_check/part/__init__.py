"""The parts: each module has `run(context)`, which reports checks and figures as it finds them."""
