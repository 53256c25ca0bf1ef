import json
import re

import pytest


def test_what_was_not_checked_says_so(advise):
    _, d, _ = advise("gpus", "--json")
    known = {g["name"]: g["verified"] for g in d["gpus"]}
    assert known["GH200"] is False
    assert known["A100-PCIe-80GB"] is True
    _, d, _ = advise("estimate", "train", "--model", "Yi-34B", "--method", "qlora", "--gpu", "GH200", "--json")
    assert [note.split(":")[0] for note in d["notes"]] == ["figures of GH200", "shape of Yi-34B"]
    assert all("not verified" in note for note in d["notes"])
    _, d, _ = advise("estimate", "train", "--model", "Llama-3.1-8B", "--gpu", "L4", "--json")
    assert d["notes"] == []
    _, d, _ = advise("recommend", "--hardware", "GH200", "--examples", 5000, "--needs", "format", "--json")
    assert any("GH200" in text for a in d["assumptions"] if a["name"] == "unchecked" for text in a["value"])


def test_full_tuning_says_what_its_state_is(advise):
    question = ("estimate", "train", "--model", "Llama-3.2-1B", "--method", "full", "--gpu", "L4", "--json")
    assert any("16 bytes" in note and "ft train" in note for note in advise(*question)[1]["notes"])
    assert any("6 bytes" in note for note in advise(*question, "--state", "adamw_8bit")[1]["notes"])


def metrics(folder, *lines):
    steps = [
        {"step": i, "epoch": i / 50, "loss": 2.0 - i / 60, "tokens_per_s": 140.0 + i % 7, "peak_memory_gb": 2.9}
        for i in range(1, 51)
    ]
    steps.insert(25, {"step": 25, "epoch": 0.5, "eval_loss": 1.7})
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*steps, *lines]))
    return folder


def test_calibrate_reads_a_run_and_recommend_uses_it(advise, tmp_path):
    from tunegate.core import manifest

    folder = metrics(tmp_path / "run")
    manifest.write(folder, "run", inputs=[], config={})
    machine = ("--model", "builtin:smollm2-135m", "--gpu", "cpu", "--batch", 4, "--seq", 340)
    question = (
        "recommend", "--needs", "format", "--examples", 738, "--hardware", "cpu", "--model", "builtin:smollm2-135m",
        "--input-tokens", 300, "--output-tokens", 40, "--json",
    )  # fmt: skip
    before = advise(*question)[1]
    code, d, _ = advise("calibrate", folder, *machine, "--json")
    assert (code, d["class"], d["points"], d["measured"], d["peak_memory_gb"]) == (0, "train_tps", 50, 143.0, 2.9)
    after = advise(*question)[1]
    assert after["training"]["hours"] == pytest.approx(before["training"]["hours"] / d["factor"], rel=0.02)
    assert d["predicted"] * d["factor"] == pytest.approx(143.0, rel=0.03)  # a CPU's prior weighs next to nothing
    speed = {a["name"]: a["value"] for a in after["assumptions"]}["cpu_speed"]
    assert f"times {d['factor']:.2f}" in speed
    bench = tmp_path / "bench.json"
    bench.write_text(json.dumps({"median_tpot_ms": 60.0, "completed": 20}))
    _, d, _ = advise("calibrate", bench, *machine[:4], "--input-tokens", 300, "--output-tokens", 40, "--json")
    slower = advise(*question)[1]["recommendation"]["p95_ms"] / after["recommendation"]["p95_ms"]
    assert (slower > 1) == (d["factor"] > 1)
    assert slower == pytest.approx(d["factor"], rel=0.15)


@pytest.mark.parametrize(
    "line",
    [
        {"tokens_per_s": -1}, {"tokens_per_s": True}, {"tokens_per_s": "fast"}, {"peak_memory_gb": 0}, [140.0],
    ],
)  # fmt: skip
def test_calibrate_refuses_nonsense(advise, tmp_path, line):
    log = metrics(tmp_path / "run", line) / "metrics.jsonl"
    code, d, _ = advise("calibrate", log, "--model", "builtin:smollm2-135m", "--gpu", "cpu", "--json")
    assert (code, d["error"]["where"]) == (2, f"{log}:52")
    assert advise("calibrate", log.parent, "--model", "builtin:smollm2-135m", "--gpu", "cpu")[0] == 2  # no manifest


