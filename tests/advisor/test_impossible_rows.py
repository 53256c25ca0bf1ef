"""Rows of a back-test that nobody measured, that do not say enough, and full tuning that keeps fp32 weights."""

import pytest

from tunegate.advisor import backtest as testing
from tunegate.advisor.training_memory import STATE_BYTES

SERVED = {
    "id": "s", "kind": "tpot", "model": "Llama-3.1-8B", "params_B": "8.03", "method": "infer", "quant": "bf16",
    "seq_len_or_in_len": "512", "out_len": "128", "batch_or_concurrency": "1", "gpu": "L4", "n_gpus": "1", "unit": "ms",
}  # fmt: skip
TRAINED = {
    "id": "t", "kind": "train_mem", "model": "Llama-3.2-3B", "params_B": "3.21", "method": "full", "quant": "bf16",
    "seq_len_or_in_len": "512", "batch_or_concurrency": "1", "grad_ckpt": "yes", "optimizer": "adamw", "gpu": "A100-80GB", "n_gpus": "1",
    "value": "55", "unit": "GB",
}  # fmt: skip
LARGE = {"model": "Llama-3.3-70B", "params_B": "70.6", "quant": "awq", "gpu": "RTX4090"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            SERVED | LARGE | {"kind": "infer_mem", "value": "17", "unit": "GB"},
            "36.7 GB of weights do not fit the 24 GB",
        ),
        (SERVED | LARGE | {"kind": "infer_tps", "value": "40", "unit": "tok/s"}, "do not fit"),
        (SERVED | {"kind": "infer_mem", "value": "4", "unit": "GB"}, "less than the 16.06 GB of weights"),
        (SERVED | {"value": "2"}, "beyond the hardware's limit of 46.53"),
        (SERVED | {"kind": "infer_tps", "value": "400", "unit": "tok/s"}, "beyond the hardware's limit"),
        (SERVED | {"kind": "ttft", "seq_len_or_in_len": "8000", "value": "60"}, "beyond the hardware's limit"),
        (SERVED | {"kind": "prefill_tps", "value": "1e6", "unit": "tok/s"}, "beyond the hardware's limit"),
        (TRAINED | {"value": "4"}, "less than the"),
        (TRAINED | {"kind": "train_tps", "value": "1e6", "unit": "tok/s"}, "beyond the hardware's limit"),
        (TRAINED | {"kind": "train_time", "value": "1e-4", "unit": "s"}, "beyond the hardware's limit"),
    ],
)
def test_what_no_machine_does_is_skipped_with_a_reason(row, reason):
    result = testing.backtest([row])
    assert not result.pairs
    assert reason in result.skipped[0][1]


@pytest.mark.parametrize(
    "row",
    [
        SERVED | {"value": "30", "notes": "speculative decoding, 3 tokens a step"},
        SERVED | {"value": "48"},
        SERVED | {"n_gpus": "4", "value": "15"},
        SERVED | {"kind": "infer_tps", "batch_or_concurrency": "64", "value": "700", "unit": "tok/s"},
        SERVED | {"model": "Qwen3-30B-A3B", "params_B": "30.5", "gpu": "H100", "value": "3"},
        SERVED | LARGE | {"kind": "infer_mem", "gpu": "A100-80GB", "value": "38", "unit": "GB"},
        SERVED | {"kind": "infer_mem", "value": "15.1", "unit": "GB"},  # GiB called GB
        TRAINED | {"gpu": "A100", "value": "60"},  # of 40 or 80 GB: not said
    ],
)
def test_what_a_machine_may_do_is_predicted(row):
    assert testing.backtest([row]).skipped == ()


def test_no_row_of_the_collection_is_taken_for_impossible():
    reasons = [reason for _, reason, _ in testing.backtest(testing.rows_of(None)).skipped]
    assert not [r for r in reasons if "limit" in r or "fit" in r or "less than" in r]


def test_a_throughput_without_a_batch_is_skipped_unless_the_loop_was_open():
    row = SERVED | {"kind": "infer_tps", "batch_or_concurrency": "", "value": "300", "unit": "tok/s"}
    assert "batch is not stated" in testing.backtest([row]).skipped[0][1]
    assert not testing.backtest([row | {"notes": "ShareGPT 10000 prompts"}]).skipped
    assert not testing.backtest([row | {"batch_or_concurrency": "max (all queued)"}]).skipped


def test_a_missing_count_of_gpus_is_said_where_one_does_not_do():
    row = SERVED | {"model": "Llama-3.3-70B", "params_B": "70.6", "gpu": "H100", "n_gpus": "", "value": "20"}
    assert "n_gpus is not stated" in testing.backtest([row]).skipped[0][1]
    assert (
        "n_gpus is not stated" in testing.backtest([row | {"quant": "fp8", "seq_len_or_in_len": "30000"}]).skipped[0][1]
    )
    assert not testing.backtest([row | {"n_gpus": "4"}]).skipped


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "pure_bf16"), ({"quant": "fp32"}, "amp"), ({"quant": "bf16 amp"}, "amp"), ({"quant": "amp_bf16"}, "amp"),
        ({"optimizer": "adamw, fp32 master weights"}, "amp"), ({"notes": "mixed precision (autocast)"}, "amp"),
        ({"notes": "pure bf16, no mixed precision"}, "pure_bf16"), ({"optimizer": "AdamW8bit"}, "adamw_8bit"),
    ],
)  # fmt: skip
def test_full_tuning_with_fp32_weights_takes_16_bytes_a_parameter(changes, state):
    """It was predicted at the 8 bytes of pure bf16: half of what `estimate train` says."""
    pair = testing.backtest([TRAINED | changes]).pairs[0]
    assert pair.predicted == pytest.approx(STATE_BYTES[state] * pair.case.arch.params / 1e9, rel=0.15)


@pytest.mark.parametrize("changes", [{"quant": "fp32/bf16 unspecified"}, {"quant": "fp32", "optimizer": "AdamW8bit"}])
def test_full_tuning_of_unclear_precision_is_skipped(changes):
    assert testing.backtest([TRAINED | changes]).skipped
