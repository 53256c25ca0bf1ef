import struct
import xml.etree.ElementTree as tree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunegate.advisor import break_even
from tunegate.advisor.plot import chart
from tunegate.advisor.prices import ApiPrice, find_offer, snapshot

QUICK = settings(max_examples=60, deadline=None)
OFFER = ApiPrice(provider="p", model="m", input_usd_mtok=1.0, output_usd_mtok=4.0)
SERVICES = st.builds(
    break_even.SelfHosted, usd_per_hour=st.one_of(st.just(0.0), st.floats(0.01, 30)), max_calls_per_s=st.floats(0.01, 100),
    once_usd=st.one_of(st.just(0.0), st.floats(1, 1e5)), upkeep_usd=st.sampled_from([0.0, 800.0]),
    max_replicas=st.sampled_from([None, 1, 3, 8]),
)  # fmt: skip
OFFERS = st.builds(
    ApiPrice, provider=st.just("p"), model=st.just("m"), input_usd_mtok=st.floats(0.01, 10), output_usd_mtok=st.floats(0.05, 30)
)  # fmt: skip


def own_and_api(own, offer, calls):
    return own.monthly_usd(calls), break_even.api_monthly_usd(offer, calls, 1000, 200)


def test_break_even_of_one_l4_against_the_reference():
    """One L4 at $0.805/h, nothing else counted, breaks even at 29.7k calls a day against gpt-5-mini."""
    own = break_even.SelfHosted(usd_per_hour=0.805, max_calls_per_s=1e6, once_usd=0, upkeep_usd=0)
    assert break_even.break_even(own, find_offer("openai/gpt-5-mini"), 1000, 200) == pytest.approx(29_700, rel=0.01)


def test_never_when_a_full_machine_costs_more():
    own = break_even.SelfHosted(usd_per_hour=10.0, max_calls_per_s=0.1)
    assert break_even.break_even(own, OFFER, 100, 10) is None


def test_a_crossing_that_the_next_replica_takes_back_is_no_break_even():
    """A replica carries 1,000 calls a day and earns a little more than its rent: only many of them pay the fixed cost."""
    own = break_even.SelfHosted(usd_per_hour=1.0, max_calls_per_s=3000 / 86_400, once_usd=0, upkeep_usd=1000)
    per_call = 1.2 * 730 / (1000 * 365 / 12)
    offer = ApiPrice(provider="p", model="m", input_usd_mtok=per_call * 1e3, output_usd_mtok=0.0)
    found = break_even.break_even(own, offer, 1000, 0)
    assert found is not None
    for calls in (found * 1.001, found * 1.3, found * 5):
        mine, theirs = own.monthly_usd(calls), break_even.api_monthly_usd(offer, calls, 1000, 0)
        assert mine <= theirs * (1 + 1e-6)


def test_a_stretch_that_is_cheaper_before_the_break_even_is_told():
    """reference: one L4 at $0.805/h breaks even at 71.5k calls a day against gpt-4o-mini, where it carries them."""
    own = break_even.SelfHosted(
        usd_per_hour=0.805, max_calls_per_s=125_864 / 86_400, once_usd=0, upkeep_usd=0, peak_factor=1
    )
    offer = find_offer("openai/gpt-4o-mini")
    settled, stretch = (f(own, offer, 1000, 200) for f in (break_even.break_even, break_even.cheaper_before))
    assert stretch == (pytest.approx(71_556, rel=1e-3), pytest.approx(125_864))
    assert settled == pytest.approx(2 * stretch[0])
    assert break_even.cheaper_before(own, find_offer("openai/gpt-5-mini"), 1000, 200) is None


@settings(max_examples=300, deadline=None)
@given(own=SERVICES, offer=OFFERS, part=st.floats(0.001, 0.999))
def test_own_is_cheaper_in_the_stretch_and_not_before_it(own, offer, part):
    stretch = break_even.cheaper_before(own, offer, 1000, 200)
    if stretch is None:
        return
    low, high = stretch
    mine, theirs = own_and_api(own, offer, low + (high - low) * part)
    assert mine <= theirs * (1 + 1e-6)
    if low > 1:
        mine, theirs = own_and_api(own, offer, low * (1 - 1e-6))
        assert mine >= theirs * (1 - 1e-4)
    mine, theirs = own_and_api(own, offer, high * (1 + 1e-6))
    assert mine is None or mine >= theirs * (1 - 1e-4)


