"""Runs lm-eval, with the packages of the folder argv[1] after its own."""

import sys

sys.path.append(sys.argv.pop(1))

from lm_eval.__main__ import cli_evaluate

if __name__ == "__main__":
    cli_evaluate()
