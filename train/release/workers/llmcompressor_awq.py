"""AWQ W4A16, fp8 and W8A8 with llm-compressor. Runs in an environment of its own, so it imports nothing of ours.

Usage: python llmcompressor_awq.py JOB.json
The job: {"model", "out": folders, "calibration": JSONL of {"input_ids", "loss_mask"}, "scheme", "group_size", "symmetric",
"batch_size", "ignore", "grid", "search", "rounding", "seed", "software_bf16"}. Writes the quantized folder, and result.json beside the job. Progress goes to
standard error, one line a layer and pass: `layer I`.
"""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")


def batches(path: str, size: int, pad: int) -> list[dict]:
    """Calibration batches of at most `size` rows, right-padded, longest rows first; padding is masked everywhere."""
    import torch

    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    rows.sort(key=lambda row: -len(row["input_ids"]))
    made = []
    for start in range(0, len(rows), size):
        group = rows[start : start + size]
        width = len(group[0]["input_ids"])
        filled = {"input_ids": pad, "loss_mask": 0}
        batch = {
            key: torch.tensor([row[key] + [fill] * (width - len(row[key])) for row in group])
            for key, fill in filled.items()
        }
        batch["attention_mask"] = torch.tensor(
            [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in group]
        )
        made.append(batch)
    return made


def without_pinning() -> None:
    """llm-compressor 0.14.0.1 pins memory even where there is no accelerator, which torch refuses (its issue 2813)."""
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache

    if not torch.accelerator.is_available():
        IntermediatesCache.pin_memory = lambda self, *args, **kwargs: None


def products_in_float32() -> None:
    """Multiply bf16 in fp32, the result in bf16, as a processor with bf16 does it: in software it takes five times as long.
    The weights stay in bf16."""
    import torch

    def linear(inputs, weight, bias=None):
        wide = None if bias is None else bias.float()
        return plain_linear(inputs.float(), weight.float(), wide).to(inputs.dtype)

    def matmul(a, b):
        return plain_matmul(a.float(), b.float()).to(a.dtype)

    plain_linear, torch.nn.functional.linear = torch.nn.functional.linear, linear
    plain_matmul, torch.matmul = torch.matmul, matmul


DONE = {"scaled": 0, "rounded": 0}
SCALES = {}  # linear layer -> what AWQ multiplied its inputs' columns with, until its rounding has read it


@contextlib.contextmanager
def bf16_products():
    """fp32 products on the CPU with factors rounded to bf16 (exact for activations that are bf16), sums and result in fp32."""
    import torch

    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


def layer_done(layers: int, what: str) -> None:
    """Print `layer I`; each layer counts once for each pass, and the model's head not at all."""
    DONE[what] = min(DONE[what] + 1, layers)
    print(f"layer {sum(DONE.values())}", file=sys.stderr, flush=True)


def rounding(kind: str, layers: int, **scheme):
    """The modifier that rounds the scaled weights.

    GPTQ's second moments are those of llm-compressor, but layers that read one input share its product, and where AWQ scaled
    a layer in the same pass, H becomes diag(1/s) H diag(1/s): what the scaled inputs would have given.
    """
    import torch
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from pydantic import PrivateAttr

    class Reported(GPTQModifier):
        _last: tuple = PrivateAttr(default=(None, None))

        def calibrate_module(self, module, args, _output):
            if self._last[0] is not args[0]:
                tokens = args[0].detach().flatten(0, -2).float()
                with bf16_products():
                    self._last = (args[0], 2 * (tokens.T @ tokens))
            if module not in self._num_samples:
                self._hessians[module] = torch.zeros_like(self._last[1])
                self._num_samples[module] = torch.zeros((), device=self._last[1].device)
            self._hessians[module] += self._last[1]
            self._num_samples[module] += len(args[0])

        def on_sequential_epoch_end(self, *args, **kwargs):
            self._last = (None, None)
            for module, moment in self._hessians.items():
                if module in SCALES:
                    scales = SCALES.pop(module)
                    moment.div_(scales[:, None]).div_(scales[None])
            layer_done(layers, "rounded")
            return super().on_sequential_epoch_end(*args, **kwargs)

    return {"gptq": Reported, "nearest": QuantizationModifier}[kind](**scheme)


