"""What the advisor reads: rows that call tools, rows of other scripts, logs of mixtures and of several GPUs, users' CSV files;
and what it writes for several GPUs."""

import json

import pytest
import yaml

from tunegate.advisor.data_profile import profile
from tunegate.advisor.errors import significant
from tunegate.advisor.estimates import TrainQuestion, train
from tunegate.advisor.facts import number, read_csv
from tunegate.advisor.gpus import find_gpu
from tunegate.advisor.measured import NotPredictedError, parse, trainable_params
from tunegate.advisor.models import find
from tunegate.advisor.predict import predict
from tunegate.core import manifest
from tunegate.core.errors import UserError
from tunegate.core.methods import ALL_LINEAR

LLAMA = ("--model", "Llama-3.1-8B", "--gpu", "A100-80GB")


def called(i, *, name="get_weather", as_text=True, **arguments):
    given = {"city": f"town {i}", "unit": "celsius", **arguments}
    function = {"name": name, "arguments": json.dumps(given) if as_text else given}
    return [{"id": f"call_{i}", "type": "function", "function": function}]


def rows(path, answers, prompt=lambda i: f"question {i}"):
    """answers: of each row, the last turn's keys."""
    with path.open("w", encoding="utf-8") as stream:
        for i, answer in enumerate(answers):
            turns = [{"role": "user", "content": prompt(i)}, {"role": "assistant", **answer}]
            stream.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")
    return path


def test_tool_calls_are_answers(tmp_path):
    calls = [called(i) for i in range(300)]
    found = profile(rows(tmp_path / "calls.jsonl", [{"content": None, "tool_calls": c} for c in calls]))
    same = profile(rows(tmp_path / "texts.jsonl", [{"content": json.dumps(c)} for c in calls]))
    assert found.output_tokens == pytest.approx(same.output_tokens)
    assert found.loss_tokens == pytest.approx(same.loss_tokens)
    assert found.p95_output_tokens > 20
    assert (found.labels, found.json_share) == (None, 1.0)
    assert found.strict_format


def test_other_calls_for_the_same_prompt_are_conflicts(tmp_path):
    different = [{"content": None, "tool_calls": called(i)} for i in range(300)]
    found = profile(rows(tmp_path / "d.jsonl", different, lambda i: "the same"))
    assert (found.duplicates, found.conflicts) == (0, 299)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"tool_calls": called(1)}, {"tool_calls": [{**called(1, as_text=False)[0], "id": "another"}]}),
        ({"content": '{"a": 1, "b": 2}'}, {"content": '{"b":2,"a":1}'}), ({"content": "yes"}, {"content": " yes\n"}),
        ({"content": '{"a": NaN}'}, {"content": '{"a":NaN}'}),
    ],
)  # fmt: skip
def test_equal_answers_are_duplicates_however_they_are_written(tmp_path, first, second):
    found = profile(rows(tmp_path / "d.jsonl", [first, second], lambda i: "the same"))
    assert (found.duplicates, found.conflicts, found.labels) == (1, 0, 1)


def test_calls_and_tools_in_the_prompt_are_counted(tmp_path):
    turns = [
        {"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": called(1)},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}, {"role": "assistant", "content": "It is sunny."},
    ]  # fmt: skip
    (tmp_path / "d.jsonl").write_text(json.dumps({"messages": turns}))
    with_call = profile(tmp_path / "d.jsonl").input_tokens
    turns[1] = {"role": "assistant", "content": "x"}
    (tmp_path / "d.jsonl").write_text(json.dumps({"messages": turns}))
    assert with_call > profile(tmp_path / "d.jsonl").input_tokens + 20


@pytest.mark.parametrize(
    "text", ["今天天气很好我们去公园散步吧", "今日はとても良い天気ですね", "오늘날씨가정말좋습니다"]
)
def test_cjk_text_has_more_tokens_a_character(tmp_path, text):
    answers = [{"content": text * 20}] * 4
    found = profile(rows(tmp_path / "d.jsonl", answers))
    assert found.output_tokens == pytest.approx(len(text) * 20 / 1.5)
    mixed = profile(rows(tmp_path / "m.jsonl", [{"content": "a" * 360 + text * 20}]))
    assert mixed.output_tokens == pytest.approx(100 + len(text) * 20 / 1.5)


