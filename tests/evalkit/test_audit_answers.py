"""What an audit found in verdicts: calls that no text validator saw, digits read in parts, a judge that was believed too soon."""

import json

import pytest

from tunegate.core.errors import UserError
from tunegate.core.rows import parse_row
from tunegate.evalkit.outcomes import Answer
from tunegate.evalkit.task import load_task
from tunegate.evalkit.validators import judge
from tunegate.evalkit.validators.kinds import make
from tunegate.evalkit.validators.number import numbers

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"tags": ["a"]}'}}


def put(path, *values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def item(name, answer, calls=(), **more):
    last = {"role": "assistant", "content": answer} | ({"tool_calls": list(calls)} if calls else {})
    return {"id": name, "messages": [{"role": "user", "content": f"q {name}"}, last], **more}


def row_of(value):
    return parse_row(value, "eval.jsonl", 1)


def validator(tmp_path, **options):
    return make({"name": "v", **options}, where="v", base=tmp_path)


@pytest.mark.parametrize("options", [{"kind": "exact_match"}, {"kind": "any_of"}, {"kind": "set"}, {"kind": "regex", "pattern": "(.*)"}])  # fmt: skip
def test_a_text_validator_takes_no_row_that_expects_a_call(tmp_path, options):
    put(tmp_path / "eval.jsonl", item("a", "yes"), item("b", "", [CALL]))
    spec = json.dumps({"name": "v", **options})
    (tmp_path / "task.yaml").write_text(f"name: t\ndata: eval.jsonl\nvalidators: [{spec}]\n")
    with pytest.raises(UserError, match="tool calls, not a text") as caught:
        load_task(tmp_path / "task.yaml")
    assert str(caught.value.where).endswith("eval.jsonl:2")
    assert "no_call: true" in caught.value.hint
    # and where an empty text is right, a call is none
    empty = row_of(item("c", ""))
    verdict = validator(tmp_path, **options).judge(Answer(tool_calls=[CALL]), empty)
    assert (verdict.passed, verdict.parsable) == (False, False)


def test_no_call_expected_is_judged_by_calling_nothing(tmp_path):
    asked = validator(tmp_path, kind="tool_call", no_call=True)
    row = row_of(item("a", "It is sunny."))
    asked.check_row(row)
    assert asked.judge(Answer(text="Whatever."), row).passed
    for answer in (Answer(tool_calls=[CALL]), Answer(text='{"name": "f", "arguments": {}}'), Answer(tool_calls=[{}]),
                   Answer(text='<tool_call>{"name": "f", "arguments": {}}</tool_call>')):  # fmt: skip
        verdict = asked.judge(answer, row)
        assert (verdict.passed, verdict.cause) == (False, "extra_call")
    assert not asked.judge(Answer(text="Whatever."), row_of(item("b", "", [CALL]))).passed
    with pytest.raises(UserError, match="not a tool call"):
        asked.check_row(row_of(item("c", '{"name": "f"}')))  # a call with a slip is not prose
    with pytest.raises(UserError) as caught:
        validator(tmp_path, kind="tool_call").check_row(row)
    assert "no_call: true" in caught.value.hint


def test_init_of_mixed_rows_judges_calls(echo, ft):
    put(echo / "mixed.jsonl", *(item(f"a{i}", "Hello.") for i in range(3)), item("b", "", [CALL]))
    done = ft("eval", "init", "mixed.jsonl", "--out", "m.yaml", "--json")
    assert (done.code, done.json["outputs"]) == (0, "native_call_or_text")
    assert "1 of 4 expected answers call tools" in done.err
    assert "no_call: true" in done.json["text"]
    put(echo / "o.jsonl", *({"id": f"a{i}", "output": "Hi.", "tool_calls": [CALL] if i else []} for i in range(3)),
        {"id": "b", "output": "", "tool_calls": []})  # fmt: skip
    found = ft("eval", "o.jsonl", "--task", "m.yaml", "--out", "r", "--json")
    assert found.json["metrics"]["exact"]["value"] == 0.25


def test_init_and_the_gold_check_read_every_row(echo, ft):
    rows = [item(f"i{i}", json.dumps({"a": i})) for i in range(2100)]
    rows.append(item("last", json.dumps({"a": 1, "b": "x" * 900}), tags={"kind": "late"}))
    put(echo / "long.jsonl", *rows)
    assert ft("eval", "init", "long.jsonl", "--out", "l.yaml").code == 0
    assert "b" in json.loads((echo / "l.schema.json").read_text())["properties"]
    assert "max_tokens: 64," not in (echo / "l.yaml").read_text()
    assert 'slices: ["kind"]' in (echo / "l.yaml").read_text()
    (echo / "s.json").write_text('{"required": ["a"], "additionalProperties": false, "properties": {"a": {}}}')
    (echo / "s.yaml").write_text(
        "name: t\ndata: long.jsonl\nvalidators: [{name: s, kind: json_schema, schema: s.json}]\n"
    )
    put(echo / "o.jsonl", *({"id": row["id"], "output": "{}"} for row in rows))
    assert (
        "1 of 2101 expected answers do not pass themselves"
        in ft("eval", "o.jsonl", "--task", "s.yaml", "--out", "r").err
    )


def test_whether_accepted_calls_are_sets_is_decided_once_a_row(tmp_path):
    said = validator(tmp_path, kind="tool_call")
    accept = [{"name": "f", "arguments": {"tags": [tag]}} for tag in "ab"]
    row = row_of(item("a", "", [CALL], accept=accept))
    passes = {json.dumps(tags): said.judge(Answer(text=json.dumps({"name": "f", "arguments": {"tags": tags}})), row).passed for tags in (["a"], ["b"], "b")}  # fmt: skip
    assert passes == {'["a"]': True, '["b"]': True, '"b"': False}
    other = row_of(item("a", json.dumps({"name": "f", "arguments": {"tags": "a"}}), accept=accept))
    assert said.judge(
        Answer(text=json.dumps({"name": "f", "arguments": {"tags": "b"}})), other
    ).passed  # sets, as before


@pytest.mark.parametrize(
    ("text", "found"),
    [("12,50 €", []), ("1.234,56", []), ("0,5", []), ("1.000.000", []), ("1.2.3", []), ("1'000", []), ("1’000", []), ("1/2", []),
     ("-12,50", []), ("1,000,50", []), ("on 1/2/24: 5", [5]), ("1,000", [1000]), ("-1,234.5.", [-1234.5]), ("0, -5", [0, -5]),
     ("$5/month", [5]), ("3 and 4.", [3, 4]), (".5", [0.5]), ("1\u202f000,", [1000]), ("2024-01-15", [2024, 1, 15]), ("'5'", [5])],
)  # fmt: skip
def test_digits_joined_otherwise_are_no_number(text, found):
    assert [float(number) for number in numbers(text)] == found


@pytest.mark.parametrize(
    ("text", "right"),
    [('<think>{"right": false}? {"a":</think>{"right": true, "reason": "x"}', True), ('First {"right": true}. No: {"right": false}.', False),
     ('```json\n{"right": true, "parts": {"right": false}}\n```', True), ('<think>{"right": true}', None), ('{"right": "yes"}', None)],
)  # fmt: skip
def test_a_judges_last_object_counts_and_its_thoughts_do_not(text, right):
    assert judge.last_object(judge.thinking(text)).get("right") in ((right,) if right is not None else (None, "yes"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("答案是42。", [42]),
        ("共7个", [7]),
        ("ราคา50บาท", [50]),
        ("정답은 12개", [12]),
        ("3万", []),
        ("é7", []),
        ("5kg", []),
    ],
)
def test_a_number_stands_without_blanks_where_a_script_has_none(text, found):
    assert [float(number) for number in numbers(text)] == found


@pytest.fixture
def judged(echo, standin, monkeypatch):
    """`labels(rights)` writes the labelled answers; the stand-in's judge says right to what holds a 1, and babbles at a 7."""
    judge._kept.cache_clear()
    judge._agreement.cache_clear()
    state = {"babble": True}

    def answer(question, _):
        said = json.loads(question.split("<data>")[1].split("</data>")[0])["answer"]
        return 200, "Well." if "7" in said and state["babble"] else json.dumps({"right": "1" in said, "reason": said})

    standin.answer = answer

    def labels(right, wrong):
        said = [("1", True)] * right + [("0", False)] * wrong
        put(echo / "labelled.jsonl", *({"question": f"q{i}", "expected": "e", "answer": text, "right": is_right} for i, (text, is_right) in enumerate(said)))  # fmt: skip

    spec = {
        "name": "j",
        "kind": "judge",
        "endpoint": standin.url,
        "model": "m",
        "labelled": "labelled.jsonl",
        "max_tokens": 321,
    }
    exact = {"name": "exact", "kind": "exact_match"}
    for primary in ("j", "exact"):
        text = {"name": "t", "data": "eval.jsonl", "validators": [exact, spec], "primary": primary}
        (echo / f"{primary}.yaml").write_text(json.dumps(text))
    put(echo / "o.jsonl", *({"id": f"i{i}", "output": "7" if i < 2 else "1"} for i in range(60)))
    return labels, state


def test_a_judge_without_a_verdict_is_infrastructure_and_is_not_remembered(judged, echo, standin, ft):
    labels, state = judged
    labels(20, 20)
    run = ft("eval", "o.jsonl", "--task", "j.yaml", "--out", "r", "--json")
    assert (run.json["outcomes"]["infra_error"], run.json["outcomes"]["pass"]) == (2, 58), run.err
    assert run.json["metrics"]["j"]["n"] == 58
    assert standin.bodies[-1]["max_tokens"] == 321
    beside = ft("eval", "o.jsonl", "--task", "exact.yaml", "--out", "e", "--json").json
    assert (beside["metrics"]["exact"]["n"], beside["metrics"]["j"]["n"], beside["outcomes"]["infra_error"]) == (
        60,
        58,
        0,
    )
    state["babble"] = False
    judge._kept.cache_clear()  # as in another process
    assert ft("eval", "o.jsonl", "--task", "j.yaml", "--out", "r2", "--json").json["outcomes"]["fail"] == 2


@pytest.mark.parametrize(("right", "wrong", "words"), [(38, 2, "2 labelled answers that are wrong"), (2, 38, "that are right"), (40, 0, "every labelled answer is right")])  # fmt: skip
def test_a_judge_must_agree_on_both_labels(judged, ft, right, wrong, words):
    judged[0](right, wrong)
    run = ft("eval", "o.jsonl", "--task", "j.yaml", "--out", "r")
    assert run.code == 2
    assert words in run.err


def test_the_agreement_on_each_label_is_reported_and_labels_need_their_texts(judged, echo, ft):
    judged[0](20, 30)
    assert ft("eval", "o.jsonl", "--task", "j.yaml", "--out", "r").code == 0
    (_, facts) = json.loads((echo / "r/report.json").read_text())["task"]["validators"]
    told = facts["agreement"]
    assert (told["n"], told["right"]["n"], told["wrong"]["n"]) == (50, 20, 30)
    assert told["right"]["low"] == pytest.approx(20 / (20 + 1.959964**2))  # Wilson, none missed
    put(echo / "labelled.jsonl", {"question": "q", "answer": "a", "right": True})
    judge._agreement.cache_clear()
    run = ft("eval", "o.jsonl", "--task", "j.yaml", "--out", "r2")
    assert run.code == 2
    assert 'labelled.jsonl:1: a labelled answer needs the texts "question", "expected" and "answer"' in run.err
