"""What a bake-off may not say or spend: documents with answers in them, a gain that is noise, time for one evaluation of three."""

import json
import random
import time
from types import SimpleNamespace

import pytest

from tunegate.core.rows import parse_row
from tunegate.evalkit.bakeoff import arms, judge, page, plan
from tunegate.evalkit.bakeoff.plan import Member

LONG = f"A customer writes: {' '.join(f'detail{i}' for i in range(300))}. Which team takes it?"


def task_of(question, answer):
    turns = [{"role": "user", "content": question}, {"role": "assistant", **answer}]
    return SimpleNamespace(rows=[parse_row({"id": "e0", "messages": turns}, "t", 1)])


def call(**arguments):
    function = {"name": "find_flight", "arguments": json.dumps(arguments)}
    return {"content": None, "tool_calls": [{"id": "c1", "type": "function", "function": function}]}


@pytest.mark.parametrize(
    ("text", "answer", "leaks"),
    [
        (f"{LONG}\n\nThe Billing-escalation team.", {"content": "billing escalation team"}, True),
        (f"{LONG}\n\nAsk somebody.", {"content": "billing escalation team"}, False),
        (f'{LONG} find_flight(to="Oslo", seats=17)', call(seats=17, to="Oslo"), True),
        (f'{LONG} {{"name": "find_flight", "arguments": {{"to": "Oslo", "seats": 17}}}}', call(seats=17, to="Oslo"), True),
        (f"{LONG} find_flight(...)", call(seats=17, to="Oslo"), False),
        ("Which team?\n\nbilling", {"content": "billing"}, False),
        (f"{LONG} We do not know yet.", {"content": "no"}, False),  # a part of words
        (f"{LONG} No.", {"content": "no"}, True),
        (f"{LONG} Anybody.", {"content": "detail7"}, False),  # a part of the question
        (f"{LONG} {'See below. ' * 200} billing", {"content": "billing"}, False),  # of another question
        (f"{LONG} Ask. {'See below. ' * 200} {LONG} billing", {"content": "billing"}, True),
    ],
)  # fmt: skip
def test_a_document_is_compared_whole_and_with_calls_too(text, answer, leaks):
    """A question longer than a passage stood in two of them; an answer that only calls was no answer."""
    found = plan.leaking([("other.md", "Nothing."), ("faq.md", text)], task_of(LONG, answer))
    assert found == (("faq.md", "e0") if leaks else None)


def test_the_budget_keeps_time_for_the_evaluation_of_each_share(monkeypatch):
    monkeypatch.setattr(arms, "_seconds_per_step", lambda made, arm: 1.0)
    monkeypatch.setattr(arms, "_steps", lambda made, member: round(1000 * member.share))
    monkeypatch.setattr(arms, "_notes", lambda made: {})
    monkeypatch.setattr(arms, "_note_as", lambda *_: None)
    monkeypatch.setattr(arms, "_is_judged", lambda made, member: member.share == 0.25)
    members = [Member(arm="lora", share=share) for share in (0.25, 0.5, 1.0)]
    clock = arms.Clock(budget_s=600.0, evaluation_s=100.0)
    steps = arms._affordable(SimpleNamespace(members=lambda arm: members), "lora", members, 1, clock, {})
    assert sum(steps.values()) == pytest.approx(400, abs=4)


def reading(passed):
    rows = [
        {"id": f"i{k}", "outcome": "pass" if p else "fail", "scores": {"m": float(p)}} for k, p in enumerate(passed)
    ]
    return SimpleNamespace(
        rows=rows, report={"metrics": {"m": {"value": sum(passed) / len(passed), "low": 0, "high": 1}}}
    )


def words(monkeypatch, before, last, share=0.5):
    run = SimpleNamespace(manifest=SimpleNamespace(facts={"mask": {"rows": 100}, "steps": 5}))
    monkeypatch.setattr(judge, "Run", SimpleNamespace(open=lambda _: run))
    members = [Member(arm="lora", share=share), Member(arm="lora")]
    named = dict(zip([m.name for m in members], map(reading, (before, last)), strict=True))
    points = judge._curve(SimpleNamespace(run_folder=lambda _: None), members, named, "m")
    return page._more_data("lora", points)


def test_more_data_is_spoken_of_only_where_the_last_step_is_shown_to_gain(monkeypatch):
    """Said in 35 % of bake-offs of 50 items, where nothing was gained."""
    draw, said = random.Random(0), 0
    for _ in range(200):
        sure = [draw.random() < 0.4 for _ in range(50)]
        before, last = ([s or draw.random() < 0.2 for s in sure] for _ in range(2))
        said += "more data would probably help" in words(monkeypatch, before, last)
    assert said <= 16
    clear = words(monkeypatch, [k < 40 for k in range(100)], [k < 55 for k in range(100)], share=0.25)
    assert clear.startswith("lora from 100 to 100 rows: +15.0% [+10.")
    assert clear.endswith("more data would probably help.")
    assert words(monkeypatch, [True] * 5, [True] * 5).endswith("no clear gain.")


def test_documents_of_thousands_of_passages_are_looked_through_in_seconds():
    """Each question was sought in each document by itself."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(2000)]
    documents = [(f"d{i}", " ".join(draw.choices(words, k=150))) for i in range(5000)]
    task = SimpleNamespace(rows=[
        task_of(" ".join(draw.choices(words, k=12)), {"content": "yes"}).rows[0] for _ in range(300)
    ])  # fmt: skip
    begun = time.process_time()
    assert plan.leaking(documents, task) is None
    assert time.process_time() - begun < 3.0
