"""Causal attention of rows side by side from the stacked projections to the mixed values, with its gradient written out:
nothing is sliced, transposed or added up by autograd.

Shapes: S positions of all rows, L of one; H query heads, K key-value heads, E head size; G = H / K.
"""

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from tunegate.train import cpu_attention


def attention(qkv: Any, cos: Any, sin: Any, bounds: Sequence[int], queries: int, keys: int, scale: float) -> Any:
    """qkv (S, (queries + 2 keys) * E), cos, sin (S, 1, E) -> (S, queries * E). bounds: first position of each row, and S.

    Queries and keys are rotated; each row attends to itself; the query heads of one key-value head are one matrix. Memory
    is quadratic in a row's length up to `cpu_attention.LONGEST_DENSE`, beyond which torch's kernel is taken.
    """
    return _attention().apply(qkv, cos, sin, tuple(bounds), queries, keys, scale)


@lru_cache(maxsize=1)
def _attention() -> Any:
    """Made when torch is there."""
    import torch

    class Attention(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, qkv: Any, cos: Any, sin: Any, bounds: Any, queries: int, keys: int, scale: float) -> Any:
            values = qkv.view(qkv.shape[0], queries + 2 * keys, -1)[:, queries + keys :]
            turned = rotated(qkv.view(qkv.shape[0], queries + 2 * keys, -1)[:, : queries + keys], cos, sin)
            out = qkv.new_empty(qkv.shape[0], queries, turned.shape[2])
            shares = []
            for a, b in itertools.pairwise(bounds):
                mixed, share = _row(turned[a:b, :queries], turned[a:b, queries:], values[a:b], scale)
                out[a:b] = mixed
                shares.append(share)
            ctx.bounds, ctx.queries, ctx.keys, ctx.scale = bounds, queries, keys, scale
            ctx.save_for_backward(qkv, cos, sin, turned, *shares)
            return out.view(qkv.shape[0], -1)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            qkv, cos, sin, turned, *shares = ctx.saved_tensors
            queries, both = ctx.queries, ctx.queries + ctx.keys
            heads = qkv.view(qkv.shape[0], both + ctx.keys, -1)
            grads = grad.view(qkv.shape[0], queries, -1)
            found = torch.empty_like(heads)
            for share, (a, b) in zip(shares, itertools.pairwise(ctx.bounds), strict=True):
                row = (turned[a:b, :queries], turned[a:b, queries:], heads[a:b, both:])
                parts = _row_backward(*row, ctx.scale, share, grads[a:b])
                found[a:b, :queries], found[a:b, queries:both], found[a:b, both:] = parts
            found[:, :both] = rotated(found[:, :both], cos, sin, sign=-1.0)
            return found.view(qkv.shape), None, None, None, None, None, None

    return Attention


def _row(query: Any, key: Any, value: Any, scale: float) -> tuple[Any, Any]:
    """(mixed values (L, H, E), what each position gives to each (K, G * L, L), empty for a long row) of query (L, H, E),
    key and value (L, K, E)."""
    import torch

    length, heads, _ = query.shape
    keys = key.shape[1]
    if length > cpu_attention.LONGEST_DENSE:
        return _long(query, key, value, scale), query.new_empty(0)
    future = cpu_attention.causal(length, heads // keys, query.dtype)
    scores = torch.baddbmm(future, _grouped(query, keys), key.permute(1, 2, 0), alpha=scale)
    share = torch.softmax(scores, dim=-1)
    return _ungrouped(torch.bmm(share, value.transpose(0, 1)), heads), share


def _row_backward(query: Any, key: Any, value: Any, scale: float, share: Any, grad: Any) -> tuple[Any, Any, Any]:
    """Gradients of query (L, H, E), key and value (L, K, E) from that of the mixed values (L, H, E)."""
    import torch

    heads, keys = query.shape[1], key.shape[1]
    if not share.numel():
        with torch.enable_grad():
            query, key, value = (part.detach().requires_grad_() for part in (query, key, value))
            mixed = _long(query, key, value, scale)
            found: tuple[Any, Any, Any] = torch.autograd.grad(mixed, (query, key, value), grad)
        return found
    grad = _grouped(grad, keys)
    grad_share = torch.bmm(grad, value.permute(1, 2, 0))
    scores = torch.ops.aten._softmax_backward_data(grad_share, share, -1, share.dtype).mul_(scale)
    return (
        _ungrouped(torch.bmm(scores, key.transpose(0, 1)), heads),
        torch.bmm(scores.transpose(1, 2), _grouped(query, keys)).transpose(0, 1),
        torch.bmm(share.transpose(1, 2), grad).transpose(0, 1),
    )


def _long(query: Any, key: Any, value: Any, scale: float) -> Any:
    """One row by torch's kernel, (L, H, E)."""
    import torch

    parts = (part.transpose(0, 1)[None] for part in (query, key, value))
    mixed = torch.nn.functional.scaled_dot_product_attention(*parts, is_causal=True, scale=scale, enable_gqa=True)
    return mixed[0].transpose(0, 1)


def _grouped(heads: Any, keys: int) -> Any:
    """(L, H, E) -> (K, G * L, E): the query heads that share a key-value head, one under the other."""
    length, count, size = heads.shape
    return heads.transpose(0, 1).reshape(keys, count // keys * length, size)


def _ungrouped(heads: Any, count: int) -> Any:
    """(K, G * L, E) -> (L, H, E)."""
    return heads.view(count, -1, heads.shape[2]).transpose(0, 1)


def rotated(heads: Any, cos: Any, sin: Any, sign: float = 1.0) -> Any:
    """Rotary positions (Su et al. 2021, eq. 34), halves paired as Llama pairs them. heads (S, n, E), cos, sin (S, 1, E);
    sign -1 turns back."""
    out = heads * cos
    half = heads.shape[-1] // 2
    # both halves of sin are the same numbers
    out[..., :half].addcmul_(heads[..., half:], sin[..., :half], value=-sign)
    out[..., half:].addcmul_(heads[..., :half], sin[..., half:], value=sign)
    return out
