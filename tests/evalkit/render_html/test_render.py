"""The report page as a string: escaping, policy, missing keys, what the verdict says. No browser."""

import base64
import copy
import hashlib
import json
import re
import unicodedata
from html.parser import HTMLParser

import pytest

from tunegate.core.statistics import quantile, wilson
from tunegate.core.visible_text import HIDDEN_RANGES
from tunegate.evalkit.render import html, html_plots, html_text, html_verdict
from tunegate.evalkit.render.html import render


class Page(HTMLParser):
    """Elements, attributes and text of a document, as a browser's parser would find them (script and style are raw)."""

    def __init__(self, document):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self.raw, self._inside = [], [], {}, None
        self.feed(document)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = f"{tag}:{dict(attrs).get('type', '')}"
            assert self._inside not in self.raw, f"a second {self._inside} element"
            self.raw[self._inside] = ""

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self._inside = None

    def handle_data(self, text):
        if self._inside:
            self.raw[self._inside] += text
        else:
            self.texts.append(text)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    @property
    def data(self):
        return json.loads(self.raw["script:application/json"])


@pytest.fixture
def plain(made):
    mine, theirs = made.make_rows(8)
    return made.make_report(mine, theirs), mine, theirs


def test_the_policy_names_exactly_the_style_and_the_script_of_the_page(plain):
    page = Page(render(*plain))
    policy = next(
        a["content"] for t, a in page.elements if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    for kind, raw in (("style-src", "style:"), ("script-src", "script:")):
        digest = base64.b64encode(hashlib.sha256(page.raw[raw].encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    assert "; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'" in policy
    assert "unsafe" not in policy
    assert "*" not in policy


def test_the_policy_stands_before_anything_it_governs(plain):
    document = render(*plain)
    assert document.index("Content-Security-Policy") < document.index("<style>") < document.index("<script")


def test_nothing_is_fetched_and_no_attribute_can_run(plain, hostile_report):
    for report in (plain, hostile_report):
        page = Page(render(*report))
        for tag, attributes in page.elements:
            assert tag not in ("img", "link", "iframe", "object", "embed", "base", "audio", "video", "source"), tag
            for name, value in attributes.items():
                assert not name.startswith("on"), (tag, name)
                assert name not in ("style", "src", "srcset", "action", "formaction", "data", "xlink:href"), (tag, name)
                assert name != "href" or value.startswith("#"), value
        assert not re.search(r"(https?:)?//[a-z]", page.raw["style:"])
        assert not re.search(
            r"https?://|\binnerHTML\b|\bouterHTML\b|insertAdjacentHTML|\beval\(|document\.write", page.raw["script:"]
        )
        assert "url(" not in page.raw["style:"]
        assert "@import" not in page.raw["style:"]


def test_hostile_text_stays_text_and_survives_unchanged(hostile_report, hostile):
    document = render(*hostile_report)
    document.encode("utf-8")
    page = Page(document)
    assert [tag for tag, _ in page.elements].count("script") == 2
    items = page.data["items"]
    for text, item in zip(hostile.values(), items, strict=False):
        assert item["candidate"]["text"] == text
        assert item["expected"] == text
        assert item["candidate"]["reason"] == text
    assert len(items[-1]["candidate"]["text"]) == 1_000_003
    assert "{{data}} {{script}} $& \\1" in page.text
    assert "window.hacked = 1; alert(1)" in page.text


def test_no_hidden_character_reaches_the_static_part(hostile_report):
    document = render(*hostile_report)
    static = document[: document.index('<script type="application/json"')]
    found = {f"U+{ord(c):04X}" for c in static if any(low <= ord(c) <= high for low, high in HIDDEN_RANGES)}
    assert found == set()
    assert '<span class="hidden-char" title="U+202E">RLO</span>' in static
    assert '<span class="hidden-char" title="U+001B">ESC</span>[31m' in static
    assert '<span class="hidden-char" title="U+0000">NUL</span>' in static


def test_every_control_and_format_character_is_named_or_a_visible_sign():
    # Prepended concatenation marks and hieroglyph joiners are format characters that show a sign or shape of their own.
    signs = {0x600, 0x601, 0x602, 0x603, 0x604, 0x605, 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}
    signs |= set(range(0x13430, 0x13460)) | {0x09, 0x0A}
    for code in range(0x110000):
        if unicodedata.category(chr(code)) in ("Cc", "Cf", "Zl", "Zp", "Cs") and code not in signs:
            assert any(low <= code <= high for low, high in HIDDEN_RANGES), f"U+{code:04X}"


@pytest.mark.parametrize("value", [None, "gone", [], {}, "text", 7, [1, None], {"a": None}])
def test_any_key_may_be_missing_or_of_another_type(plain, value):
    report, mine, theirs = plain
    for path in [(key,) for key in report] + [
        (key, inner) for key in report if isinstance(report[key], dict) for inner in report[key]
    ]:
        changed = copy.deepcopy(report)
        place = changed[path[0]] if len(path) == 2 else changed
        if value == "gone":
            del place[path[-1]]
        else:
            place[path[-1]] = value
        Page(render(changed, mine, theirs))


@pytest.mark.parametrize("value", [None, "gone", [], {}, "text", 7, [1, None], float("nan"), float("inf")])
def test_any_key_of_a_row_may_be_missing_or_of_another_type(plain, value):
    report, mine, theirs = plain
    for key in mine[0]:
        changed = copy.deepcopy(mine)
        if value == "gone":
            del changed[0][key]
        else:
            changed[0][key] = value
        assert len(Page(render(report, changed, theirs)).data["items"]) == len(mine)
        Page(render(report, mine, changed))


def test_an_empty_report_and_a_lone_run_render(plain):
    report, mine, _ = plain
    assert "No gate was applied" in Page(render({}, [])).text
    alone = Page(render({**report, "comparison": None, "decision": None}, mine))
    assert "Baseline" not in alone.text
    assert alone.data["compared"] is False


def test_equal_input_gives_equal_bytes(plain):
    assert render(*plain) == render(*copy.deepcopy(plain))


def test_the_verdict_is_said_in_plain_words(made):
    mine, theirs = made.make_rows(30)
    said = {
        word: Page(render(made.make_report(mine, theirs, word), mine, theirs)).text
        for word in ("PASS", "FAIL", "INCONCLUSIVE")
    }
    assert "assistant-tools-v2 may replace baseline . All 3 conditions are shown by the data." in said["PASS"]
    assert (
        "assistant-tools-v2 may not replace baseline . The data show the contrary of 1 of 3 conditions: json_valid."
        in said["FAIL"]
    )
    assert "Not yet known whether assistant-tools-v2 may replace baseline" in said["INCONCLUSIVE"]
    assert "About 640 items would settle it; this run had 30." in said["INCONCLUSIVE"]
    assert "exact is not worse than the baseline by 2 pts or more" in said["PASS"]
    assert "json_valid is at least 90%" in said["PASS"]
    assert "latency_p95_ms is at most 800 ms" in said["PASS"]


def test_the_baseline_score_comes_from_the_four_counts():
    counts = {"both_pass": 40, "broken": 5, "fixed": 20, "both_fail": 35, "difference": 0.15}
    found = html_verdict.baseline_metric(counts, {"value": 0.6}, {})
    expected = wilson(45, 100)
    assert (found["value"], found["low"], found["high"]) == (expected.value, expected.low, expected.high)
    assert html_verdict.baseline_metric({"difference": 0.15}, {"value": 0.6}, {})["value"] == pytest.approx(0.45)
    assert html_verdict.baseline_metric(counts, {"value": 0.6}, {"value": 0.44})["value"] == 0.44


def test_an_infrastructure_error_is_neither_fixed_nor_broken(made):
    mine, theirs = made.make_rows(4)
    for row, base, pair in zip(
        mine,
        theirs,
        [("pass", "fail"), ("fail", "pass"), ("infra_error", "pass"), ("pass", "infra_error")],
        strict=True,
    ):
        row["outcome"], base["outcome"] = pair
    items = Page(render({}, mine, theirs)).data["items"]
    assert [item["change"] for item in items] == ["fixed", "broken", "", ""]


def test_numbers_carry_their_unit():
    assert html_text.number(0.8754, rate=True) == "87.5%"
    assert html_text.number(1.0, rate=True) == "100%"
    assert html_text.number(812.4, metric="latency_p95_ms") == "812 ms"
    assert html_text.number(float("nan")) == "–"
    assert html_text.number(True) == "–"
    assert html_text.points(-0.021) == "−2.1 pts"
    assert html_text.points(-0.00001) == "0 pts"
    assert html_text.interval(0.81, 0.921, html_text.points) == "+81.0 to +92.1 pts"
    assert html_text.is_rate("json_valid", 0.5)
    assert not html_text.is_rate("latency_p95_ms", 0.5)
    assert not html_text.is_rate("judge", 3.5)


def test_plots_place_values_on_their_axis():
    plot = html_plots.interval_plot(
        [{"value": 0.5, "low": 0.25, "high": 0.9, "series": "candidate"}], (0.0, 1.0), "label"
    )
    assert 'cx="50.00%"' in plot
    assert 'x1="25.00%" x2="90.00%"' in plot
    assert 'cx="100.00%"' in html_plots.interval_plot([{"value": 7}], (0.0, 1.0), "label")
    bars = html_plots.histogram([0.5, 0.5, 3.5, 99.0], (0.0, 4.0), 4, "candidate", "label")
    assert re.findall(r'<rect[^>]*x="([\d.]+)%"[^>]*height="([\d.]+)"', bars) == [("0.000", "54.0"), ("75.000", "54.0")]


def test_quantiles_and_axis_ends():
    assert quantile([1, 2, 3, 4], 0.5) == 2  # Hyndman and Fan type 1: an observation, as the gate takes it
    assert quantile([1, 2, 3, 4, 5], 0.95) == 5
    assert [html_plots.nice_ceiling(v) for v in (0, 0.9, 1.2, 410, 6001)] == [1.0, 1.0, 1.5, 500.0, 8000.0]


def test_a_slice_with_many_values_shows_the_largest_first_and_folds_the_rest(plain):
    report, mine, theirs = plain
    content = {"metrics": {"exact": {"value": 0.5, "low": 0.4, "high": 0.6}}}
    report["slices"] = {"intent": {f"label-{n:02}": {"n": n, **content} for n in range(1, 78)}}
    report["comparison"]["slices"] = []
    document = render(report, mine, theirs)
    assert document.index("label-77") < document.index("65 more, with fewer items") < document.index("label-65")


def test_one_p95_on_the_page(made):
    """The strip at the top, the quantiles under the histogram and the gate's figure are one number."""
    mine, theirs = made.make_rows(97)
    report = made.make_report(mine, theirs)
    p95 = html_text.number(report["latency"]["latency_ms"]["p95"], metric="_ms")
    text = Page(render(report, mine, theirs)).text
    assert text.count(p95) >= 4  # strip, condition, quantiles, figures that a gate can name


def test_what_was_not_checked_and_what_was_overlooked_stands_under_the_verdict(plain):
    report, mine, theirs = plain
    report["comparison"] |= {"unknown": ["prompts", "template"], "allowed_differences": ["generation"]}
    document = render(report, mine, theirs)
    text = Page(document).text
    assert (
        "Not known for one of the two, so not checked (2 of 5): the messages that were sent; the prompts' token ids"
        in text
    )
    assert "Compared although these differ: the generation settings." in text
    assert "2 items stand in the training data" in text
    assert document.index('class="caveats"') < document.index('id="scores"')
    report["comparison"] |= {"unknown": [], "allowed_differences": []}
    report["leakage"] = None
    assert 'class="caveats"' not in render(report, mine, theirs)


def test_figures_a_gate_can_name_stand_with_their_intervals(plain):
    report, mine, theirs = plain
    text = Page(render(report, mine, theirs)).text
    assert "4 figures that a gate can name" in text
    assert "truncated_rate 0% 0 to 3.0% 0% 0 to 3.0%" in text
    assert "infra_error_rate 0% 0%" in text  # counted, not sampled
    assert "Cost per right answer $0.000213" in text
    low = html_text.number(report["operations"]["latency_p95_ms"]["low"], metric="_ms")
    assert f"{low} or more" in text  # too few answers for an upper end


def test_an_item_carries_its_reasons_repeats_cost_and_context(plain):
    report, mine, theirs = plain
    mine[0] |= {
        "scores": {"json_valid": 1.0, "exact": 0.0, "partial": 0.5},
        "reasons": {"exact": "/a: expected 1, got 2", "partial": "half"},
        "judged": {"exact": "over by one"},
        "outcomes": ["pass", "fail", "infra_error"],
        "outputs": ["one", "two", ""],
        "latencies_ms": [10.0, 20.0, None],
        "cost_usd": 0.00042,
        "attempts": 3,
        "context": {"ids": ["r1", "r2"]},
    }
    found = Page(render(report, mine, theirs)).data["items"][0]["candidate"]
    assert found["scores"]["exact"] == {"pass": False, "score": "0", "reason": "/a: expected 1, got 2"}
    assert found["scores"]["partial"]["reason"] == "half"
    assert found["scores"]["json_valid"] == {"pass": True, "score": "1", "reason": ""}
    assert found["repeats"] == [["pass", "one", 10.0], ["fail", "two", 20.0], ["infra_error", "", None]]
    assert (found["cost"], found["attempts"], json.loads(found["context"])) == ("$0.00042", 3, {"ids": ["r1", "r2"]})
    assert "repeats" not in Page(render(report, mine, theirs)).data["items"][1]["candidate"]


def test_a_page_of_many_items_holds_what_changed_and_what_failed_and_says_so(made, monkeypatch):
    mine, theirs = made.make_rows()
    report = made.make_report(mine, theirs)
    changed = {flip["id"] for flip in report["comparison"]["flips"]}
    wrong = {row["id"] for row in mine if row["outcome"] != "pass"}
    assert len(changed) < len(changed | wrong) < len(mine)

    def ids(limit):
        monkeypatch.setattr(html, "PAGE_ITEMS", limit)
        page = render(report, mine, theirs)
        found = [item["id"] for item in Page(page).data["items"]]
        assert found == [row["id"] for row in mine if row["id"] in set(found)], "in the order of the results"
        assert (f"{limit} of the {len(mine)} items stand on this page" in page) == (limit < len(mine))
        return set(found)

    assert ids(len(changed)) == changed
    assert ids(len(changed | wrong)) == changed | wrong
    assert changed | wrong < ids(len(mine) - 1)
    assert len(ids(len(mine))) == len(mine)
