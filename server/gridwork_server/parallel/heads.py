"""Assigns attention heads to ranks."""

from dataclasses import dataclass

from torch import nn

from gridwork_server.errors import ModelError
from gridwork_server.parallel.group import RankGroup
from gridwork_server.parallel.modules import share


@dataclass(frozen=True)
class Heads:
    """Number and size of the heads of one attention module."""

    num_heads: int
    num_kv_heads: int
    size: int

    @staticmethod
    def of(module: nn.Module, width: int) -> "Heads | None":
        """Reads the heads of an attention module; None when its numbers do not fit. width: input features of the
        module's output projection."""
        size = head_size(module)
        if not size or width % size:
            return None
        num_heads = width // size
        groups = getattr(module, "num_key_value_groups", None)
        if groups is None:
            config = getattr(module, "config", None)
            num_kv_heads = getattr(module, "num_key_value_heads", None) or getattr(config, "num_key_value_heads", None)
            groups = num_heads // num_kv_heads if num_kv_heads else 1
        if groups < 1 or num_heads % groups:
            return None
        return Heads(num_heads, num_heads // groups, size)

    def part(self, width: int, where: str, group: RankGroup) -> tuple[int, int]:
        """Range of this rank's features in a layer with `width` features. With fewer KV heads than ranks, several ranks
        have the same KV head and share its query heads. Raises ModelError."""
        rank, world_size = group.rank, group.world_size
        if self.num_kv_heads >= world_size:
            first, end = share(self.num_kv_heads, rank, world_size)
            return first * width // self.num_kv_heads, end * width // self.num_kv_heads
        ranks_each = world_size // self.num_kv_heads
        queries_each = self.num_heads // self.num_kv_heads
        is_query = width % (self.num_heads * self.size) == 0 or width == self.num_heads
        if (
            world_size % self.num_kv_heads
            or queries_each < ranks_each
            or is_query == (width == self.num_kv_heads * self.size)
        ):
            raise ModelError(
                f"{where} cannot be split over {world_size} ranks: it has {self.num_heads} query heads for "
                f"{self.num_kv_heads} KV heads; use a --num-shard of at most {self.num_kv_heads}"
            )
        kv_head, nth = divmod(rank, ranks_each)
        step = width // self.num_kv_heads
        if not is_query:
            return kv_head * step, (kv_head + 1) * step
        first, end = share(queries_each, nth, ranks_each)
        return kv_head * step + first * step // queries_each, kv_head * step + end * step // queries_each


def unplanned_head_parameter(module: nn.Module, named: set[str], heads: Heads) -> str | None:
    """Name of a parameter that seems to differ by head but is not in the plan; None when there is none. named: children
    and parameters that the plan splits."""
    for name, _parameter in module.named_parameters(recurse=False):
        if name not in named:
            return name
    for name, child in module.named_children():
        if name in named or isinstance(child, nn.Linear):
            continue
        for own, parameter in child.named_parameters(recurse=False):
            over_heads = parameter.dim() == 2 and parameter.shape[0] in (heads.num_heads, heads.num_kv_heads)
            if over_heads and parameter.shape[0] > 1 and parameter.shape[1] == heads.size:
                return f"{name}.{own}"
    return None


def head_size(module: nn.Module) -> int | None:
    """Size of the heads that an attention module's output projection takes; None for other modules."""
    sizes = (getattr(module, name, None) for name in ("v_head_dim", "head_dim", "head_size"))
    return next((size for size in sizes if isinstance(size, int)), None)
