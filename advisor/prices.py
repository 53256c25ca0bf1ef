"""API prices: a dated snapshot for quick answers, the genai-prices package (MIT) for everything else, a user's file."""

import datetime
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tunegate.advisor.facts import number, read_csv_lines, table
from tunegate.core.errors import UserError, nearest

NEEDED = ("provider", "model", "input_usd_mtok", "output_usd_mtok")
KEPT = (
    "cached_usd_mtok",
    "open_weights",
    "params_b",
    "tier",
    "context",
)  # of a shipped offer, where a user's row does not say
STALE_DAYS = 120
MOST_CONTEXT = 1e9
MOST = 1e6  # USD per 1e6 tokens, or 1e9 parameters: beyond is a slip of the pen
KNOWN_DATES = {"0.2.3": "2026-11-23"}  # when the data of a genai-prices version was looked at


@dataclass(frozen=True, kw_only=True)
class ApiPrice:
    """One offer. Prices per 1e6 tokens in USD. open_weights: the name of the open model behind it, empty for a closed
    one. params_b: its size in 1e9, 0 when unknown. tier: small, mid or flagship of a closed one. context: most tokens of a
    call, None where it is not published. date: when recorded."""

    provider: str
    model: str
    input_usd_mtok: float
    output_usd_mtok: float
    cached_usd_mtok: float | None = None
    open_weights: str = ""
    params_b: float = 0.0
    tier: str = ""
    context: int | None = None
    date: str = ""
    source: str = ""

    @property
    def name(self) -> str:
        """`provider/model`."""
        return f"{self.provider}/{self.model}"

    def per_call(self, input_tokens: float, output_tokens: float, cached_share: float = 0.0) -> float:
        """USD of one call; `cached_share` of the input is billed at the cached price where there is one."""
        cached = self.cached_usd_mtok if self.cached_usd_mtok is not None else self.input_usd_mtok
        mixed = (1.0 - cached_share) * self.input_usd_mtok + cached_share * cached
        return (input_tokens * mixed + output_tokens * self.output_usd_mtok) / 1e6


@cache
def snapshot() -> tuple[ApiPrice, ...]:
    """The shipped offers (`advisor/tables/api_prices.csv`): frontier models and hosted open weights."""
    return tuple(_offer(row) for row in table("api_prices"))


def offers(extra: Path | None = None) -> tuple[ApiPrice, ...]:
    """The snapshot, with rows of a user's file added or replacing; what such a row leaves open of a shipped offer stays, but
    for the date and source, which were those of another price. Raises UserError for a bad file."""
    found = {offer.name: offer for offer in snapshot()}
    shipped = {(row["provider"], row["model"]): row for row in table("api_prices")}
    if extra is not None:
        for line, row in read_csv_lines(extra, NEEDED):
            if not row["provider"].strip() or not row["model"].strip():
                raise UserError("provider and model must be named", where=f"{extra}:{line}")
            for column in (*NEEDED[2:], "cached_usd_mtok", "params_b"):
                value = number(row.get(column, ""))
                empty = column not in NEEDED and not row.get(column, "").strip()
                if not empty and (value is None or not 0 <= value <= MOST):
                    raise UserError(f"{column} must be a number from 0 to {MOST:g}", where=f"{extra}:{line}")
            if row.get("context", "").strip() and not 1 <= (number(row["context"]) or 0) <= MOST_CONTEXT:
                raise UserError(f"context must be tokens, from 1 to {MOST_CONTEXT:g}", where=f"{extra}:{line}")
            known = shipped.get((row["provider"], row["model"]), {})
            offer = _offer(row | {name: row.get(name) or known.get(name, "") for name in KEPT})
            found[offer.name] = offer
    return tuple(found.values())


def find_offer(name: str, extra: Path | None = None, *, where: str = "--against") -> ApiPrice:
    """An offer by `provider/model` or model name: snapshot or user's file first, then the genai-prices package.

    Raises UserError with the nearest names.
    """
    known = offers(extra)
    for offer in known:
        if name in (offer.name, offer.model):
            return offer
    provider, _, model = name.partition("/")
    for arguments in ((model, provider), (name, None)):
        if arguments[0] and (found := live(*arguments)):
            return found
    raise UserError(f"no price for {name!r}", where=where, hint=nearest(name, [o.name for o in known]))


def live(model: str, provider: str | None) -> ApiPrice | None:
    """A price from the bundled data of genai-prices (offline); None when it does not know the model. It is that of today's
    noon, UTC: some sell cheaper in the evening, and an answer must not depend on the hour."""
    from genai_prices import Usage, calc_price

    noon = datetime.datetime.now(datetime.UTC).replace(hour=12, minute=0)
    usage = Usage(input_tokens=10_000, output_tokens=10_000)
    try:
        done = calc_price(usage, model, provider_id=provider, genai_request_timestamp=noon)
    except LookupError:
        return None
    cached = getattr(done.model_price, "cache_read_mtok", None)
    return ApiPrice(
        provider=done.provider.id,
        model=done.model.id,
        input_usd_mtok=float(done.input_price) * 100,
        output_usd_mtok=float(done.output_price) * 100,
        cached_usd_mtok=_plain(cached),
        context=done.model.context_window,
        date=package_date(),
        source=f"genai-prices {package_version()}",
    )


def package_version() -> str:
    """Version of the installed genai-prices."""
    from importlib.metadata import version

    return version("genai-prices")


def package_date() -> str:
    """Date of the installed genai-prices data: known for the pinned version, else that of its files."""
    import genai_prices

    if known := KNOWN_DATES.get(package_version()):
        return known

    stamp = Path(genai_prices.__file__).stat().st_mtime
    return datetime.datetime.fromtimestamp(stamp, datetime.UTC).date().isoformat()


def age_days(date: str) -> int | None:
    """Days since an ISO date (`2026-11` counts as its first day); None when it cannot be read."""
    try:
        when = datetime.date.fromisoformat(date if len(date) == 10 else f"{date}-01")
    except ValueError:
        return None
    return (datetime.datetime.now(datetime.UTC).date() - when).days


def stale_note(date: str, limit_days: int = STALE_DAYS) -> str:
    """A warning when a price is older than `limit_days`, else an empty string."""
    days = age_days(date)
    if days is None:
        return "undated price"
    return f"price is {days} days old" if days > limit_days else ""


def _offer(row: dict[str, str]) -> ApiPrice:
    return ApiPrice(
        provider=row["provider"],
        model=row["model"],
        input_usd_mtok=number(row["input_usd_mtok"]) or 0.0,
        output_usd_mtok=number(row["output_usd_mtok"]) or 0.0,
        cached_usd_mtok=number(row.get("cached_usd_mtok", "")),
        open_weights=row.get("open_weights", ""),
        params_b=number(row.get("params_b", "")) or 0.0,
        tier=row.get("tier", ""),
        context=int(number(row.get("context", "")) or 0) or None,
        date=row.get("date", ""),
        source=row.get("source", ""),
    )


def _plain(value: object) -> float | None:
    """A price as a number; None for tiered prices and for none at all."""
    from decimal import Decimal

    return float(value) if isinstance(value, int | float | Decimal) else None