def test_the_stated_error_is_wider_where_there_is_cjk_text(advise, tmp_path):
    def said(answer):
        path = rows(tmp_path / "d.jsonl", [{"content": f"{answer}{i}"} for i in range(60)])
        _, d, _ = advise("recommend", path, "--json")
        (entry,) = [a for a in d["assumptions"] if a["name"] == "token_counts"]
        return entry

    assert said("answer ")["value"] == "3.6 characters a token"
    assert "factor of two" not in said("answer ")["matters"]
    assert "1.5 of Chinese, Japanese and Korean" in said("答案是这个 ")["value"]
    assert "factor of two" in said("答案是这个 ")["matters"]


def bench(tmp_path, tpot):
    (tmp_path / "bench.json").write_text(json.dumps({"median_tpot_ms": tpot, "completed": 200}))
    return tmp_path / "bench.json"


def test_a_mixtures_log_is_held_against_its_active_parameters(advise, tmp_path):
    machine = ("--model", "Qwen3-30B-A3B", "--gpu", "A100-80GB", "--json")
    code, d, _ = advise("calibrate", bench(tmp_path, 6.845), *machine)
    assert (code, d["measured"]) == (0, 6.845)
    code, d, _ = advise("calibrate", bench(tmp_path, 0.5), *machine)
    assert (code, "hardware's limit" in d["error"]["message"]) == (2, True)


def test_a_mixtures_training_may_be_faster_than_a_dense_models_of_its_size(advise, tmp_path):
    shape = find("Qwen3-30B-A3B").architecture
    card = find_gpu("A100-80GB")
    between = 1.5 * card.tflops * 1e12 / (4 * shape.linear_params)
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"tokens_per_s": between}) + "\n")
    code, _, _ = advise("calibrate", tmp_path / "metrics.jsonl", "--model", "Qwen3-30B-A3B", "--gpu", "A100-80GB")
    assert code == 0


def run_of(tmp_path, speed, **facts):
    folder = tmp_path / f"run-{len(facts)}"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(json.dumps({"tokens_per_s": speed, "peak_memory_gb": 30.0}) + "\n")
    manifest.write(folder, "run", inputs=[], config={}, facts=facts)
    return folder


def one_gpus_speed():
    question = TrainQuestion(
        model=find("Llama-3.1-8B"), method="lora", gpu=find_gpu("A100-80GB"), batch=4, seq=512, targets=ALL_LINEAR
    )
    return train(question)["tokens_per_s"]["value"]


@pytest.mark.parametrize("inside", [False, True])
def test_a_log_of_several_gpus_is_held_against_as_many(advise, tmp_path, inside):
    one = one_gpus_speed()
    run = run_of(tmp_path, 4 * 0.9 * one, processes=4, method="lora")
    code, d, _ = advise("calibrate", run / "metrics.jsonl" if inside else run, *LLAMA, "--json")
    assert (code, d["gpus"]) == (0, 4)
    assert d["factor"] == pytest.approx(1.0, abs=0.01)


def test_the_number_of_gpus_of_a_bare_log_can_be_told(advise, tmp_path):
    one = one_gpus_speed()
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"tokens_per_s": 4 * 0.9 * one}) + "\n")
    told = ("calibrate", tmp_path / "metrics.jsonl", *LLAMA, "--gpus", 4)
    code, d, _ = advise(*told, "--json")
    assert (code, significant(d["predicted"] / one, 3)) == (0, 3.6)
    _, shared, _ = advise(*told, "--strategy", "fsdp2", "--json")
    assert shared["predicted"] < d["predicted"]  # weights are gathered in each pass
    assert advise("calibrate", bench(tmp_path, 5.0), *LLAMA, "--gpus", 2)[0] == 0
    assert advise(*told, "--strategy", "zero", "--json")[0] == 2


