"""The check of a machine with a GPU: sets up from a pack, runs its parts, and writes each result at once.

`__main__`, `parts`, `setup`, `runner`, `results` and `table` need Python's standard library alone. The parts (`part/`)
run in processes of their own, with the packages that were set up.
"""
