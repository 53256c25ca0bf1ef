"""How long `Retry-After` asks to wait, however an endpoint spells it."""

import time
from datetime import UTC, datetime, timedelta

from tunegate.serve.http_errors import seconds_of


def test_a_date_without_a_zone_is_in_utc_and_one_that_is_none_asks_for_nothing(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        soon = (datetime.now(UTC) + timedelta(seconds=20)).strftime("%a, %d %b %Y %H:%M:%S")
        for zone in ("", " -0000", " GMT"):
            assert 10 < seconds_of(soon + zone) <= 20, zone
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()
    assert seconds_of("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0, "over already"
    for odd in (f"Mon, 01 Jan {'9' * 20} 00:00:00 GMT", f"Mon, 01 Jan 2020 00:00:00 +{'9' * 20}", " ", "1.5"):
        assert seconds_of(odd) is None, odd
