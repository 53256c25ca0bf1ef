"""A batch in two halves, each forward and backward on a thread of its own that computes with half of the cores.

For processors with AMX: their products are so fast that what threads which share one operation lose to each other, at its
end and where oneDNN gives it to one of them alone, is a quarter of a step (measured: docs/decisions/2026-11-30-two-halves-on-amx.md).
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any

from tunegate.core.machine import cpu_flags
from tunegate.train.config import TrainConfig

Loss = Callable[[dict[str, Any]], Any]


def pay(config: TrainConfig) -> bool:
    """Whether halves are faster here: measured on AMX with two cores. Not where each half would unpack 4-bit weights for itself,
    nor where a whole model is trained: each would make a gradient of the whole vocabulary."""
    import torch

    fits = config.method == "lora" and config.dtype != "float32"
    return fits and "amx_bf16" in cpu_flags() and torch.get_num_threads() > 1


def split(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """A batch of rows side by side (`packing.collate`) as two such batches of about as many tokens; itself where one would have
    less than a quarter of them. Longest rows first, each to the half that has less."""
    import torch

    rows = sorted(pairwise(batch["cu_seq_lens_q"].tolist()), key=lambda row: row[0] - row[1])
    halves: list[list[tuple[int, int]]] = [[], []]
    for row in rows:
        min(halves, key=lambda half: sum(b - a for a, b in half)).append(row)
    sizes = [sum(b - a for a, b in half) for half in halves]
    if 4 * min(sizes) < sum(sizes):
        return [batch]
    found = []
    for half in halves:
        places = torch.cat([torch.arange(a, b) for a, b in half])
        bounds = torch.tensor([0, *(b - a for a, b in half)], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        by_position = {name: batch[name][:, places] for name in ("input_ids", "labels", "position_ids")}
        found.append({**by_position, "cu_seq_lens_q": bounds})
    return found


def loss(batch: dict[str, Any], parameters: Sequence[Any], loss_of: Loss) -> Any:
    """The sum of `loss_of` over the halves of a batch, a scalar whose gradients are in the parameters already: its own
    backward pass does nothing more. Of a batch that has no halves, `loss_of` it.

    loss_of: of a batch, a scalar with a graph, on the calling thread. Two numbers give one sum in either order, and what was in the
    parameters is added at the end: a run gives the same numbers each time.
    """

    def one(half: dict[str, Any]) -> Any:
        found = loss_of(half)
        found.backward()
        return found.detach()

    parts = split(batch)
    if len(parts) == 1:
        return loss_of(batch)
    before = [p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    total = sum(_pool().map(one, parts))
    for parameter, gradient in zip(parameters, before, strict=True):
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else gradient.add_(parameter.grad)
    return total.requires_grad_()


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    import torch

    cores = torch.get_num_threads()
    pool = ThreadPoolExecutor(2, "half", initializer=lambda: torch.set_num_threads(max(1, cores // 2)))
    both = threading.Barrier(2)
    list(pool.map(lambda _: both.wait(), range(2)))
    torch.set_num_threads(cores)  # torch keeps the last number set for threads to come
    return pool
