"""Runs without weights: instructions from the data, examples that cover it, documents as passages."""

import json

import numpy as np
import pytest
from msgspec import structs

from tunegate.core.commands import run
from tunegate.core.errors import UserError
from tunegate.core.manifest import verify
from tunegate.core.model_source import resolve as resolve_model
from tunegate.core.rows import parse_row, read_rows
from tunegate.serve.prompting.prompting import Prompting
from tunegate.train.arms import choose
from tunegate.train.arms.build import build, preview
from tunegate.train.arms.documents import read_documents, solved_examples, split_documents
from tunegate.train.arms.instructions import write_instructions
from tunegate.train.cli import app
from tunegate.train.config import keys_of, resolve

pytestmark = pytest.mark.usefixtures("one_thread")


def rows_of(answers, **more):
    turns = [[{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": a}] for i, a in enumerate(answers)]
    return [parse_row({"messages": messages, **more}, "t", i) for i, messages in enumerate(turns)]


@pytest.mark.parametrize(
    ("answers", "form", "words"),
    [
        (["yes", "no"] * 20, "label", "- yes"),
        (['{"a": 1}', '{"a": 2}'] * 5, "json", '"required": ["a"]'),
        (["12", "1,000", "3.5"] + [str(i) for i in range(300)], "number", "one number"),
        ([f"A long answer number {i} of several words" for i in range(20)], "text", "about 8 words"),
    ],
)
def test_instructions_say_the_form_of_the_answers(answers, form, words):
    text, found = write_instructions(rows_of(answers))
    assert found == form
    assert words in text


def test_one_schema_of_the_rows_is_shown_and_many_are_not():
    schema = {"type": "object", "required": ["z"]}
    assert '"required": ["z"]' in write_instructions(rows_of(['{"a": 1}'] * 3, schema=schema))[0]
    mixed = [*rows_of(['{"a": 1, "b": 2}'], schema=schema), *rows_of(['{"a": 1}'], schema={"type": "object"})]
    text = write_instructions(mixed)[0]
    assert 'Its keys are "a".' in text
    assert "Schema" not in text


def test_spread_out_examples_take_every_label_first():
    vectors = np.eye(6, dtype=np.float32)
    chosen = choose.spread_out(vectors, ["a", "a", "a", "b", "b", "c"], 3)
    assert {["a", "a", "a", "b", "b", "c"][i] for i in chosen} == {"a", "b", "c"}
    assert len(set(choose.spread_out(vectors, ["a"] * 6, 6))) == 6


def test_the_development_part_is_never_an_example(tiny_dataset):
    rows = list(read_rows(tiny_dataset.train_path))
    pool, development = choose.development_part(rows, 4)
    assert len(development) == 4
    assert not {r.id for r in pool} & {r.id for r in development}
    assert len(choose.development_part(rows, 100)[1]) == len(rows) // 5
    grouped = [structs.replace(row, group=str(i // 3)) for i, row in enumerate(rows)]
    pool, development = choose.development_part(grouped, 7)
    assert len(development) == 3, "of at most four"
    assert {row.group for row in pool}.isdisjoint(row.group for row in development)


def test_the_count_with_the_lowest_loss_is_chosen_and_the_curve_kept():
    losses = {(0, "nearest"): 3.0, (1, "nearest"): 1.0, (3, "nearest"): 0.5, (5, "nearest"): 0.50001, (8, "nearest"): 0.7,
              (3, "fixed"): 0.6}  # fmt: skip
    k, selection, tried = choose.choose(lambda k, s: (k, s), [], ("nearest", "fixed"), lambda p: (losses[p], 1.0, 10))
    assert (k, selection) == (3, "nearest")  # 5 examples are no better
    assert [(t.k, t.selection) for t in tried] == list(losses)


def settings(model, **more):
    return resolve([("t", {"model": str(model), "max_length": 512, **more})])[0]


def make(tmp_path, dataset, model, name="run", **more):
    return build(dataset, resolve_model(str(model)), settings(model, **more), tmp_path / name, force=False)


def test_few_shot_chooses_its_count_on_training_rows(tmp_path, tiny_dataset, tiny_model):
    made = make(tmp_path, tiny_dataset, tiny_model, method="few_shot")
    lines = [json.loads(line) for line in (made.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["k"] for line in lines if line["selection"] == "nearest"] == list(choose.COUNTS)
    best = min(lines, key=lambda line: (round(line["eval_loss"], 4), line["k"]))
    assert (made.manifest.facts["k"], made.manifest.facts["selection"]) == (best["k"], best["selection"])
    held_out = {r.id for r in read_rows(tiny_dataset.eval_path)}
    if (made.path / "examples.jsonl").is_file():
        assert not held_out & {json.loads(x)["id"] for x in (made.path / "examples.jsonl").read_text().splitlines()}
    assert verify(made.path) == []


def test_the_answer_loss_is_that_of_the_answer_tokens_alone(tiny_dataset, tiny_model):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tunegate.core.chat_template import mask
    from tunegate.serve.prompting.prompting import Settings

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    rows = list(read_rows(tiny_dataset.train_path))[:3]
    prompting = Prompting(Settings(method="prompt"), lambda texts: 0, {})
    found, _, _ = choose.answer_loss(prompting, rows, model, tokenizer, [tokenizer.eos_token_id], room=500)
    total, count = 0.0, 0
    for row in rows:
        masked = mask(tokenizer, row.messages, [tokenizer.eos_token_id])
        logits = model(torch.tensor([masked.input_ids])).logits[0].detach()
        for position, label in enumerate(masked.labels):
            if label != -100:
                total -= float(torch.log_softmax(logits[position - 1].float(), -1)[label])
                count += 1
    assert found == pytest.approx(total / count, rel=1e-4)


def test_answers_that_are_calls_are_told_and_kept(makers):
    """Their text is empty: no label, no passage without an answer."""
    rows = [
        parse_row(
            {"id": f"r{i}", "messages": [{"role": "user", "content": f"weather in {city}?"},
             {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": json.dumps({"city": city})}}]}]},
            "x", 1,
        )
        for i, city in enumerate(("Bern", "Rome", "Oslo", "Kyiv"))
    ]  # fmt: skip
    text, form = write_instructions(rows)
    assert (form, "calling the functions" in text, "labels" in text) == ("calls", True, False)
    plain = [parse_row({"id": f"p{i}", "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": word}]}, "x", 1)
             for i, word in enumerate(("yes", "no", "yes", "no"))]  # fmt: skip
    text, form = write_instructions([*rows, *plain])
    assert (form, "- yes" in text, "calling the functions" in text) == ("calls and label", True, True)
    assert [("weather" in p.text, "Bern" in p.text) for p in solved_examples(rows[:1])] == [(True, True)]


def test_rag_without_documents_retrieves_solved_training_rows(tmp_path, tiny_dataset, tiny_model):
    made = make(tmp_path, tiny_dataset, tiny_model, method="rag", k=2)
    found = Prompting.load(made.path).apply([{"role": "user", "content": "What is 7 plus 7?"}], room=2000)
    assert found.used[0] == "r7"
    assert 'Answer: {"sum": 14}' in found.messages[0]["content"]


def test_rag_over_documents_cites_its_passages_and_names_what_it_left_out(tmp_path, tiny_dataset, tiny_model, capsys):
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "a.md").write_text("Ships leave at noon.\n\nThe harbour closes at night.")
    (docs / "b.txt").write_text("Trains run every hour.")
    (docs / "c.png").write_bytes(b"\x89PNG")
    made = make(tmp_path, tiny_dataset, tiny_model, method="rag", docs=str(docs), k=1, passage_tokens=20)
    assert "1 files are not text and are left out (c.png)" in capsys.readouterr().err
    used = Prompting.load(made.path).apply([{"role": "user", "content": "When do trains run?"}], room=2000).used
    assert used == ["b.txt#1"]
    roles = [i.role for i in made.manifest.inputs]
    assert roles.count("documents") == 3


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "there is no document with text"),
        ({"a.txt": b"  \n"}, "there is no document with text"),
        ({"a.txt": b"\xff\xfe\x00"}, "not UTF-8 text at byte 0"),
        ({"a.txt": b"a\x00b"}, "holds NUL bytes"),
        ({"a.pdf": b"%PDF"}, "there is no document with text"),
    ],
)
def test_documents_that_are_no_text_are_refused(tmp_path, files, words):
    for name, raw in files.items():
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(UserError, match=words):
        read_documents(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"txt": "x"}\n', 'needs "text"'),
        ("[1]\n", "expected an object"),
        ('{"text": 3}\n', 'needs "text"'),
        ("{\n", "not valid JSON"),
    ],
)
def test_document_lines_that_are_none_name_their_line(tmp_path, text, words):
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "fine"}\n' + text)
    with pytest.raises(UserError, match=words) as caught:
        read_documents(path)
    assert caught.value.where.startswith(f"{path}:2")


def test_passages_keep_to_their_length_and_twins_are_kept_once():
    text = "One sentence here. Another one there.\n\n" * 30
    found = split_documents([("a", text), ("b", text)], tokens=12, count=lambda t: len(t.split()))
    assert all(len(p.text.split()) <= 12 for p in found)
    assert len({p.text for p in found}) == len(found)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"method": "few_shot", "k": 2, "max_length": 270}, "no example fits"),
        ({"method": "prompt", "system_file": "absent.txt"}, "no such file"),
        ({"method": "rag", "docs": "absent"}, "no such file or folder"),
        ({"method": "rag", "embedder": "absent/model", "k": 1}, "embedding model cannot be loaded"),
    ],
)
def test_what_cannot_be_made_is_one_error_and_no_folder(tmp_path, tiny_dataset, tiny_model, monkeypatch, more, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        make(tmp_path, tiny_dataset, tiny_model, **more)
    assert list(tmp_path.iterdir()) == []


def test_the_command_makes_a_prompt_run_and_shows_what_a_request_becomes(tmp_path, tiny_dataset, tiny_model, capsys):
    (tmp_path / "s.txt").write_text("Answer as a pirate.\n")
    common = [str(tiny_dataset.path), "--out", str(tmp_path / "p"), "--model", str(tiny_model), "--method", "prompt",
              "--system-file", str(tmp_path / "s.txt"), "--rank", "4"]  # fmt: skip
    assert run(app, prog="ft train", argv=[*common, "--dry-run", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["messages"][0] == {"role": "system", "content": "Answer as a pirate."}
    assert "rank means nothing to the method prompt" in shown.err
    assert not (tmp_path / "p").exists()
    assert run(app, prog="ft train", argv=common) == 0
    assert "learning_rate" not in capsys.readouterr().err  # settings of training are not shown
    assert (tmp_path / "p" / "prompting.json").is_file()


def test_each_method_reads_its_own_settings():
    assert "docs" in keys_of("rag")
    assert "docs" not in keys_of("few_shot")
    assert "docs" in keys_of("lora")  # trained with the passages
    assert "selection" not in keys_of("lora")
    assert "learning_rate" in keys_of("lora")


# The role check of Mistral-7B-Instruct-v0.3's template, in ChatML's clothes: turns that call are not counted.
STRICT = (
    "{% set ns = namespace(at=0) %}{% for m in messages %}{% if m['role'] != 'system' and not m['tool_calls'] %}"
    "{% if (m['role'] == 'user') != (ns.at % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set ns.at = ns.at + 1 %}{% endif %}<|im_start|>{{ m['role'] }}\n"
    "{% for c in m['tool_calls'] or [] %}{{ c.function | tojson }}{% else %}{{ m['content'] }}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def strict(tmp_path, makers):
    """(dataset of rows that call, model whose template refuses a user turn behind a call)."""
    model = makers.model(tmp_path / "strict")
    makers.tokenizer(STRICT).save_pretrained(model)
    rows = []
    for i in range(24):
        call = {"id": "abcdefghi", "type": "function", "function": {"name": "get", "arguments": {"x": i}}}
        answer = {"role": "assistant", "content": "", "tool_calls": [call]}
        rows.append({"id": f"r{i}", "messages": [{"role": "user", "content": f"get {i}"}, answer]})
    return makers.dataset(tmp_path / "calls", rows, rows[:1]), model


def test_a_count_that_the_template_refuses_is_never_chosen(tmp_path, strict, capsys):
    """It had no loss to count, and so the lowest."""
    made = make(tmp_path, *strict, method="few_shot", selection="nearest")
    lines = [json.loads(line) for line in (made.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["eval_loss"] is None for line in lines] == [False, True, True, True, True]
    assert made.manifest.facts["k"] == 0
    assert "the chat template refuses prompts with these examples: none are shown" in capsys.readouterr().err
    with pytest.raises(
        UserError, match="with 2 examples, the chat template refuses these messages: roles must"
    ) as caught:
        make(tmp_path, *strict, name="two", method="few_shot", k=2)
    assert (caught.value.where, (tmp_path / "two").exists()) == ("k", False)
    assert make(tmp_path, *strict, name="none", method="few_shot", k=0).manifest.facts["k"] == 0


def test_no_example_is_shown_where_none_was_asked_for_and_the_template_refuses_them(tmp_path, strict, makers, capsys):
    """Too few rows to choose on, and a dry run, ended with an error about a number that nobody had named."""
    dataset, model = strict
    rows = [json.loads(line) for line in dataset.train_path.read_text().splitlines()]
    few = makers.dataset(tmp_path / "few", rows[:4], rows[:1])
    assert make(tmp_path, few, model, method="few_shot").manifest.facts["k"] == 0
    assert "the chat template refuses prompts with these examples: none are shown" in capsys.readouterr().err
    shown = preview(dataset, resolve_model(str(model)), settings(model, method="few_shot"))
    assert (shown["k"], shown["used"]) == (0, [])


def test_two_rows_are_two_examples_not_three(tmp_path, tiny_model, makers, capsys):
    rows = makers.rows(2)
    for name, selection in (("near", "nearest"), ("fixed", "fixed")):
        made = make(tmp_path, makers.dataset(tmp_path / f"d-{name}", rows, rows[:1]), tiny_model, name=name,
                    method="few_shot", selection=selection)  # fmt: skip
        assert (made.manifest.facts["k"], made.manifest.facts["examples"]) == (2, 2)
        assert "): 2 are shown" in capsys.readouterr().err


@pytest.mark.parametrize("group", [None, "one"])
def test_where_no_row_can_be_set_aside_three_examples_are_shown_and_it_is_said(
    tmp_path, tiny_model, makers, capsys, group
):
    """Nothing was measured, all counts came to 0.000, and none was shown."""
    rows = makers.rows(4 if group is None else 20)
    for row in rows if group else ():
        row["group"] = group
    made = make(tmp_path, makers.dataset(tmp_path / "d", rows, rows[:1]), tiny_model, method="few_shot")
    facts = made.manifest.facts
    assert (facts["k"], facts["development_rows"], facts["examples"]) == (3, 0, len(rows))
    assert f"none of {len(rows)} training rows can be set aside" in capsys.readouterr().err
    assert len(Prompting.load(made.path).apply([{"role": "user", "content": "What is 1 plus 1?"}], room=2000).used) == 3
