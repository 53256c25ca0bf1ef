import csv
import json
import random

import pytest

from tunegate.advisor import backtest as testing
from tunegate.advisor.errors import class_errors, half_width
from tunegate.advisor.measured import NEEDED, NotPredictedError, parse
from tunegate.advisor.predict import predict
from tunegate.core.errors import UserError


@pytest.fixture(scope="module")
def result():
    return testing.backtest(testing.rows_of(None))


def test_no_class_is_worse_than_its_recorded_bound(result):
    assert result.worse_than_recorded() == []
    assert set(result.by_class()) == set(class_errors())


@pytest.mark.parametrize(
    ("kind", "goal"), [("train_mem", 0.09), ("tpot", 0.10), ("train_time", 0.10), ("infer_mem", 0.10)]
)
def test_accuracy_goals(result, kind, goal):
    assert testing.summary(result.by_class()[kind])["mape"] <= goal


def test_vllm_tpot(result):
    rows = [p for p in result.by_class()["tpot"] if "vllm" in p.case.row["method"]]
    assert len(rows) > 90
    assert testing.summary(rows)["mape"] <= 0.10


def test_three_rows_in_four_of_each_class_are_predicted(result):
    total = {}
    for row in testing.rows_of(None):
        total[row["kind"]] = total.get(row["kind"], 0) + 1
    for kind, pairs in result.by_class().items():
        assert len(pairs) >= 0.75 * total[kind], kind


def test_every_row_is_predicted_or_has_a_reason(result):
    ids = [p.case.id for p in result.pairs] + [name for name, _, _ in result.skipped]
    assert sorted(ids) == sorted(row["id"] for row in testing.rows_of(None))
    assert all(reason for _, reason, _ in result.skipped)


def test_interval_holds_on_rows_that_did_not_shape_it(result):
    """Width from a random half of the rows, coverage on the other half, ten times."""
    rng = random.Random(0)
    shares = []
    for _ in range(10):
        inside = total = 0
        for pairs in result.by_class().values():
            if len(pairs) < 20:
                continue
            order = rng.sample(range(len(pairs)), len(pairs))
            half = len(pairs) // 2
            width = half_width([pairs[i].residual for i in order[:half]])
            inside += sum(abs(pairs[i].residual) <= width for i in order[half:])
            total += len(pairs) - half
        shares.append(inside / total)
    assert all(0.80 <= share <= 0.97 for share in shares), shares


def test_a_prediction_does_not_see_the_value():
    """Changing what was measured, or figures in the notes, changes no prediction."""
    for row in testing.rows_of(None)[::7]:
        try:
            before = predict(parse(row))
        except NotPredictedError:
            continue
        assert predict(parse({**row, "value": "123.4"})) == before
        cleaned = {
            **row,
            "id": "other",
            "notes": row["notes"].replace("latency 0.", "latency 9.").replace("req/s", "x/s"),
        }
        assert predict(parse(cleaned)) == before


def row(**changes):
    values = dict.fromkeys(NEEDED, "") | {
        "id": "mine-1", "kind": "train_mem", "model": "Llama-3.1-8B", "params_B": "8.03", "method": "lora", "quant": "bf16",
        "seq_len_or_in_len": "1024", "batch_or_concurrency": "1", "grad_ckpt": "yes", "gpu": "H100", "n_gpus": "1", "value": "22", "unit": "GB",
        "notes": "",
    }  # fmt: skip
    return values | changes


@pytest.mark.parametrize(
    "changes",
    [
        {"value": "OOM"}, {"value": "-3"}, {"value": "1e12"}, {"value": "nan"}, {"value": "inf"}, {"gpu": "Abacus"}, {"kind": "taste"},
        {"model": "Unheard", "params_B": ""}, {"quant": "int3-secret"}, {"batch_or_concurrency": "many"}, {"grad_ckpt": ""}, {"method": "magic"},
        {"seq_len_or_in_len": "-5"}, {"n_gpus": "0"}, {"n_gpus": "x"}, {"n_gpus": "1.5"}, {"params_B": "1e30"}, {"params_B": "-3"},
        {"kind": "train_wall", "notes": "5 tokens/0 steps"}, {"seq_len_or_in_len": "inf"}, {"batch_or_concurrency": "0"}, {"value": "1e-320"},
    ],
)  # fmt: skip
def test_what_cannot_be_predicted_is_skipped_with_a_reason(changes):
    result = testing.backtest([row(**changes)])
    assert not result.pairs
    assert result.skipped[0][0] == "mine-1"
    assert result.skipped[0][1]


def test_unknown_model_of_known_size_is_predicted():
    pair = testing.backtest([row(model="Nobody/Unheard-8B")]).pairs[0]
    known = testing.backtest([row()]).pairs[0]
    assert pair.predicted == pytest.approx(known.predicted, rel=0.15)


def test_users_csv(tmp_path):
    path = tmp_path / "mine.csv"
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(row()))
        writer.writeheader()
        writer.writerows(row(id=f"m{i}", value="400") for i in range(6))
    result = testing.backtest(testing.rows_of(path))
    assert result.worse_than_recorded()
    json.dumps(testing.as_json(result), allow_nan=False)
    path.write_text("id,kind\n1,tpot\n")
    with pytest.raises(UserError, match="no column"):
        testing.rows_of(path)
    with pytest.raises(UserError, match="no such file"):
        testing.rows_of(tmp_path / "none.csv")


def test_leave_one_source_out_covers_most_sources(result):
    table = testing.coverage_of_left_out_sources(result)
    rows = sum(n for n, _, _, _ in table.values())
    inside = sum(n * share for n, _, _, share in table.values()) / rows
    assert 0.80 <= inside <= 0.97


def test_a_batch_of_one_written_as_a_spreadsheet_does_is_a_batch_of_one():
    unstated = {
        "kind": "tpot",
        "method": "",
        "seq_len_or_in_len": "",
        "unit": "ms",
        "value": "14",
        "grad_ckpt": "",
        "notes": "",
    }
    one, same = (testing.backtest([row(**unstated, batch_or_concurrency=text)]).pairs[0] for text in ("1", "1.0"))
    assert one.predicted == same.predicted
