"""The operations of a decoder layer with their gradients written out, so that nothing is copied or cast twice.

All work on (S, ...) tensors in the precision of the products.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol


class Weights(Protocol):
    """The weights of a product with room for the adapters' B beside them."""

    def filled(self, ups: Sequence[Any], places: Sequence[tuple[int, int]], *, again: bool = False) -> Any:
        """[W, B] (output, input + sum of r), B of each place in its rows and columns, zero elsewhere; valid until the
        next call. again: the same as in this product's last call (its backward pass)."""
        ...


def lora_linear(
    x: Any,
    weights: Weights,
    bias: Any,
    places: Sequence[tuple[int, int]],
    scales: Sequence[float],
    adapters: Sequence[Any],
) -> Any:
    """x W^T + bias, plus scale * x A^T B^T in the columns of each place (Hu et al. 2021, eq. 3), as one product
    [x, x A^T] [W, scale * B]^T.

    x (S, input); adapters: A (r, input) and B (columns, r) of each place in turn, fp32, rounded to the precision of x where
    they are used.
    """
    return _lora_linear().apply(x, weights, bias, tuple(places), tuple(scales), *adapters)


def trained_linear(x: Any, weights: Weights, parameters: Sequence[Any]) -> Any:
    """x W^T + bias of layers whose weights are trained. x (S, input); parameters: each layer's weight (output, input) in turn,
    then each one's bias (output), or none; fp32, rounded to the precision of x where they are used."""
    return _trained_linear().apply(x, weights, *parameters)


def rms_norm(x: Any, weight: Any, epsilon: float) -> Any:
    """x / sqrt(mean(x^2) + epsilon) * weight (Zhang & Sennrich 2019, eq. 4), statistics in fp32. x (S, D)."""
    return _rms_norm().apply(x, weight, epsilon)


def gated(wide: Any) -> Any:
    """silu(gate) * up of [gate, up] (Shazeer 2020, eq. 6). wide (S, 2 F) -> (S, F)."""
    return _gated().apply(wide)


@lru_cache(maxsize=1)
def _lora_linear() -> Any:
    """Made when torch is there."""
    import torch

    class LoraLinear(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, x: Any, weights: Any, bias: Any, places: Any, scales: Any, *adapters: Any) -> Any:
            ups = [up.detach() * scale for up, scale in zip(adapters[1::2], scales, strict=True)]
            wide, size = weights.filled(ups, places), x.shape[1]
            ctx.weights, ctx.places, ctx.scales = weights, places, scales
            if not ups:
                return torch.nn.functional.linear(x, wide, bias)
            down = torch.cat([a.detach().to(x.dtype) for a in adapters[::2]])
            both = x.new_empty(x.shape[0], size + down.shape[0])
            both[:, :size] = x
            both[:, size:] = x @ down.T
            ctx.save_for_backward(both, down, *ups)
            return torch.nn.functional.linear(both, wide, bias)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            saved = ctx.saved_tensors  # once: gradient checkpointing hands them out once
            if not saved:
                return grad @ ctx.weights.filled((), (), again=True), None, None, None, None
            both, down, *ups = saved
            grad_both, size = grad @ ctx.weights.filled(ups, ctx.places, again=True), down.shape[1]
            grad_low = grad_both[:, size:].contiguous()
            grad_down = grad_low.T @ both[:, :size]
            grad_up = both[:, size:].T @ grad  # of all places at once: only the blocks on their diagonal are of use
            found: list[Any] = []
            column = 0
            for (start, end), scale, up in zip(ctx.places, ctx.scales, ups, strict=True):
                part = slice(column, column + up.shape[1])
                found += [grad_down[part].to(up.dtype), grad_up[part, start:end].T.to(up.dtype).mul_(scale)]
                column += up.shape[1]
            return grad_both[:, :size].addmm_(grad_low, down), None, None, None, None, *found

    return LoraLinear


@lru_cache(maxsize=1)
def _trained_linear() -> Any:
    """Made when torch is there."""
    import torch

    class TrainedLinear(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, x: Any, weights: Any, *parameters: Any) -> Any:
            matrices, biases = [p for p in parameters if p.dim() == 2], [p for p in parameters if p.dim() == 1]
            ctx.weights, ctx.sizes, ctx.biases, ctx.kind = (
                weights,
                [m.shape[0] for m in matrices],
                len(biases),
                matrices[0].dtype,
            )
            ctx.save_for_backward(x)
            bias = torch.cat(biases).to(x.dtype) if biases else None
            return torch.nn.functional.linear(x, weights.filled((), ()), bias)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            (x,) = ctx.saved_tensors
            found = [part.to(ctx.kind) for part in (grad.T @ x).split(ctx.sizes)]
            if ctx.biases:
                found += grad.sum(0, dtype=ctx.kind).split(ctx.sizes)
            return grad @ ctx.weights.filled((), (), again=True), None, *found

    return TrainedLinear


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
            of_weight = (grad * normed).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
            return inner.addcmul_(normed, along, value=-1.0).mul_(scale).to(x.dtype), of_weight, None

    return RmsNorm


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
            torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
            return found

    return Gated