def round_block(
    weights, inverse, rounded, errors, losses, *, scale, zero_point, global_scale, g_idx, quant_args, i1
) -> None:
    """One block of GPTQ's columns, the same arithmetic as llm-compressor's own, which takes a column of a row-major block and
    updates all columns after it: here a column is contiguous, 32 columns are updated one by one and those after them in one
    product (the lazy batch of Frantar et al. 2022, section 3.3, once more inside the block).

    weights, rounded, errors, losses: (B, rows, width); inverse: (B, width, width).
    """
    import torch
    from llmcompressor.modifiers.gptq.helpers import column_scale_window

    batch, rows, width = weights.shape
    scales, zeros = column_scale_window(
        scale, zero_point, global_scale, g_idx, quant_args, num_rows=rows, i1=i1, i2=i1 + width
    )
    low, high = -(2 ** (quant_args.num_bits - 1)), 2 ** (quant_args.num_bits - 1) - 1
    for b in range(batch):
        w, s = weights[b].T.contiguous(), scales[b].expand(rows, width).T.contiguous()
        z = torch.zeros_like(w) if zeros is None else zeros[b].expand(rows, width).T.contiguous().float()
        h, q, e = inverse[b], torch.empty_like(w), torch.empty_like(w)
        for start in range(0, width, 32):
            end = min(start + 32, width)
            for i in range(start, end):
                level = (w[i] / s[i].float() + z[i]).clamp_(low, high).round_()
                q[i] = (level - z[i]).to(s.dtype) * s[i]
                e[i] = (w[i] - q[i]) / h[i, i]
                w[i:end].addr_(h[i, i:end], e[i], alpha=-1)
            w[end:].addmm_(h[start:end, end:].T, e[start:end], alpha=-1)
        rounded[b], errors[b], losses[b] = q.T, e.T, e.T.square()


def faster_rounding() -> None:
    """Let GPTQ use `round_block` for integers on the CPU."""
    from compressed_tensors.utils.impl_backend import ImplBackend

    def usable(weights, *_args, quant_args, **_):
        return weights.device.type == "cpu" and str(getattr(quant_args.type, "value", quant_args.type)) == "int"

    ImplBackend.register("gptq_block_update", usable, 1)(round_block)


def rounded_to(weights, args):
    """Weights (rows, inputs) rounded to 4 bits in groups as compressed-tensors does it: range by minimum and maximum."""
    groups = weights.view(len(weights), -1, args.group_size)
    low, high = groups.amin(-1, keepdim=True).clamp_(max=0), groups.amax(-1, keepdim=True).clamp_(min=0)
    scale = (low.abs().maximum(high) * 2 if args.symmetric else high - low).clamp_(min=1e-7) / 15
    zero = 0 if args.symmetric else (-8 - low / scale).round_()
    return groups.div(scale).add_(zero).round_().clamp_(-8, 7).sub_(zero).mul_(scale).view_as(weights)


def best_scales(weights: list, gram, x_mean, w_mean, grid: int, args):
    """AWQ's search (Lin et al. 2023, arXiv 2306.00978, equation 5; with the weights' mean, as llm-compressor's duo scaling):
    of `grid` exponents the scales (inputs,) of the least error at the layers' outputs.

    weights: of the layers that read one input, (rows, inputs) each, fp32; gram: of that input, (inputs, inputs).
    """
    import torch

    best, least = torch.ones_like(x_mean), float("inf")
    for step in range(grid):
        ratio = step / grid
        scales = (x_mean.pow(ratio) / (w_mean.pow(1 - ratio) + 1e-4)).clamp_(min=1e-4)
        scales = (scales / (scales.max() * scales.min()).sqrt()).nan_to_num_(nan=1.0, posinf=1.0)
        error = 0.0
        for exact in weights:
            gap = rounded_to(exact * scales, args).div_(scales).sub_(exact)
            with bf16_products():
                error += float((gap @ gram).mul_(gap).sum())
        if error < least:
            best, least = scales, error
    return best


def scale(mapping, scales) -> None:
    """Multiply the inputs' columns of a mapping's layers by `scales`, and divide what comes before by them."""
    from compressed_tensors.offload import update_offload_parameter

    for layer in mapping.balance_layers:
        update_offload_parameter(layer, "weight", layer.weight * scales)
        SCALES[layer] = SCALES.get(layer, 1) * scales
    for name in ("weight", "bias"):
        tensor = getattr(mapping.smooth_layer, name, None)
        if tensor is not None:
            changed = tensor.clone()  # of a matrix with more outputs than there are scales: the last ones
            changed[-len(scales) :] /= scales if tensor.ndim == 1 else scales[:, None]
            update_offload_parameter(mapping.smooth_layer, name, changed)


