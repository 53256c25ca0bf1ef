"""The report page in real headless Chromium: use it, attack it, measure it."""

import time
from urllib.parse import quote

import pytest

from tunegate.core.visible_text import HIDDEN_RANGES
from tunegate.evalkit.render.html import render

pytestmark = pytest.mark.slow
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}

# Lowest contrast (WCAG 2.2, 1.4.3: relative luminance with sRGB) of any text that is shown, with the text it is found at.
LOWEST_CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgba = (color) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255]; };
  const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a), 1];
  const luminance = (c) => { const [r, g, b] = c.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (node) => { const layers = []; for (let at = node; at; at = at.parentElement) layers.push(rgba(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255, 1]); };
  let lowest = { ratio: 99, text: '', n: 0 };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || node.closest('script, style, svg, :disabled') || !node.checkVisibility({ visibilityProperty: true })) continue;
    if (node.getBoundingClientRect().width < 2) continue;
    const ground = behind(node);
    const [a, b] = [luminance(over(rgba(getComputedStyle(node).color), ground)), luminance(ground)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    lowest.n += 1;
    if (ratio < lowest.ratio) lowest = { ...lowest, ratio, text: node.className + ': ' + walker.currentNode.data.slice(0, 60) };
  }
  return lowest;
}"""


@pytest.fixture(scope="module")
def site(made, hostile_report, tmp_path_factory):
    """{name: (path, report, rows, baseline rows)}."""
    folder = tmp_path_factory.mktemp("reports")
    cases = {"hostile": hostile_report}
    for name, n, decision in (
        ("pass", 120, "PASS"),
        ("fail", 120, "FAIL"),
        ("open", 120, "INCONCLUSIVE"),
        ("large", 5000, "PASS"),
    ):
        mine, theirs = made.make_rows(n)
        cases[name] = (made.make_report(mine, theirs, decision), mine, theirs)
    mine = made.make_rows(120)[0]
    cases["alone"] = (made.make_report(mine, None, None), mine, None)
    for name, case in cases.items():
        (folder / f"{name}.html").write_text(render(*case), encoding="utf-8")
    return {name: (folder / f"{name}.html", *case) for name, case in cases.items()}


@pytest.fixture
def visit(browser, site):
    """Open a report; fails the test on any dialog, error, console message or request beyond the file itself."""
    contexts, problems = [], []

    def start(name, fragment="", viewport=DESKTOP, **options):
        context = browser.new_context(viewport=viewport, **options)
        contexts.append(context)
        page = context.new_page()
        path = site[name][0]
        page.on("dialog", lambda dialog: (problems.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("pageerror", lambda error: problems.append(f"error {error}"))
        page.on("console", lambda message: problems.append(f"console {message.text}"))
        page.on(
            "request",
            lambda request: request.url.startswith(path.as_uri()) or problems.append(f"request {request.url}"),
        )
        page.goto(path.as_uri() + fragment)
        return page

    start.problems = problems
    yield start
    for context in contexts:
        context.close()
    assert problems == []


def ids(page):
    return page.locator("tr.item .item-id").all_inner_texts()


def status(page):
    return page.locator("#count").inner_text()


def test_opens_with_the_verdict_first_and_the_broken_items_on_top(visit, site):
    page = visit("pass")
    assert page.title() == "assistant-tools-v2"
    assert page.locator(".verdict-word").inner_text().split() == ["✓", "PASS"]
    assert page.locator(".conditions tbody tr").count() == 3
    assert status(page) == "120 items, 1 to 50 shown"
    broken = [flip["id"] for flip in site["pass"][1]["comparison"]["flips"] if flip["direction"] == "broken"]
    assert len(broken) == 4
    assert ids(page)[:4] == broken


def test_filters_show_exactly_the_items_they_name(visit, site):
    _, report, mine, _ = site["pass"]
    page = visit("pass")
    flips = report["comparison"]["flips"]
    cases = {
        ("change", "broken"): {flip["id"] for flip in flips if flip["direction"] == "broken"},
        ("outcome", "unparsable"): {row["id"] for row in mine if row["outcome"] == "unparsable"},
        ("cause", "wrong_value"): {row["id"] for row in mine if row["cause"] == "wrong_value"},
        ("validator", "schema:fail"): {row["id"] for row in mine if not row["scores"]["schema"]["pass"]},
        ("slice", '["topic","travel"]'): {row["id"] for row in mine if row["tags"]["topic"] == "travel"},
    }
    for (name, value), expected in cases.items():
        page.locator(f"#filter-{name}").select_option(value)
        assert expected
        assert set(ids(page)) == expected
        assert status(page) == f"{len(expected)} of 120 items match"
        page.locator("#reset").click()
        assert status(page).startswith("120 items")
    page.locator("#filter-slice").select_option('["topic","travel"]')
    page.locator("#filter-validator").select_option("exact:fail")
    assert set(ids(page)) == {
        row["id"] for row in mine if row["tags"]["topic"] == "travel" and row["outcome"] != "pass"
    }


def test_counts_in_the_summary_lead_to_their_items(visit, site):
    page = visit("pass")
    page.locator(".keys-row button", has_text="broken").click()
    assert status(page) == "4 of 120 items match"
    page.locator(".slices button", has_text="travel").click()
    travel = [row for row in site["pass"][2] if row["tags"]["topic"] == "travel"]
    assert status(page) == f"{len(travel)} of 120 items match"
    page.get_by_label("2 broken, cause wrong_value").click()
    assert status(page) == "2 of 120 items match"


def test_sorts_by_header_and_by_menu(visit, site):
    _, _, mine, _ = site["pass"]
    page = visit("pass")
    slowest = [row["id"] for row in sorted(mine, key=lambda row: -row["latency_ms"])]
    column = page.get_by_role("table", name="Items").get_by_role("columnheader", name="ms")
    header = column.get_by_role("button")
    header.click()
    assert ids(page) == slowest[:50]
    assert column.get_attribute("aria-sort") == "descending"
    header.click()
    assert ids(page) == [row["id"] for row in sorted(mine, key=lambda row: row["latency_ms"])][:50]
    page.locator("#sort").select_option("order")
    assert ids(page) == [row["id"] for row in mine[:50]]


def test_searches_questions_answers_and_reasons(visit, site):
    _, _, mine, theirs = site["pass"]
    page = visit("pass")
    page.locator("#search").fill("KRAKÓW weather")
    page.locator("#count", has_text="match").wait_for()
    texts = {
        row["id"]: (row["messages"][1]["content"] + row["output"] + row["expected"] + base["output"]).lower()
        for row, base in zip(mine, theirs, strict=True)
    }
    expected = {name for name, text in texts.items() if "kraków" in text and "weather" in text}
    assert expected
    assert set(ids(page)) == expected
    assert page.locator("tr.item mark").first.inner_text().lower() in ("kraków", "weather")
    page.locator("#search").fill("no such text (.*")
    page.locator("#count", has_text="No item matches").wait_for()
    assert ids(page) == []


def test_an_item_opens_with_its_answers_side_by_side_and_the_difference_marked(visit, site):
    _, report, mine, _ = site["pass"]
    wrong = next(
        f["id"] for f in report["comparison"]["flips"] if f["direction"] == "broken" and f["cause"] == "wrong_function"
    )
    row = next(row for row in mine if row["id"] == wrong)
    page = visit("pass")
    page.get_by_role("button", name=wrong, exact=True).click()
    panel = page.get_by_role("region", name=f"Item {wrong}")
    boxes = [panel.locator(f".answer-panel.{name}").bounding_box() for name in ("expected", "baseline", "candidate")]
    assert boxes[0]["y"] == boxes[1]["y"] == boxes[2]["y"]
    assert boxes[0]["x"] < boxes[1]["x"] < boxes[2]["x"]
    removed = "".join(panel.locator(".candidate del").all_inner_texts())
    assert removed == "loan."
    assert "same as expected" in panel.locator(".baseline .answer-notes").inner_text()
    panel.get_by_label("Lay out JSON").uncheck()
    panel.get_by_label("Mark differences from").select_option("none")
    assert panel.locator(".candidate pre").inner_text() == row["output"]
    panel.get_by_text("Prompt, 2 turns").click()
    assert panel.locator(".turns pre").nth(1).inner_text() == row["messages"][1]["content"]


def test_broken_json_is_compared_with_the_expected_text_as_written(visit, site):
    flips = site["pass"][1]["comparison"]["flips"]
    broken = next(f["id"] for f in flips if f["direction"] == "broken" and f["cause"] == "invalid_json")
    page = visit("pass")
    page.get_by_role("button", name=broken, exact=True).click()
    assert page.locator(".candidate del").all_inner_texts() == ["}"]
    assert page.locator(".candidate ins").count() == 0


def test_laid_out_json_keeps_every_token_as_it_was_written(browser, made, tmp_path):
    mine, theirs = made.make_rows(1)
    mine[0]["output"] = '{"b": 1.0, "a": 12345678901234567890, "a": "x\\u0041\\"y", "c": [], "d": {}, "e": [1e5, null]}'
    page = browser.new_page()
    (tmp_path / "page.html").write_text(render(made.make_report(mine, theirs), mine, theirs), encoding="utf-8")
    page.goto((tmp_path / "page.html").as_uri())
    page.locator(".item-id").click()
    page.get_by_label("Mark differences from").select_option("none")
    shown = page.locator(".candidate pre").inner_text()
    page.close()
    lines = [
        "{",
        '  "a": 12345678901234567890,',
        '  "a": "x\\u0041\\"y",',
        '  "b": 1.0,',
        '  "c": [],',
        '  "d": {},',
        '  "e": [',
        "    1e5,",
        "    null",
        "  ]",
        "}",
    ]
    assert shown.split("\n") == lines


def test_hostile_answers_are_shown_as_text_and_run_nothing(visit, site, hostile):
    page = visit("hostile")
    page.locator("#sort").select_option("order")
    page.locator("tr.item").first.wait_for()
    for index, text in enumerate(hostile.values()):
        page.locator(".item-id").nth(index).click()
        panel = page.locator(".panel-body")
        for summary in panel.locator("summary").all():
            summary.click()
        for mark in ("none", "expected", "answers"):
            panel.get_by_label("Mark differences from").select_option(mark)
        panel.get_by_label("Mark differences from").select_option("none")
        candidate = panel.locator(".candidate pre").evaluate("node => node.textContent")
        for sign, named in (
            ("\x1b", "ESC"),
            ("\u202e", "RLO"),
            ("\u202c", "PDF"),
            ("\0", "NUL"),
            ("\u2066", "LRI"),
            ("\U000e0068", "U+E0068"),
            ("\ud83d", "U+D83D"),
            ("\u2028", "LSEP"),
            ("\ufeff", "BOM"),
        ):
            if sign in text:
                assert named in candidate
                assert sign not in candidate
        if text.isprintable():
            assert candidate == text
    shown = page.evaluate(
        """() => [...document.querySelectorAll('body *:not(script)')].flatMap((node) => [node.title, node.ariaLabel ?? '',
          ...[...node.childNodes].filter((child) => child.nodeType === Node.TEXT_NODE).map((child) => child.data)]).join('')"""
    )
    assert [f"U+{ord(c):04X}" for c in shown if any(low <= ord(c) <= high for low, high in HIDDEN_RANGES)] == []
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, iframe, #table-place script, #table-place style, #table-place a").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= DESKTOP["width"]


def test_a_megabyte_is_cut_with_a_button_that_shows_all_of_it(visit):
    page = visit("hostile")
    page.locator("#search").fill("long")
    page.locator("#count", has_text="1 of").wait_for()
    page.locator(".item-id").click()
    panel = page.locator(".candidate")
    assert len(panel.locator("pre").inner_text()) < 4100
    button = panel.get_by_role("button", name="Show all 1,000,003 characters")
    button.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector('.candidate pre').textContent.length") == 1_000_003 - 1 + len("RLO")
    assert page.evaluate("document.activeElement === document.querySelector('.candidate pre')")


def test_the_policy_stops_what_would_get_past_the_escaping(visit):
    page = visit("pass")
    outcome = page.evaluate(
        """async () => {
          const found = {};
          const script = document.createElement('script');
          try { script.textContent = 'window.hacked = 1'; document.body.append(script); } catch (error) { found.script = error.name; }
          try { document.body.innerHTML = '<b>x</b>'; } catch (error) { found.markup = error.name; }
          try { await fetch('https://example.org/'); found.fetch = 'sent'; } catch (error) { found.fetch = error.name; }
          found.hacked = window.hacked ?? null;
          return found;
        }"""
    )
    assert outcome == {"script": "TypeError", "markup": "TypeError", "fetch": "TypeError", "hacked": None}
    assert all("Content Security Policy" in problem or "Trusted" in problem for problem in visit.problems), (
        visit.problems
    )
    assert visit.problems
    visit.problems.clear()


def test_five_thousand_items_stay_quick(visit, site):
    began = time.perf_counter()
    page = visit("large")
    page.locator("tr.item").first.wait_for()
    assert time.perf_counter() - began < 6
    assert page.locator("tr.item").count() == 50
    timed = page.evaluate(
        """async () => {
          const took = {};
          const time = async (name, act, wait) => { const start = performance.now(); act(); if (wait) await wait();
            document.body.offsetHeight; took[name] = performance.now() - start; };
          const count = document.getElementById('count');
          const search = document.getElementById('search');
          const changed = async () => { const old = count.textContent; while (count.textContent === old) await new Promise(requestAnimationFrame); };
          await time('search', () => { search.value = 'kraków'; search.dispatchEvent(new Event('input')); }, changed);
          await time('search_again', () => { search.value = 'kraków train'; search.dispatchEvent(new Event('input')); }, changed);
          document.getElementById('reset').click();
          await time('filter', () => { const s = document.getElementById('filter-change'); s.value = 'broken'; s.dispatchEvent(new Event('change')); });
          document.getElementById('reset').click();
          await time('sort', () => { const s = document.getElementById('sort'); s.value = 'slow'; s.dispatchEvent(new Event('change')); });
          await time('page', () => document.getElementById('next').click());
          await time('open', () => document.querySelector('.item-id').click());
          return took;
        }"""
    )
    print({name: round(ms) for name, ms in timed.items()})
    # The search waits 90 ms for the next key. 400 ms is the Doherty threshold (1982), at which a reader stays in the flow.
    assert all(ms < 400 for name, ms in timed.items() if name != "search"), timed
    assert timed["search"] < 1000, timed


@pytest.mark.parametrize("width", [360, 600, 820, 1024])
@pytest.mark.parametrize("name", ["pass", "open", "alone", "hostile"])
def test_no_width_needs_a_sideways_scroll(visit, name, width):
    page = visit(name, viewport={**PHONE, "width": width}, device_scale_factor=2, has_touch=True)
    assert page.locator("tr.item").count() <= (20 if width == 360 else 50)
    page.locator(".item-id").first.click()
    page.locator(".panel-body summary").first.click()
    for details in page.locator("details.rest").all():
        details.locator("summary").click()
    wide = page.evaluate(
        "[...document.querySelectorAll('main *')].filter((n) => n.getBoundingClientRect().right > innerWidth + 1 && !n.closest('.visually-hidden, pre, thead, caption, svg')).map((n) => n.className || n.tagName).slice(0, 5)"
    )
    assert wide == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["pass", "fail", "open", "alone", "hostile"])
def test_every_text_has_the_contrast_of_wcag_aa(visit, name, scheme):
    page = visit(name, color_scheme=scheme)
    page.locator(".item-id").first.click()
    page.locator(".panel-body summary").first.click()
    found = page.evaluate(LOWEST_CONTRAST)
    assert found["n"] > 100
    assert found["ratio"] >= 4.5, found
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(ground.split("(")[1].split(",")[0]) < 60) == (scheme == "dark")


def test_the_keyboard_does_it_all(visit, site):
    page = visit("pass")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the items"
    page.keyboard.press("Enter")
    page.keyboard.press("j")
    names = ids(page)
    focused = "document.activeElement.textContent"
    assert page.evaluate(focused) == names[0]
    page.keyboard.press("Enter")
    assert page.locator("tr.open-panel").count() == 1
    assert page.locator(".item-id").first.get_attribute("aria-expanded") == "true"
    page.keyboard.press("j")
    assert page.evaluate(focused) == names[1]
    assert page.get_by_role("region", name=f"Item {names[1]}").is_visible()
    page.keyboard.press("k")
    page.keyboard.press("Escape")
    assert page.locator("tr.open-panel").count() == 0
    assert page.evaluate(focused) == names[0]
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused) == names[1]
    page.keyboard.press("]")
    assert page.locator("#page-now").inner_text() == "Page 2 of 3"
    page.keyboard.press("b")
    assert status(page) == "4 of 120 items match"
    page.keyboard.press("a")
    page.keyboard.press("/")
    page.keyboard.type("bjf")
    assert page.locator("#search").input_value() == "bjf"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") != "search"
    page.keyboard.press("?")
    assert page.get_by_role("dialog", name="Keyboard").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible()


def test_moving_past_the_end_turns_the_page(visit):
    page = visit("pass")
    page.locator(".item-id").nth(49).focus()
    page.keyboard.press("j")
    assert page.locator("#page-now").inner_text() == "Page 2 of 3"
    assert page.evaluate("document.activeElement.textContent") == ids(page)[0]
    page.keyboard.press("k")
    assert page.locator("#page-now").inner_text() == "Page 1 of 3"
    assert page.evaluate("document.activeElement.textContent") == ids(page)[49]


def test_a_link_opens_the_view_it_was_copied_from(visit, site):
    _, _, mine, _ = site["pass"]
    page = visit("pass")
    page.locator("#filter-slice").select_option('["topic","finance"]')
    page.locator(".item-id").nth(3).click()
    kept = page.evaluate("location.hash")
    again = visit("pass", fragment=kept)
    assert ids(again) == ids(page)
    assert again.locator("tr.item.open .item-id").inner_text() == page.locator("tr.item.open .item-id").inner_text()
    last = visit("pass", fragment="#item=" + quote(mine[-1]["id"]) + "&sort=order")
    assert last.locator("tr.item.open .item-id").inner_text() == mine[-1]["id"]
    assert (
        visit("pass", fragment="#slice=%5Bbroken&sort=nothing")
        .locator("#count")
        .inner_text()
        .startswith("No item matches")
    )


def test_a_screen_reader_finds_its_way(visit):
    page = visit("pass")
    for role, name in (
        ("banner", None),
        ("main", None),
        ("contentinfo", None),
        ("navigation", "Sections"),
        ("navigation", "Pages of items"),
        ("search", "Filter the items"),
    ):
        assert page.get_by_role(role, name=name).count() == 1, role
    for name in ("Scores", "What changed", "Speed and length", "Items", "Provenance"):
        assert page.get_by_role("region", name=name, exact=True).count() == 1
        assert page.get_by_role("heading", name=name, exact=True, level=2).count() == 1
    table = page.get_by_role("table", name="Items")
    assert table.get_by_role("columnheader").count() == 6
    assert table.get_by_role("rowheader").count() == 50
    assert page.get_by_role("status").inner_text() == "120 items, 1 to 50 shown"
    assert page.get_by_role("img").count() > 8
    assert page.get_by_role("img", name="exact: candidate").count() == 1
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, input, select, summary, [role=img]')].filter((n) => !(n.ariaLabel || n.labels?.length || n.textContent.trim())).length"
    )
    assert unnamed == 0
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.evaluate(
        "[...document.querySelectorAll('[id]')].length === new Set([...document.querySelectorAll('[id]')].map((n) => n.id)).size"
    )


def test_without_scripts_the_verdict_and_scores_still_stand(visit):
    page = visit("fail", java_script_enabled=False)
    assert "may not replace" in page.locator(".verdict-why").inner_text()
    assert page.locator(".scores tbody tr").count() == 3
    assert page.get_by_text("The list of items needs JavaScript").is_visible()


def test_print_keeps_the_content_and_drops_the_controls(visit):
    page = visit("pass")
    page.emulate_media(media="print")
    assert not page.locator("#filters").is_visible()
    assert not page.locator("#pager").is_visible()
    assert page.locator(".verdict-word").is_visible()
    assert page.locator("tr.item").first.is_visible()


def test_a_closed_item_above_does_not_move_the_one_that_opens(visit):
    page = visit("pass")
    page.locator(".item-id").nth(2).click()
    target = page.locator(".item-id").nth(5)
    target.scroll_into_view_if_needed()
    before = target.bounding_box()["y"]
    target.click()
    assert abs(target.bounding_box()["y"] - before) < 2
