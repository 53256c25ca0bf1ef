"""What users script against: commands, options, exit codes and `--json` keys. Add to it; rename, retype, drop nothing."""

import json

import pytest
import typer

from tunegate.advisor.cli import app as advise_app
from tunegate.core.commands import run
from tunegate.core.ft import FtGroup
from tunegate.core.ft import app as ft_app

OPTIONS = {
    "ft data prepare": "--out",
    "ft data inspect": "",
    "ft data check": "",
    "ft data split": "--out",
    "ft data clean": "--out",
    "ft data dedup": "",
    "ft data convert": "--to --out",
    "ft data leakage": "--train --eval",
    "ft train": "--out --config --from --method --model --preset --resume --dry-run --max-steps --save-steps "
    "--per-device-train-batch-size --seed",
    "ft merge": "--out",
    "ft quantize": "--out --backend",
    "ft verify": "",
    "ft export gguf": "--type --out",
    "ft push": "--report --gate --key",
    "ft ladder": "--task",
    "ft release list": "--registry",
    "ft release show": "--registry",
    "ft release promote": "--gate --as --registry",
    "ft release rollback": "--to --registry",
    "ft serve run": "--port --detach --api-key-file --restart --adapter --start --drain --dry-run",
    "ft serve status": "",
    "ft serve logs": "",
    "ft serve stop": "",
    "ft serve top": "",
    "ft serve deploy": "--to --out",
    "ft loadtest": "--out --data --prompts --concurrency --rate --requests --duration",
    "ft eval run": "--task --out --against --policy --save-as --api-key-file",
    "ft eval init": "",
    "ft eval power": "",
    "ft eval noise": "",
    "ft gate": "--against --policy --out",
    "ft report show": "--html --junit --markdown --to --out",
    "ft report serve": "--port",
    "ft init": "",
    "ft bakeoff": "--task --train --docs --arms --budget-minutes",
    "ft doctor": "",
    "ftadvise recommend": "--constraints --calls-per-day --input-tokens --output-tokens --p95-ms --privacy --facts --needs "
    "--examples --domain --budget-usd --hardware --ops --out --why",
    "ftadvise estimate train": "--model --method --gpu --gpus --batch --seq --rank --targets --examples --epochs "
    "--checkpointing --no-checkpointing",
    "ftadvise estimate serve": "--model --gpu --gpus --quant --input-tokens --output-tokens --concurrency",
    "ftadvise breakeven": "",
    "ftadvise gpus": "",
    "ftadvise prices": "",
    "ftadvise rules": "",
    "ftadvise backtest": "",
    "ftadvise calibrate": "",
}


def find(path):
    """The click command of `ft data prepare` and the like; None where there is none."""
    prog, *names = path.split()
    command = typer.main.get_command(ft_app if prog == "ft" else advise_app)
    for name in names:
        if not hasattr(command, "list_commands"):
            return None
        if hasattr(command, "entries"):
            if name not in command.entries:
                return None
            command = command.entries[name].load()
        else:
            command = command.commands.get(name)
        if command is None:
            return None
    return command


def call(capsys, path, *argv):
    """(exit code, standard output, standard error) of a command line."""
    prog, *names = path.split()
    code = run(ft_app if prog == "ft" else advise_app, prog=prog, argv=[*names, *(str(a) for a in argv)])
    found = capsys.readouterr()
    return code, found.out, found.err


def as_json(capsys, path, *argv):
    """(exit code, the one object on standard output)."""
    code, out, _ = call(capsys, path, *argv, "--json")
    return code, json.loads(out)


def has(mapping, names):
    missing = set(names.split()) - set(mapping)
    assert not missing, f"keys missing: {missing}"


def is_estimate(value):
    has(value, "value low high source n")
    assert value["source"] in ("measured", "published", "computed")
    assert value["low"] <= value["value"] <= value["high"]


@pytest.mark.parametrize("path", OPTIONS)
def test_options_are_there(path):
    command = find(path)
    assert command is not None, f"{path} is gone"
    there = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    assert set(OPTIONS[path].split()) | {"--json"} <= there