@settings(max_examples=300, deadline=None)
@given(own=SERVICES, offer=OFFERS, further=st.floats(0, 1))
def test_from_the_break_even_on_own_is_never_dearer(own, offer, further):
    found = break_even.break_even(own, offer, 1000, 200)
    carried = own.max_calls_per_s * 86_400 / own.peak_factor * (own.max_replicas or 1e12)
    most = min(carried, break_even.MOST_CALLS) * (1 - 1e-9)
    if found is None:
        if own.max_replicas and most < break_even.MOST_CALLS * 0.99:
            mine, theirs = own_and_api(own, offer, most)
            assert mine >= theirs * (1 - 1e-6)
        return
    calls = found * (1 + 1e-9) + max(0.0, most - found) * further**3
    if calls <= most:
        mine, theirs = own_and_api(own, offer, calls)
        assert mine <= theirs * (1 + 1e-6)
    if found > 1.0:
        mine, theirs = own_and_api(own, offer, found * (1 - 1e-6))
        assert mine >= theirs * (1 - 1e-4)


@QUICK
@given(rent=st.floats(0.01, 50), capacity=st.floats(0.01, 100), calls=st.floats(1, 1e7), more=st.floats(1.01, 100))
def test_more_calls_never_favour_the_api_against_machines_owned(rent, capacity, calls, more):
    """On machines that carry the load, own cost over API cost falls with the load."""
    own = break_even.SelfHosted(usd_per_hour=rent, max_calls_per_s=1e12 * capacity)
    ratios = [own.monthly_usd(n) / break_even.api_monthly_usd(OFFER, n, 500, 100) for n in (calls, calls * more)]
    assert ratios[1] <= ratios[0] * (1 + 1e-9)


@QUICK
@given(own=SERVICES, calls=st.floats(1, 1e8), less=st.floats(0.01, 0.99))
def test_scale_to_zero_and_more_calls_never_cost_less_than_nothing(own, calls, less):
    cost = own.monthly_usd(calls)
    if cost is None:
        return
    smaller = own.monthly_usd(calls * less)
    assert 0 <= smaller <= cost


def test_hosted_open_weights_are_always_in_the_picture():
    for against in (None, find_offer("openai/gpt-5")):
        drawn = break_even.rivals_worth_drawing(snapshot(), "Llama-3.1-8B", against, 1000, 200)
        assert {o.provider for o in drawn if o.open_weights == "Llama-3.1-8B"} == {"groq", "together"}
        assert any(not o.open_weights for o in drawn)
    assert sum(bool(o.open_weights) for o in break_even.rivals_worth_drawing(snapshot(), "Mine", None, 1000, 200)) == 2


def png_size(data):
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def test_the_picture_has_axes_units_and_break_evens(advise, tmp_path):
    code, d, _ = advise("breakeven", "--plot", tmp_path / "b.svg", "--json")
    assert code == 0
    root = tree.fromstring((tmp_path / "b.svg").read_text())
    assert root.tag.endswith("svg")
    texts = " | ".join("".join(node.itertext()) for node in root.iter() if node.tag.endswith("text"))
    for wanted in (
        "calls per day",
        "USD per month",
        "your load: 10,000",
        "open weights, hosted",
        "break-even never",
        "$4,000 once",
    ):
        assert wanted in texts
    found = {o["against"]: o["break_even_calls_per_day"] for o in d["offers"]}
    assert f"{found['openai/gpt-5']:,} calls/day" in texts
    assert "groq/llama-3.1-8b-instant" in texts
    code, _, _ = advise("breakeven", "--plot", tmp_path / "b.png", "--against", "openai/gpt-5-mini")
    assert code == 0
    width, height = png_size((tmp_path / "b.png").read_bytes())
    assert width > 1000
    assert height > 600
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["b.png", "b.svg"]


def test_the_same_picture_twice(advise, tmp_path):
    for name in ("a.svg", "b.svg"):
        advise("breakeven", "--plot", tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_breakeven_in_the_terminal(advise, tmp_path):
    _, d, _ = advise("breakeven", "--json")
    assert any(row["break_even_calls_per_day"] == "never" for row in d["offers"])
    assert any(row["open_weights"] for row in d["offers"])
    code, _, captured = advise("breakeven", "--against", "openai/gpt-5")
    assert code == 0
    assert "calls a day +--" in captured.out
    assert "^ break-even at 15," in captured.out
    assert "no break-even: never" in advise("breakeven")[2].out
    for bad in (tmp_path / "b.pdf", tmp_path / "none" / "b.svg", tmp_path):
        code, _, captured = advise("breakeven", "--plot", bad)
        assert code == 2
        assert captured.out == ""
    assert advise("breakeven", "--model", "Llama-3.1-70B", "--gpu", "T4")[0] == 2


def test_the_mark_stands_under_the_crossing():
    points = [(10.0**k, 100.0, 10.0**k / 10) for k in range(1, 7)]
    lines = chart(points, 1000.0).splitlines()
    column = lines[-1].index("^")
    crossed = [line[column] for line in lines[:12] if len(line) > column and line[column] != " "]
    assert crossed == ["*"]
