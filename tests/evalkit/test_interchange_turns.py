"""Prompts that are chats, in other evaluators' files and in ours: which item they ask, and all that was said."""

import json

import pytest

from tunegate.evalkit.interchange import inspect_write
from tunegate.evalkit.interchange.foreign import asked_in


def question(i):
    return f'Translate:\n"word {i}"'


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def items(folder, *turns, **more):
    """A task of items i0, i1, ... whose prompts are `turns` and whose right answer is a0, a1, ..."""
    answers = [{"role": "assistant", "content": f"a{i}"} for i in range(len(turns))]
    write_lines(
        folder / "eval.jsonl", [{"id": f"i{i}", "messages": [*t, answers[i]], **more} for i, t in enumerate(turns)]
    )


def user(text):
    return {"role": "user", "content": text}


@pytest.mark.parametrize("form", ["text of JSON", "messages"])
def test_a_chat_of_lm_eval_s_is_its_last_user_turn(echo, ft, form):
    """Its JSON fitted no item where the question holds a quote or a line end."""
    items(echo, *[[user(question(i))] for i in range(4)])
    chats = [[{"role": "system", "content": "s"}, user(question(i))] for i in range(4)]
    write_lines(echo / "samples_t.jsonl", [
        {"doc_id": i, "doc": {"instruction": "?"}, "resps": [[f"a{i}"]],
         "arguments": {"gen_args_0": {"arg_0": [json.dumps(chat)] if form == "text of JSON" else chat}}}
        for i, chat in enumerate(chats)
    ])  # fmt: skip
    done = ft("eval", "samples_t.jsonl", "--task", "task.yaml", "--out", "r", "--json")
    assert done.code == 0, done.err
    assert done.json["outcomes"]["pass"] == 4


def test_a_chat_of_promptfoo_s_is_its_last_user_turn(echo, ft):
    items(echo, *[[user(question(i))] for i in range(4)])
    rows = [
        {"promptIdx": 0, "provider": {"id": "m"}, "vars": {"word": f"word {i}"}, "response": {"output": f"a{i}"},
         "prompt": {"raw": json.dumps([{"role": "system", "content": "s"}, user([{"type": "text", "text": question(i)}])])}}
        for i in range(4)
    ]  # fmt: skip
    (echo / "pf.json").write_text(json.dumps({"evalId": "e", "results": {"version": 3, "results": rows}}))
    done = ft("eval", "pf.json", "--task", "task.yaml", "--out", "r", "--json")
    assert done.code == 0, done.err
    assert done.json["outcomes"]["pass"] == 4


@pytest.mark.parametrize("arguments", [[], [["Question: Under which law is it legal to park here?\nAnswer:", {}]]])
def test_a_longer_question_is_another_one(echo, ft, arguments):
    """Its answer was taken for that to the question which it ends with."""
    items(echo, [user("is it legal to park here?")], [user("may I smoke?")])
    asked = ["Under which law is it legal to park here?", "may I smoke?"]
    write_lines(echo / "samples_t.jsonl", [
        {"doc_id": i, "doc": {"question": text}, "resps": [[f"a{i}"]], "arguments": [] if i else arguments}
        for i, text in enumerate(asked)
    ])  # fmt: skip
    done = ft("eval", "samples_t.jsonl", "--task", "task.yaml", "--out", "r")
    assert (done.code, "1 of 2 lm-eval records fit no item" in done.err) == (2, True), done.err


@pytest.mark.parametrize("prompted", [True, False])
def test_a_question_behind_a_cue_is_that_question(echo, ft, prompted):
    """It fitted no item: `query` of many tasks of lm-eval's is the question between cues."""
    asked = ["is it legal to park here?", "may I smoke?"]
    items(echo, *[[user(text)] for text in asked])
    forms = [f"Question: {asked[0]}\nAnswer:", f"Answer briefly.\n\n{asked[1]}"]
    write_lines(echo / "samples_t.jsonl", [
        {"doc_id": i, "doc": {"query": text}, "resps": [[f"a{i}"]], "arguments": [[text, {}]] if prompted else []}
        for i, text in enumerate(forms)
    ])  # fmt: skip
    done = ft("eval", "samples_t.jsonl", "--task", "task.yaml", "--out", "r", "--json")
    assert done.code == 0, done.err
    assert done.json["outcomes"]["pass"] == 2


def test_a_chat_in_which_no_user_speaks_is_its_last_turn():
    assert asked_in('[{"role": "system", "content": "Say: hello"}]') == ("Say: hello",)
    assert asked_in('[{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]') == ("q",)
    assert asked_in("[1, 2] sorted?") == ("[1, 2] sorted?",)
    assert asked_in([]) == asked_in(None) == ()


def logged(echo, ft, lines):
    """(samples of the log of these outputs, rows of the report, rows of the report of the log)"""
    write_lines(echo / "out.jsonl", lines)
    found = []
    for target, folder in (("out.jsonl", "r"), ("log.json", "again")):
        done = ft("eval", target, "--task", "task.yaml", "--out", folder, "--json")
        assert done.code == 0, done.err
        found.append([json.loads(line) for line in (echo / folder / "results.jsonl").read_text().splitlines()])
        if folder == "r":
            assert ft("report", "r", "--to", "inspect", "--out", "log.json", "--json").code == 0
    return json.loads((echo / "log.json").read_text())["samples"], *found


def test_an_inspect_log_holds_every_turn_and_comes_back_whole(echo, ft):
    """Earlier answers were left out; a refusal and a request that was rejected came back as wrong answers."""
    call = {"id": "c1", "type": "function", "function": {"name": "get", "arguments": '{"x": 1}'}}
    turns = [user("hello"), {"role": "assistant", "content": "hi", "tool_calls": [call]},
             {"role": "tool", "tool_call_id": "c1", "content": "7"}, user("same")]  # fmt: skip
    items(echo, turns, [user("same")], [user("same")], tags={"id": "i1", "refusal": "no", "rejected": "no"})
    lines = [
        {"id": "i0", "output": "a0"},
        {"id": "i1", "refusal": "That is private."},
        {"id": "i2", "rejected": "too long"},
    ]
    samples, before, after = logged(echo, ft, lines)
    assert [m["role"] for m in samples[0]["input"]] == ["user", "assistant", "tool", "user"]
    assert [m["role"] for m in samples[0]["messages"]] == ["user", "assistant", "tool", "user", "assistant"]
    assert samples[0]["input"][1]["tool_calls"] == [
        {"id": "c1", "function": "get", "arguments": {"x": 1}, "type": "function"}
    ]
    assert (samples[0]["input"][1]["content"], samples[0]["input"][2]["tool_call_id"]) == ("hi", "c1")
    assert [row["outcome"] for row in before] == ["pass", "refused", "fail"]
    for key in ("id", "output", "outcome", "reason", "cause", "scores"):
        assert [row[key] for row in before] == [row[key] for row in after], key


def test_only_the_repeat_that_was_rejected_says_so():
    row = {"outcome": "fail", "outcomes": ["pass", "fail"], "outputs": ["a", ""], "output": "", "rejected": "too long"}
    assert [inspect_write._repeat(row, at).get("rejected") for at in (0, 1)] == [None, "too long"]
