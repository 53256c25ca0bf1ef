"""Four operations of a decoder layer with their gradients written out, so that nothing is copied or cast twice.

All work on (S, ...) tensors in the base's precision; weights of norms and of the base are frozen.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any


def lora_linear(
    x: Any,
    weight: Any,
    bias: Any,
    places: Sequence[tuple[int, int]],
    scales: Sequence[float],
    adapters: Sequence[Any],
) -> Any:
    """x W^T + bias, plus scale * x A^T B^T in the columns of each place (Hu et al. 2021, eq. 3).

    x (S, input); weight: W (output, input), frozen; adapters: A (r, input) and B (columns, r) of each place in turn, fp32,
    rounded to the precision of x where they are used.
    """
    return _lora_linear().apply(x, weight, bias, tuple(places), tuple(scales), *adapters)


def rms_norm(x: Any, weight: Any, epsilon: float) -> Any:
    """x / sqrt(mean(x^2) + epsilon) * weight (Zhang & Sennrich 2019, eq. 4), statistics in fp32. x (S, D)."""
    return _rms_norm().apply(x, weight, epsilon)


def rotated(heads: Any, cos: Any, sin: Any) -> Any:
    """Rotary positions (Su et al. 2021, eq. 34), halves paired as Llama pairs them. heads (S, n, E), cos, sin (S, 1, E)."""
    return _rotated().apply(heads, cos, sin)


def gated(wide: Any) -> Any:
    """silu(gate) * up of [gate, up] (Shazeer 2020, eq. 6). wide (S, 2 F) -> (S, F)."""
    return _gated().apply(wide)


@lru_cache(maxsize=1)
def _lora_linear() -> Any:
    """Made when torch is there."""
    import torch

    class LoraLinear(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, x: Any, weight: Any, bias: Any, places: Any, scales: Any, *adapters: Any) -> Any:
            out = torch.nn.functional.linear(x, weight, bias)
            lows = []
            for (start, end), scale, down, up in zip(places, scales, adapters[::2], adapters[1::2], strict=True):
                low = x @ down.to(x.dtype).T
                out[:, start:end].addmm_(low, up.to(x.dtype).T, alpha=scale)
                lows.append(low)
            ctx.weight, ctx.places, ctx.scales = weight, places, scales
            ctx.save_for_backward(x, *adapters, *lows)
            return out

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            x, *rest = ctx.saved_tensors
            count = len(ctx.places)
            adapters, lows = rest[: 2 * count], rest[2 * count :]
            grad_x = grad @ ctx.weight
            found: list[Any] = []
            for i, ((start, end), scale) in enumerate(zip(ctx.places, ctx.scales, strict=True)):
                down, up = adapters[2 * i], adapters[2 * i + 1]
                part = grad[:, start:end]
                grad_low = (part @ up.to(grad.dtype)).mul_(scale)
                found += [(grad_low.T @ x).to(down.dtype), (part.T @ lows[i]).to(up.dtype).mul_(scale)]
                grad_x.addmm_(grad_low, down.to(grad.dtype))
            return grad_x, None, None, None, None, *found

    return LoraLinear


@lru_cache(maxsize=1)
def _rms_norm() -> Any:
    """Made when torch is there."""
    import torch

    class RmsNorm(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, x: Any, weight: Any, epsilon: float) -> Any:
            wide = x.float()
            scale = (
                torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
            )
            ctx.save_for_backward(x, weight, scale)
            return (wide * scale).to(x.dtype).mul_(weight)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            x, weight, scale = ctx.saved_tensors
            normed = x.float() * scale
            inner = grad.float() * weight
            along = (inner * normed).mean(-1, keepdim=True)
            return inner.addcmul_(normed, along, value=-1.0).mul_(scale).to(x.dtype), None, None

    return RmsNorm


@lru_cache(maxsize=1)
def _rotated() -> Any:
    """Made when torch is there."""
    import torch

    class Rotated(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, heads: Any, cos: Any, sin: Any) -> Any:
            ctx.save_for_backward(cos, sin)
            return _turned(heads, cos, sin, 1.0)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            cos, sin = ctx.saved_tensors
            return _turned(grad, cos, sin, -1.0), None, None

    return Rotated


@lru_cache(maxsize=1)
def _gated() -> Any:
    """Made when torch is there."""
    import torch

    class Gated(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, wide: Any) -> Any:
            ctx.save_for_backward(wide)
            gate, up = wide.chunk(2, dim=-1)
            return torch.nn.functional.silu(gate).mul_(up)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            (wide,) = ctx.saved_tensors
            gate, up = wide.chunk(2, dim=-1)
            found = torch.empty_like(wide)
            grad_gate, grad_up = found.chunk(2, dim=-1)
            torch.mul(grad, torch.nn.functional.silu(gate), out=grad_up)
            grad_gate.copy_(torch.ops.aten.silu_backward(grad * up, gate))
            return found

    return Gated


def _turned(heads: Any, cos: Any, sin: Any, sign: float) -> Any:
    out = heads * cos
    half = heads.shape[-1] // 2
    # both halves of sin are the same numbers
    out[..., :half].addcmul_(heads[..., half:], sin[..., :half], value=-sign)
    out[..., half:].addcmul_(heads[..., :half], sin[..., half:], value=sign)
    return out
