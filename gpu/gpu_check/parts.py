"""The parts of the check, in the order in which they run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """A part of the check. It runs in a process of its own."""

    number: int
    name: str
    """Module of `gpu_check.part`."""
    title: str
    limit_s: float
    """Seconds after which the part is ended, where there is time enough for all parts."""
    in_dry_run: bool = True
    """True if a CPU can run it."""

    @property
    def label(self) -> str:
        """The name of its files."""
        return f"{self.number}-{self.name}"


PARTS = (
    Part(1, "machine", "machine, driver, PyTorch, bandwidth, matrix rate", 90),
    Part(2, "attention", "attention implementations against the reference", 270),
    Part(3, "sampling", "sampling on the device against the CPU", 60),
    Part(4, "graphs", "decode graphs against plain steps", 150, in_dry_run=False),
    Part(5, "conformance", "model types against Transformers", 300),
    Part(6, "server", "the real server, 64 clients, kill -9 of the shard", 180),
    Part(7, "ranks", "two ranks on one device", 150),
    Part(8, "figures", "decode, prefill, time to ready, host time", 480, in_dry_run=False),
)


class UnknownPart(ValueError):
    """A part that does not exist."""


def choose(text: str) -> tuple[Part, ...]:
    """The parts that a list of numbers or names means, in their order; all of them for an empty list. Raises
    UnknownPart."""
    words = text.replace(",", " ").split()
    known = {word: part for part in PARTS for word in (str(part.number), part.name)}
    for word in words:
        if word not in known:
            names = ", ".join(f"{part.number} {part.name}" for part in PARTS)
            raise UnknownPart(f'GPU_PARTS has "{word}", which is no part; use numbers or names of {names}')
    wanted = {known[word] for word in words} if words else set(PARTS)
    return tuple(part for part in PARTS if part in wanted)
