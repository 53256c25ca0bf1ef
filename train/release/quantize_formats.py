"""What a quantized release's tensors stand for: compressed-tensors (pack-quantized, int-quantized, float-quantized) and
AutoAWQ's GEMM layout, read back to floats without the library that wrote them."""

from pathlib import Path
from typing import Any

from tunegate.core.errors import UserError
from tunegate.core.files import read_json
from tunegate.train.release.merge_adapter import EMBEDDING, HEAD
from tunegate.train.release.prove_model import Source
from tunegate.train.release.tensor_files import TensorFiles

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # nibble of an int32 that holds each of eight neighbouring outputs
ACTIVATIONS = {"int8": 127.0, "fp8": 448.0}  # largest value of the type


def dequantized(folder: Path) -> Source:
    """Tensors by the names that the model's class has. Raises UserError for a format that is not known."""
    files = TensorFiles(folder)
    method = read_json(folder / "config.json")["quantization_config"]["quant_method"]
    if method not in ("awq", "compressed-tensors"):
        raise UserError(f"weights quantized by {method} are not read", where=str(folder))

    def read(name: str) -> Any:
        name = EMBEDDING if name == HEAD and name not in files.specs else name
        stem = name.removesuffix(".weight")
        if f"{stem}.qweight" in files.specs:
            return _gemm(files, stem)
        if f"{stem}.weight_packed" in files.specs:
            return _packed(files, stem)
        tensor = files.read(name)
        scale = f"{stem}.weight_scale"
        return tensor.float() * files.read(scale).float() if scale in files.specs else tensor

    return read


def _gemm(files: TensorFiles, stem: str) -> Any:
    """AutoAWQ: qweight (in, out / 8), qzeros (groups, out / 8), scales (groups, out) -> (out, in)."""
    values, zeros = (_nibbles(files.read(f"{stem}.{name}"))[..., list(AWQ_ORDER)] for name in ("qweight", "qzeros"))
    scales = files.read(f"{stem}.scales").float()
    inputs, groups = values.shape[0], scales.shape[0]
    q = values.reshape(groups, inputs // groups, -1).float() - zeros.reshape(groups, 1, -1).float()
    return (q * scales[:, None]).reshape(inputs, -1).T.contiguous()


def _packed(files: TensorFiles, stem: str) -> Any:
    """compressed-tensors: weight_packed (out, in / 8), weight_scale (out, groups), weight_zero_point (out / 8, groups)."""
    packed, scale = files.read(f"{stem}.weight_packed"), files.read(f"{stem}.weight_scale").float()
    values = _nibbles(packed).reshape(packed.shape[0], -1).float() - 8
    outputs, groups = scale.shape
    q = values.reshape(outputs, groups, -1)
    zero = f"{stem}.weight_zero_point"
    if zero in files.specs:
        points = _nibbles(files.read(zero).T.contiguous()).reshape(groups, -1).T[:outputs].float() - 8
        q = q - points[:, :, None]
    return (q * scale[:, :, None]).reshape(outputs, -1)


def _nibbles(words: Any) -> Any:
    """int32 (..., n) -> unsigned nibbles (..., n, 8), lowest first."""
    import torch

    return (words[..., None] >> torch.arange(0, 32, 4, dtype=torch.int32)) & 15


def round_activations(model: Any, kind: str) -> None:
    """Round the inputs of the linear layers (the output matrix apart) as the engine does: one scale a token.

    kind: `int8` or `fp8` (e4m3).
    """
    import torch

    head = model.get_output_embeddings()
    largest = ACTIVATIONS[kind]

    def rounded(_: Any, args: Any) -> Any:
        x = args[0]
        scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / largest
        q = (x / scale).round() if kind == "int8" else (x / scale).to(torch.float8_e4m3fn).to(x.dtype)
        return (q * scale, *args[1:])

    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            module.register_forward_pre_hook(rounded)