def test_processes_of_one_machine_share_its_cpu(advise, tmp_path):
    question = ("--model", "builtin:smollm2-135m", "--gpu", "cpu", "--json")
    one = advise("calibrate", run_of(tmp_path, 150.0), *question)[1]
    two = advise("calibrate", run_of(tmp_path, 150.0, processes=2), *question)[1]
    assert (one["gpus"], two["gpus"]) == (1, 1)
    assert one["predicted"] == pytest.approx(two["predicted"], rel=0.01)


@pytest.mark.parametrize(
    ("cell", "meant"),
    [("0,15", 0.15), ("0,150", 0.15), ("12,5", 12.5), ("1.234,56", 1234.56), ("1,234.5", 1234.5), ("2.5", 2.5), ("1,234,567", 1234567)],
)  # fmt: skip
@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_comma_is_the_decimal_sign_where_it_does_not_part_columns(tmp_path, cell, meant, mark):
    (tmp_path / "p.csv").write_text(f"name{mark}price\na, b{mark}{cell}\n")
    (row,) = read_csv(tmp_path / "p.csv", ("name", "price"))
    assert (row["name"], number(row["price"])) == ("a, b", meant)


def test_a_number_that_may_be_either_is_refused_with_its_line(tmp_path):
    (tmp_path / "p.csv").write_text("name;price\na;0,5\nb;1,234\n")
    with pytest.raises(UserError, match=r"'1,234' may be 1\.234 or 1234") as caught:
        read_csv(tmp_path / "p.csv", ("name", "price"))
    assert caught.value.where == f"{tmp_path / 'p.csv'}:3"
    (tmp_path / "p.csv").write_text('name,price\na,"0,5"\nb,"1,234"\n')
    assert [number(row["price"]) for row in read_csv(tmp_path / "p.csv", ("name", "price"))] == [0.5, 1234.0]
    assert number("12,34,5") is None


def test_prices_with_decimal_commas(advise, tmp_path):
    (tmp_path / "p.csv").write_text("provider;model;input_usd_mtok;output_usd_mtok\nme;mine;0,15;0,60\n")
    _, d, _ = advise("prices", "--file", tmp_path / "p.csv", "--json")
    text = json.dumps(next(offer for offer in d["prices"] if "mine" in json.dumps(offer)))
    assert "0.15" in text
    assert "0.6" in text


ROW = {
    "id": "mine-1", "kind": "train_mem", "model": "Llama-3.1-8B", "params_B": "8.03", "method": "lora", "quant": "bf16",
    "seq_len_or_in_len": "2048", "out_len": "", "batch_or_concurrency": "8", "grad_ckpt": "yes", "optimizer": "AdamW",
    "gpu": "H100-SXM", "n_gpus": "4", "value": "30", "unit": "GB", "source_repo_or_paper": "me", "notes": "",
}  # fmt: skip
SERVED = {"kind": "infer_tps", "method": "infer vllm", "out_len": "128"}
WALL = {"kind": "train_wall", "notes": "1000000 tokens/100 steps"}


@pytest.mark.parametrize(
    ("notes", "rank"),
    [("lr=2e-4 r=64", 64), ("r=64 lr=2e-4", 64), ("lora_r=32", 32), ("rank 16", 16), ("r64", 64), ("lr=2e-4", 8)],
)
def test_a_rank_is_no_part_of_another_word(notes, rank):
    case = parse({**ROW, "notes": notes})
    assert trainable_params(case) == case.arch.lora_params(rank, ALL_LINEAR)