def test_every_top_level_command_is_in_the_contract():
    named = {path.split()[1] for path in OPTIONS if path.startswith("ft ")}
    assert set(FtGroup.entries) <= named


@pytest.mark.parametrize("argv", [["nothing"], ["verify"], ["verify", "--nothing", "x"], ["merge", "x", "y", "z"]])
def test_wrong_use_is_exit_2_and_one_line_or_one_object(capsys, argv):
    code, out, err = call(capsys, "ft", *argv)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    code, document = as_json(capsys, "ft", *argv)
    assert code == 2
    assert list(document) == ["error"]
    assert list(document["error"]) == ["kind", "message", "where", "hint"]
    assert document["error"]["kind"] == "usage"


def test_no_command_shows_the_help_and_is_wrong_use(capsys):
    code, out, err = call(capsys, "ft")
    assert code == 2
    assert "Usage: ft" in out
    assert err.startswith("error: a command is missing")


@pytest.mark.parametrize("path", ["ft", "ft serve", "ft release", "ft data", "ftadvise", "ftadvise estimate"])
def test_where_a_command_is_missing_the_hint_names_the_help_that_lists_them(capsys, path):
    code, _, err = call(capsys, path)
    assert (code, err) == (2, f"error: a command is missing (see {path} --help)\n")


