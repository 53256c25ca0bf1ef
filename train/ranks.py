"""The processes of one training run: which of them this is, and what they agree on. Alone, a process agrees with itself."""

from collections.abc import Sequence
from typing import Any


def rank() -> int:
    """Number of this process among those of the run; 0 writes."""
    group = _group()
    return group.get_rank() if group else 0


def count() -> int:
    """Processes of the run."""
    group = _group()
    return group.get_world_size() if group else 1


def barrier() -> None:
    """Wait until every process is here."""
    group = _group()
    if group:
        group.barrier()


def summed(values: Sequence[float]) -> list[float]:
    """The sums over all processes, in fp64; every process calls it at the same point."""
    group = _group()
    if not group:
        return list(values)
    import torch

    device = torch.device("cuda") if group.get_backend() == "nccl" else torch.device("cpu")
    found = torch.tensor(list(values), dtype=torch.float64, device=device)
    group.all_reduce(found)
    return [float(x) for x in found]


def any_of(flag: bool) -> bool:
    """Whether it holds in any process."""
    return summed([float(flag)])[0] > 0


def gathered(items: Sequence[str]) -> list[str]:
    """The items of all processes, in their order."""
    group = _group()
    if not group:
        return list(items)
    parts: list[Any] = [None] * group.get_world_size()
    group.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]


def _group() -> Any:
    """torch.distributed where a group of more than one process has been made."""
    import torch

    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed if ready and torch.distributed.get_world_size() > 1 else None