def test_the_short_answer_is_short(advise):
    question = (
        "recommend", "--needs", "format,privacy", "--privacy", "no-egress", "--hardware", "cpu", "--model", "builtin:smollm2-135m",
        "--examples", 738, "--input-tokens", 300, "--output-tokens", 40,
    )  # fmt: skip
    text = advise(*question)[2].out
    rejected = advise(*question, "--json")[1]["rejected"]
    lines = text.splitlines()
    assert not set(text) & set("┃│━─")
    assert lines.index("assumed:") - lines.index("not chosen:") - 1 == len(rejected)
    assert lines.index("not chosen:") - lines.index("why:") - 1 == 3
    assert 'Against it: "Fewer than 1,000 examples: prompt or few-shot." speaks for few_shot' in text
    assert "its purchase and power are not counted" in text
    assert max(len(line) for line in lines[lines.index("not chosen:") : lines.index("assumed:")]) <= 80
    assert "our own judgement" in " ".join(advise(*question, "--why")[2].out.split())


def test_every_row_of_the_tables_names_a_file_or_says_not_verified():
    from tunegate.advisor.facts import UNVERIFIED, table

    for name, column in (("gpus", "spec_source"), ("models", "source")):
        for row in table(name):
            assert re.search(rf"\.(py|json|yaml|md)\b|https://|{UNVERIFIED}", row[column]), row["name"]
            assert "datasheet" not in row[column]
    unchecked = [row["name"] for row in table("models") if UNVERIFIED in row["source"]]
    offered = {row["name"] for row in table("models") if row["offered"] == "1"}
    assert len(unchecked) == 11
    assert not offered & set(unchecked)


def test_one_figure_of_one_paper_is_no_grade_a():
    from tunegate.advisor.rules import RULES

    grades = {rule.id: rule.grade for rule in RULES}
    assert grades["small-base-cannot-be-prompted"] == "B"
    assert grades["few-shot-when-prompted"] == "B"
    assert grades["lora-learns-less"] == "B"


def test_what_has_no_examples_is_refused_for_that(advise):
    _, d, _ = advise("recommend", "--json")
    reasons = {r["option"].split(" ")[0]: r["constraint"] for r in d["rejected"]}
    assert {reasons[m] for m in ("few_shot", "lora", "qlora", "full", "rag_lora")} == {"examples"}


def test_the_reason_against_is_one_that_counts(advise):
    """4-bit weights are no argument against prompting; that a prompt may do is one against tuning."""
    assert "speaks for qlora" not in advise("recommend")[2].out
    text = advise("recommend", "--needs", "cost", "--examples", 5000)[2].out
    assert "Against it:" in text
    assert "speaks for few_shot" in text


def test_rivals_are_what_their_sources_say():
    """EleutherAI: 18 bytes a parameter and 34 s b h L, the scores beside it without checkpointing; accelerate: 8 bytes."""
    import importlib.util
    from pathlib import Path

    from tunegate.advisor.backtest import rows_of
    from tunegate.advisor.measured import parse
    from tunegate.advisor.predict import memory_setup

    spec = importlib.util.spec_from_file_location("bench", Path(__file__).parents[2] / "benchmarks/advisor_backtest.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    row = next(
        r for r in rows_of(None) if r["kind"] == "train_mem" and r["method"] == "full" and r["grad_ckpt"] == "yes"
    )
    case = parse(row)
    setup = memory_setup(case)
    a, tokens = setup.architecture, setup.seq_len * setup.micro_batch
    assert bench.accelerate_rule(case) == pytest.approx(8 * a.params / 1e9)
    assert bench.eleuther_rule(case) == pytest.approx((18 * a.params + 34 * tokens * a.hidden * a.layers) / 1e9)
    more = bench.eleuther_rule(parse({**row, "grad_ckpt": "no"})) - bench.eleuther_rule(case)
    assert more == pytest.approx(5 * a.heads * setup.seq_len * tokens * a.layers / 1e9)