@pytest.mark.parametrize(
    "path",
    ["ft verify", "ft merge --out o", "ft quantize --out o", "ft train --out o", "ft gate", "ft report", "ft data check",
     "ft data prepare --out o", "ft eval --task t --out o", "ft serve", "ftadvise calibrate", "ftadvise backtest",
     "ftadvise recommend"],
)  # fmt: skip
def test_a_missing_input_is_exit_2_and_bad_input(capsys, tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNEGATE_CACHE", str(tmp_path / "cache"))
    extra = ["--gpu", "A100", "--model", "llama-3.1-8b"] if path.endswith("calibrate") else []
    code, document = as_json(capsys, path, tmp_path / "missing.x", *extra)
    assert code == 2
    assert document["error"]["kind"] == "bad_input", document
    assert not (tmp_path / "o").exists()


def test_verify_keys(capsys, tiny_dataset):
    code, document = as_json(capsys, "ft verify", tiny_dataset.path)
    assert code == 0
    has(document, "ok problems lineage")
    assert (document["ok"], document["problems"], document["lineage"]) == (True, [], [])


def test_doctor_keys(capsys):
    _, document = as_json(capsys, "ft doctor")
    has(document, "ok checks")
    for check in document["checks"]:
        has(check, "name ok found fix")


def test_data_prepare_adds_up_and_writes_the_files(capsys, tmp_path, makers):
    rows = makers.rows(150)
    makers.jsonl(tmp_path / "in.jsonl", [*rows, {**rows[0], "id": "copy"}])
    code, document = as_json(
        capsys, "ft data prepare", tmp_path / "in.jsonl", "--out", tmp_path / "d", "--min-eval", "10"
    )
    assert code == 0
    has(document, "rows_in train eval rejected")
    assert document["rows_in"] == 151 == document["train"] + document["eval"] + sum(document["rejected"].values())
    files = {p.name for p in (tmp_path / "d").iterdir()}
    assert {"train.jsonl", "eval.jsonl", "rejected.jsonl", "profile.json", "manifest.json"} <= files
    for line in (tmp_path / "d" / "rejected.jsonl").read_text().splitlines():
        has(json.loads(line), "reason")
    train, held_out = tmp_path / "d" / "train.jsonl", tmp_path / "d" / "eval.jsonl"
    code, leakage = as_json(capsys, "ft data leakage", "--train", train, "--eval", held_out)
    has(leakage, "exact normalized ngram near items")
    assert leakage["exact"] == 0
    assert code == 0
    code, dedup = as_json(capsys, "ft data dedup", tmp_path / "in.jsonl", "--out", tmp_path / "dedup.jsonl")
    has(dedup, "exact near conflicts contrast_pairs kept")
    assert (code, dedup["exact"]) == (0, 1)


TASK = """name: t
data: eval.jsonl
validators:
  - {name: json_valid, kind: json}
  - {name: exact, kind: json_equal}
primary: exact
"""


@pytest.fixture
def recorded(tmp_path, monkeypatch, makers):
    """A task of 200 items and recorded outputs: `good` all right, `bad` half of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNEGATE_HOME", str(tmp_path / "home"))
    rows = makers.rows(200)
    makers.jsonl(tmp_path / "eval.jsonl", rows)
    (tmp_path / "task.yaml").write_text(TASK)
    for name, right in (("good", 200), ("bad", 100)):
        outputs = [
            {"id": row["id"], "output": row["messages"][1]["content"] if i < right else "no"}
            for i, row in enumerate(rows)
        ]
        makers.jsonl(tmp_path / f"{name}.jsonl", outputs)
    return tmp_path


def test_eval_and_gate_on_recorded_outputs(capsys, recorded):
    code, document = as_json(capsys, "ft eval", "good.jsonl", "--task", "task.yaml", "--out", "base", "--save-as", "b")
    assert code == 0
    has(document, "n metrics outcomes report")
    assert document["n"] == 200
    has(document["metrics"]["exact"], "value low high")
    files = {p.name for p in (recorded / "base").iterdir()}
    assert {"results.jsonl", "report.json", "report.html", "junit.xml", "summary.md", "manifest.json"} <= files
    for line in (recorded / "base" / "results.jsonl").read_text().splitlines():
        row = json.loads(line)
        has(row, "id output outcome scores reason latency_ms ttft_ms prompt_tokens completion_tokens")
        assert row["outcome"] == "pass"
    code, bad = as_json(capsys, "ft eval", "bad.jsonl", "--task", "task.yaml", "--out", "bad", "--against", "b")
    assert code == 1
    has(bad, "comparison decision")
    has(bad["comparison"]["exact"], "difference low high fixed broken mcnemar_p non_inferior_p")
    assert (bad["decision"], bad["comparison"]["exact"]["broken"]) == ("FAIL", 100)
    code, gate = as_json(capsys, "ft gate", "bad", "--against", "base", "--out", "decision")
    assert code == 1
    has(gate, "decision conditions")
    for condition in gate["conditions"]:
        has(condition, "metric rule decision value low high need_n reason")
    assert (recorded / "decision" / "decision.json").is_file()
    assert call(capsys, "ft gate", "base", "--against", "b", "--out", "d2")[0] == 0
    (recorded / "gate.yaml").write_text("conditions:\n  - {metric: exact, rule: at_least, value: 0.5}\n")
    code, gate = as_json(capsys, "ft gate", "bad", "--policy", "gate.yaml", "--out", "d3")
    assert (code, gate["decision"]) == (3, "INCONCLUSIVE")


def test_recommend_keys(capsys):
    code, found = as_json(capsys, "ftadvise recommend", "--needs", "format", "--examples", 5000)
    assert code == 0
    has(found, "recommendation pareto rejected rules assumptions break_even")
    has(found["recommendation"], "method model quantization gpu gpus monthly_usd train_usd p95_ms")
    assert all({"id", "says", "fired", "grade", "source"} <= set(rule) for rule in found["rules"])
    assert all({"option", "constraint", "change"} <= set(item) for item in found["rejected"])
    assert all({"name", "value", "matters"} <= set(item) for item in found["assumptions"])
    has(found["break_even"], "calls_per_day against")


def test_estimate_keys(capsys):
    model = ("--model", "meta-llama/Llama-3.1-8B", "--gpu", "A100-80GB")
    code, train = as_json(capsys, "ftadvise estimate train", *model, "--method", "lora", "--batch", 4, "--seq", 512)
    assert code == 0
    has(train, "memory_gb fits tokens_per_s hours usd trainable_params total_params")
    for key in ("memory_gb", "tokens_per_s"):
        is_estimate(train[key])
    code, serve = as_json(
        capsys, "ftadvise estimate serve", *model, "--input-tokens", 500, "--output-tokens", 100, "--concurrency", 8
    )
    assert code == 0
    has(serve, "memory_gb ttft_ms tpot_ms tokens_per_s max_concurrency usd_per_1k_calls")
    for key in ("memory_gb", "ttft_ms", "tpot_ms"):
        is_estimate(serve[key])
