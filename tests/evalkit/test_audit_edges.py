"""What an auditor found at the edges of `ft eval`: files others write, task files with slips, order of lines, nothing answered."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

from tunegate.evalkit.init import init_task
from tunegate.evalkit.render import junit
from tunegate.evalkit.task import load_task


def write(path, values):
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))


def turns(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def right(n=60):
    return [{"id": f"i{i}", "output": f"q{i}"} for i in range(n)]


def one_line(run, code, *words):
    """The last line of what was said is the error, and it holds these words."""
    assert run.code == code, run.err
    line = run.err.splitlines()[-1]
    assert line.startswith("error: ")
    for word in words:
        assert word in line


def test_counts_as_pandas_writes_them_are_whole_numbers(echo, ft):
    write(echo / "o.jsonl", [r | {"prompt_tokens": 7.0, "completion_tokens": 2.0, "latency_ms": 1.5} for r in right()])
    assert ft("eval", "o.jsonl", "--task", "task.yaml", "--out", "r").code == 0
    assert ft("report", "r").code == 0
    assert '"prompt_tokens": 7,' in (echo / "r" / "results.jsonl").read_text().splitlines()[0]
    write(echo / "half.jsonl", [*right(59), {"id": "i59", "output": "q59", "completion_tokens": 1.5}])
    run = ft("eval", "half.jsonl", "--task", "task.yaml", "--out", "h")
    one_line(run, 2, 'half.jsonl:60 /completion_tokens: "completion_tokens" must be a whole number, found 1.5')


def test_counts_in_another_evaluators_file_are_whole_numbers_too(echo, ft):
    samples = [
        {
            "id": f"i{i}",
            "epoch": 1,
            "input": f"q{i}",
            "target": f"q{i}",
            "output": {
                "choices": [{"message": {"role": "assistant", "content": f"q{i}"}, "stop_reason": "stop"}],
                "usage": {"input_tokens": 3.0, "output_tokens": 1.5 if i == 7 else 1.0},
            },
        }
        for i in range(60)
    ]
    log = {"version": 2, "status": "success", "eval": {"model": "m"}, "samples": samples}
    (echo / "log.json").write_text(json.dumps(log))
    run = ft("eval", "log.json", "--task", "task.yaml", "--out", "r")
    one_line(run, 2, "log.json", "completion_tokens must be a whole number, found 1.5")
    samples[7]["output"]["usage"]["output_tokens"] = 2.0
    (echo / "log.json").write_text(json.dumps(log))
    assert ft("eval", "log.json", "--task", "task.yaml", "--out", "r").code == 0
    assert ft("report", "r").code == 0


def test_a_prompt_without_its_question_is_refused(echo, standin, ft):
    with (echo / "task.yaml").open("a") as stream:
        stream.write('prompt: "Translate: {question}"\n')
    run = ft("eval", standin.url, "--task", "task.yaml", "--out", "r")
    one_line(run, 2, "task.yaml prompt: the prompt has no {input}")
    assert not standin.asked


def test_fewer_examples_than_asked_for_are_refused(echo, standin, ft):
    write(echo / "shots.jsonl", [{"messages": turns(f"s{i}", "a")} for i in range(2)])
    text = (echo / "task.yaml").read_text()
    (echo / "task.yaml").write_text(text + "few_shot: {file: shots.jsonl, n: 8}\n")
    run = ft("eval", standin.url, "--task", "task.yaml", "--out", "r")
    one_line(run, 2, "task.yaml few_shot n: cannot show 8 examples", "shots.jsonl holds 2", "n: 2")
    (echo / "task.yaml").write_text(text + "few_shot: {file: shots.jsonl}\n")  # as many as there are
    assert len(load_task(echo / "task.yaml").examples) == 2
    (echo / "task.yaml").write_text(text + "few_shot: {file: shots.jsonl, n: 2}\n")
    assert len(load_task(echo / "task.yaml").examples) == 2


@pytest.mark.parametrize(
    ("validator", "words"),
    [
        ("{name: exact, kind: regex, pattern: '('}", "validators[0]: exact pattern: not a regular expression"),
        ("{name: q, kind: sql, database: none.sqlite}", "none.sqlite: no such database"),
        ("{name: j, kind: judge, endpoint: x, model: m, labelled: l}", "validators[0]: validator j endpoint: "),
        ("{name: s, kind: json_schema, schema: {type: strin}}", "validators[0]: s schema"),
        ("{name: p, kind: python, function: 'nothing_here:f'}", "validator p: cannot import"),
    ],
)
def test_what_a_validator_refuses_names_the_task_file(echo, ft, validator, words):
    (echo / "task.yaml").write_text(f"name: t\ndata: eval.jsonl\nvalidators: [{validator}]\n")
    write(echo / "o.jsonl", right())
    run = ft("eval", "o.jsonl", "--task", "task.yaml", "--out", "r", "--allow-python")
    one_line(run, 2, "error: task.yaml", words)
    assert run.err.count("task.yaml") == 1


def test_a_row_that_cannot_be_judged_is_still_named_by_its_line(echo, ft):
    (echo / "task.yaml").write_text("name: t\ndata: eval.jsonl\nvalidators: [{name: n, kind: number}]\n")
    write(echo / "o.jsonl", right())
    (echo / "eval.jsonl").write_text((echo / "eval.jsonl").read_text().replace('"q3"', '"none"'))
    one_line(ft("eval", "o.jsonl", "--task", "task.yaml", "--out", "r"), 2, "error: eval.jsonl:1: ")


def test_a_folder_in_the_place_of_a_file_is_named(echo, ft):
    write(echo / "o.jsonl", right())
    ft("eval", "o.jsonl", "--task", "task.yaml", "--out", "r")
    (echo / "dir").mkdir()
    for option in ("--html", "--junit", "--markdown"):
        one_line(ft("report", "r", option, "dir"), 2, "error: dir: ", "a folder")
    assert list((echo / "dir").iterdir()) == []


def test_an_endpoint_without_models_says_what_to_do(echo, standin, ft, monkeypatch):
    async def none(_):
        return []

    monkeypatch.setattr("tunegate.serve.client.ChatClient.models", none)
    run = ft("eval", standin.url, "--task", "task.yaml", "--out", "r")
    one_line(run, 2, "the endpoint serves 0 models (name the one to ask: --model NAME)")
    assert ft("eval", standin.url, "--task", "task.yaml", "--out", "r", "--model", "m").code == 0


def made_task(tmp_path, answers):
    write(tmp_path / "d.jsonl", [{"id": f"i{i}", "messages": turns(f"q{i}", a)} for i, a in enumerate(answers)])
    found = init_task(tmp_path / "d.jsonl", tmp_path / "task.yaml", force=True)
    return found["outputs"], load_task(tmp_path / "task.yaml").validators[0]


@pytest.mark.parametrize(
    ("answers", "kind", "tolerance"),
    [
        ([str(1950 + i) for i in range(50)], "number", 0.0),  # years
        ([f"{i}.25" for i in range(50)], "number", 0.005),
        ([f"{i}.5" if i % 2 else str(i) for i in range(50)], "number", 0.05),
        ([f"${i},000.00" for i in range(1, 50)], "number", 0.005),
        ([f"{i} km/h" for i in range(50)], "number", 0.0),
        ([f"{i} %" for i in range(50)], "number", 0.0),
        ([f"turn left at exit {i}" for i in range(50)], "text", None),
        ([f"{i} a lot" for i in range(50)], "text", None),
        ([f"{i} {'km' if i % 2 else 'm'}" for i in range(50)], "text", None),  # the number alone would not tell
        ([f"{i:03}" for i in range(50)], "text", None),  # codes
        ([f"2024.01.{i}" for i in range(10, 30)], "text", None),
        ([f"{i}km" for i in range(50)], "text", None),  # no number to the validator
    ],
)
def test_init_takes_numbers_for_numbers_only(tmp_path, answers, kind, tolerance):
    outputs, validator = made_task(tmp_path, answers)
    assert (outputs, validator.kind) == (kind, "number" if kind == "number" else "exact_match")
    if tolerance is not None:
        assert (validator.abs_tolerance, validator.rel_tolerance) == (tolerance, 0.0)


def test_init_of_whole_numbers_lets_no_other_year_pass(echo, ft):
    rows = [{"id": f"i{i}", "messages": turns(f"q{i}", str(1950 + i))} for i in range(50)]
    write(echo / "years.jsonl", rows)
    assert ft("eval", "init", "years.jsonl", "--out", "y.yaml").code == 0
    write(echo / "o.jsonl", [{"id": f"i{i}", "output": str(1951 + i)} for i in range(50)])
    found = ft("eval", "o.jsonl", "--task", "y.yaml", "--out", "y", "--json").json
    assert found["metrics"]["number"]["value"] == 0.0


@pytest.mark.parametrize("key", ["mood 😀", "a\u2028b\u0085c\u007f\ufeff", "ü漢", 'q"\\\n', "👨\u200d👩"])
def test_init_writes_keys_that_read_back(tmp_path, key):
    rows = [{"id": f"i{i}", "messages": turns(f"q{i}", "yn"[i % 2]), "tags": {key: "ab"[i % 2]}} for i in range(20)]
    data = tmp_path / "rows 🦜.jsonl"
    write(data, rows)
    init_task(data, tmp_path / "task.yaml", force=False)
    task = load_task(tmp_path / "task.yaml")
    assert (task.file.name, task.file.data, task.file.slices) == ("rows 🦜", data, (key,))


def test_noise_of_nothing_is_an_infrastructure_error(echo, standin, ft):
    standin.answer = lambda q, _: (501, "")
    one_line(
        ft("eval", "noise", standin.url, "--task", "task.yaml"), 4, "no item was answered twice", "HTTP 501: broken"
    )
    assert set(standin.asked.values()) == {1}, "what was lost once is not asked again"
    standin.asked.clear()
    standin.answer = lambda q, times: (501 if (int(q[1:]) + times) % 2 else 200, q)
    one_line(ft("eval", "noise", standin.url, "--task", "task.yaml"), 4, "no item was answered twice")
    standin.asked.clear()
    standin.answer = lambda q, times: (501 if q in ("q1", "q2") and times == 2 else 200, q)
    run = ft("eval", "noise", standin.url, "--task", "task.yaml")
    assert run.code == 0
    assert "no answer (infrastructure)" in run.out
    assert "0, then 2" in run.out
    standin.answer = lambda q, _: (200, q)
    assert "infrastructure" not in ft("eval", "noise", standin.url, "--task", "task.yaml").out


def test_what_is_known_before_is_refused_before_anything_is_asked(echo, standin, ft):
    write(echo / "o.jsonl", right())
    assert ft("eval", standin.url, "--task", "task.yaml", "--out", "base").code == 0
    standin.asked.clear()
    run = ft("eval", standin.url, "--task", "task.yaml", "--out", "r", "--against", "base", "--allow-different", "dta")
    one_line(run, 2, "--allow-different: unknown value 'dta'", 'did you mean "data"')
    task, data = (echo / "task.yaml").read_text(), (echo / "eval.jsonl").read_text()
    for file, text, words in (
        ("eval.jsonl", data.replace('"assistant", "content": "q7"', '"assistant", "content": "x"'), "data: other"),
        ("eval.jsonl", data.replace('"user", "content": "q7"', '"user", "content": "x"'), "other questions"),
        ("task.yaml", task + "system: be brief\n", "prompts: "),
        ("task.yaml", task + "generation: {max_tokens: 9}\n", "max_tokens was 256, is 9"),
        ("task.yaml", task + "extract: [code_fence]\n", "scorer: "),
    ):
        (echo / file).write_text(text)
        run = ft("eval", standin.url, "--task", "task.yaml", "--out", "r", "--against", "base")
        one_line(run, 2, "not comparable with the baseline", words)
        (echo / "eval.jsonl").write_text(data)
        (echo / "task.yaml").write_text(task)
    (echo / "gate.yaml").write_text("conditions: [{metric: exat, rule: non_inferior, margin: 0.1}]\n")
    against = ("--against", standin.url, "--policy", "gate.yaml")
    one_line(ft("eval", "o.jsonl", "--task", "task.yaml", "--out", "r", *against), 2, 'did you mean "exact"')
    assert not standin.asked
    assert not (echo / "r").exists()


def test_power_says_what_it_assumes(echo, ft):
    write(echo / "o.jsonl", right())
    ft("eval", "o.jsonl", "--task", "task.yaml", "--out", "r")
    run = ft("eval", "power", "--report", "r", "--json")
    assert (run.code, run.json["n"], run.json["discordance"], run.json["discordance_from"]) == (0, 60, 0.1, "assumed")
    assert "r was compared with nothing" in run.err
    assert "0.1 is assumed" in run.err
    run = ft("eval", "power", "--report", "r", "--discordance", "0.3", "--json")
    assert (run.json["discordance"], run.json["discordance_from"], run.err) == (0.3, "given", "")
    ft("eval", "o.jsonl", "--task", "task.yaml", "--out", "b", "--against", "r")
    run = ft("eval", "power", "--report", "b", "--json")
    assert (run.json["discordance"], run.json["discordance_from"], run.err) == (pytest.approx(1 / 62), "report", "")
    assert ft("eval", "power", "--n", "60").err == ""


def reversed_lines(path):
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))


def test_the_order_of_lines_makes_no_other_items(echo, standin, ft, monkeypatch):
    async def tokens(self, messages, tools=None, template=None):
        return [len(m["content"]) + ord(m["content"][-1]) for m in messages]

    monkeypatch.setattr("tunegate.serve.client.ChatClient.tokenize", tokens)
    assert ft("eval", standin.url, "--task", "task.yaml", "--out", "base").code == 0
    reversed_lines(echo / "eval.jsonl")
    run = ft("eval", standin.url, "--task", "task.yaml", "--out", "r", "--against", "base", "--json")
    assert run.code == 3, run.err
    assert run.json["comparison"]["exact"]["both_pass"] == 60
    first, second = (json.loads((echo / name / "report.json").read_text()) for name in ("base", "r"))
    for key in ("prompt_digest", "prompt_ids_digest"):
        assert first[key] == second[key] is not None
    assert first["data"]["items_digest"] == second["data"]["items_digest"]


def test_conditions_alike_have_names_of_their_own_in_junit():
    shared = {"metric": "exact", "decision": "PASS", "reason": "", "slice": None}
    conditions = [
        {**shared, "rule": "non_inferior", "bound": -0.02},
        {**shared, "rule": "non_inferior", "bound": -0.1},
        {**shared, "rule": "at_least", "bound": 0.9},
        {**shared, "rule": "superior", "bound": 0.0},
        {**shared, "rule": "superior", "bound": 0.0},
    ]
    report = {"task": {"name": "t"}, "created": "2026-01-01T00:00:00Z", "decision": {"conditions": conditions}}
    names = [case.get("name") for case in ElementTree.fromstring(junit.render(report, [])).iter("testcase")]
    assert names == [
        "exact non_inferior 0.02",
        "exact non_inferior 0.1",
        "exact at_least",
        "exact superior 0.0",
        "exact superior 0.0 (2)",
    ]