def modifier(search: str, grid: int, layers: int):
    """The AWQ modifier for a search.

    `module` is llm-compressor's own: each candidate scale runs the whole parent module on all calibration tokens.
    `gram` measures the same kind of error at the outputs of the linear layers themselves, from their input's second
    moment: with G = X^T X over the answer tokens, sum ||X (Wq - W)^T||^2 = trace((Wq - W) G (Wq - W)^T). One pass over
    the tokens gives G; a candidate then costs a product of the layer's own size, however many tokens there were.
    """
    import torch
    from llmcompressor.core.session_functions import active_session
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from pydantic import PrivateAttr

    class Reported(AWQModifier):
        def on_sequential_epoch_end(self, *args, **kwargs):
            layer_done(layers, "scaled")
            return super().on_sequential_epoch_end(*args, **kwargs)

    class Gram(Reported):
        _inputs: dict = PrivateAttr(default_factory=dict)

        def _setup_activation_cache_hooks(self):
            for mapping in self._resolved_mappings:
                layer = mapping.activation_hook_target or mapping.balance_layers[0]
                self.register_hook(layer, self._collector(mapping.smooth_name), "forward")

        def _collector(self, name):
            def collect(_module, args, _output):
                state = active_session().state
                tokens = args[0].detach()[state.loss_masks[state.current_batch_idx].bool()].float()
                found = self._inputs.setdefault(name, [0, 0, 0])
                with bf16_products():
                    found[0] += tokens.T @ tokens
                found[1] += tokens.abs().sum(0)
                found[2] += len(tokens)

            return collect

        @torch.no_grad()
        def _apply_smoothing(self, model):
            for mapping in self._resolved_mappings:
                gram, total, count = self._inputs.pop(mapping.smooth_name, (0, 0, 0))
                if not count:
                    continue
                balanced = mapping.balance_layers
                scales = best_scales(
                    [layer.weight.float() for layer in balanced], gram, total / count, self._compute_layer_means(balanced).float(),
                    grid, balanced[0].quantization_scheme.weights,
                )  # fmt: skip
                scale(mapping, scales)

    return {"gram": Gram, "module": Reported}[search](duo_scaling=True, n_grid=grid)


def scheme_of(job: dict):
    """What the linear layers become: awq (4-bit groups), fp8 or w8a8 (a scale a row of the weights and a token)."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    if job["scheme"] == "awq":
        weights = QuantizationArgs(
            num_bits=4, type="int", symmetric=job["symmetric"], strategy="group", group_size=job["group_size"]
        )
        return QuantizationScheme(targets=["Linear"], weights=weights)
    kind = {"fp8": "float", "w8a8": "int"}[job["scheme"]]
    weights = QuantizationArgs(num_bits=8, type=kind, symmetric=True, strategy="channel")
    inputs = QuantizationArgs(num_bits=8, type=kind, symmetric=True, strategy="token", dynamic=True)
    return QuantizationScheme(targets=["Linear"], weights=weights, input_activations=inputs)


def recipe(job: dict, scheme, layers: int) -> list:
    """The modifiers: the AWQ search for awq, then rounding (to the nearest for fp8, whose grid is not even)."""
    kind = "nearest" if job["scheme"] == "fp8" else job["rounding"]
    last = rounding(kind, layers, config_groups={"group_0": scheme}, ignore=job["ignore"])
    return [modifier(job["search"], job["grid"], layers), last] if job["scheme"] == "awq" else [last]


def pipeline(job: dict) -> str:
    """One pass over the layers for the search and GPTQ's rounding together; the other modifiers each have their own."""
    together = job["scheme"] == "awq" and job["search"] == "gram" and job["rounding"] == "gptq"
    return "sequential" if together else "independent"


def main(job_path: str) -> None:
    """Run one job."""
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    started = time.monotonic()
    import torch
    from loguru import logger

    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    from llmcompressor import oneshot
    from torch.utils.data import DataLoader
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(job["seed"])
    without_pinning()
    faster_rounding()
    if job["software_bf16"]:
        products_in_float32()
    tokenizer = AutoTokenizer.from_pretrained(job["model"], trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.bfloat16, trust_remote_code=False)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    data = batches(job["calibration"], job["batch_size"], pad)
    scheme = scheme_of(job)
    loaded, loaded_cpu = time.monotonic() - started, time.process_time()
    with contextlib.redirect_stdout(sys.stderr):
        oneshot(
            model=model,
            tokenizer=tokenizer,
            dataset=DataLoader(data, batch_size=None),
            num_calibration_samples=len(data),
            use_loss_mask=True,
            pipeline=pipeline(job),
            recipe=recipe(job, scheme, model.config.num_hidden_layers),
        )
        model.save_pretrained(job["out"], save_compressed=True)
        tokenizer.save_pretrained(job["out"])
    result = {
        "seconds": time.monotonic() - started,
        "loading_seconds": loaded,
        "cpu_seconds": time.process_time(),
        "loading_cpu_seconds": loaded_cpu,
        "rows_used": sum(len(batch["input_ids"]) for batch in data),
        "tokens_used": int(sum(batch["attention_mask"].sum() for batch in data)),
    }
    Path(job_path).with_name("result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