@pytest.mark.parametrize(
    ("changes", "written", "meant"),
    [
        ({"kind": "train_tps"}, "tok/s/GPU", "tok/s/gpu"), ({"kind": "train_tps"}, "tok/s per GPU", "tok/s/gpu"),
        ({}, "GB Total", "GB(total)"), (SERVED, "Decode tok/s", "decode tok/s"), ({**SERVED, "kind": "infer_rps"}, "Req/s", "req/s"),
        ({"kind": "train_time"}, "Min/1000 micro-iters", "min/1000 micro-iters"),
    ],
)  # fmt: skip
def test_units_in_capitals_mean_the_same(changes, written, meant):
    row = {**ROW, **changes}
    upper, lower = (parse({**row, "unit": unit}) for unit in (written, meant))
    assert predict(upper) == pytest.approx(predict(lower))
    assert upper.value == lower.value
    assert predict(parse({**row, "unit": ""})) != pytest.approx(predict(lower))


@pytest.mark.parametrize(
    ("changes", "value", "unit", "like"),
    [
        (WALL, "5", "min", 300.0), (WALL, "1.5", "Hours", 5400.0), (WALL, "300", "s total train_time", 300.0),
        ({"kind": "train_time"}, "2", "min/step", 120.0), ({"kind": "tpot", "out_len": "128"}, "0.01", "S", 10.0),
        ({**SERVED}, "6000", "tok/min", 100.0), ({**SERVED, "kind": "infer_rps"}, "7200", "req/h", 2.0),
        ({**SERVED}, "100", "tok/s/host", 100.0), ({}, "0.03", "TB", 30.0),
    ],
)  # fmt: skip
def test_minutes_and_hours_are_converted(changes, value, unit, like):
    assert parse({**ROW, **changes, "value": value, "unit": unit}).value == pytest.approx(like)


@pytest.mark.parametrize(("changes", "unit"), [(WALL, "days"), ({}, "pages")])
def test_an_unknown_unit_of_time_or_memory_is_a_reason(changes, unit):
    with pytest.raises(NotPredictedError, match=f"unknown unit '{unit}'"):
        parse({**ROW, **changes, "unit": unit})


def test_a_servers_speed_may_be_given_per_gpu():
    row = {**ROW, **SERVED, "unit": "tok/s"}
    assert predict(parse({**row, "unit": "tok/s/GPU"})) == pytest.approx(predict(parse(row)) / 4)


def test_the_batch_on_several_gpus_is_the_recipes(advise, tmp_path):
    question = ("recommend", "--quality", "max", "--examples", 50000, "--budget-usd", 20000)
    out = tmp_path / "rec.yaml"
    code, d, _ = advise(*question, "--out", out, "--launch", "sky", "--json")
    gpus = d["training"]["gpus"]
    assert code == 0
    assert gpus > 1
    written = yaml.safe_load(out.read_text())
    train = written["train"]
    assert gpus * train["per_device_train_batch_size"] * train["gradient_accumulation_steps"] == 32
    run = yaml.safe_load((tmp_path / "sky.yaml").read_text())["run"]
    words = f"--launch accelerate --num-processes {gpus} --strategy fsdp2"
    assert words in run
    assert any(words in note for note in written["notes"])


def test_accumulation_on_more_gpus_than_steps_is_one(tmp_path):
    import dataclasses

    from tunegate.advisor.constraints import from_mapping
    from tunegate.advisor.recommend import recommend
    from tunegate.advisor.render import train_section

    answer = recommend(from_mapping({"examples": 5000, "needs": "format", "hardware": "L4"}))

    def steps(gpus):
        chosen = dataclasses.replace(answer.chosen, training=dataclasses.replace(answer.chosen.training, gpus=gpus))
        section, notes = train_section(dataclasses.replace(answer, chosen=chosen))
        return section["gradient_accumulation_steps"], len(notes)

    assert steps(1)[0] == answer.chosen.training.recipe.accumulation
    assert steps(64)[0] == 1
    assert steps(64)[1] == steps(1)[1] + 1


def test_what_no_gate_can_parse_is_not_called_json(tmp_path):
    found = profile(rows(tmp_path / "nan.jsonl", [{"content": f'{{"price": NaN, "n": {i}}}'} for i in range(20)]))
    assert (found.json_share, found.strict_format) == (0.0, False)
