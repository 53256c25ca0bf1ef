"""GPUs by name, from the shipped table or a user's file of the same columns."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tunegate.advisor.facts import Record, doubt, key, number, read_csv_lines, table
from tunegate.core.errors import UserError, nearest

NEEDED = ("name", "memory_GB", "bandwidth_GBps", "bf16_dense_TFLOPS")
LEAST, MOST = 1e-3, 1e7  # of any of them: beyond is a slip of the pen
MOST_USD_H = 1e5


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One accelerator (or `cpu`).

    memory_gb: 1e9 bytes; the printed figure, though most vendors print GiB (of 80 the driver shows 85.5e9 bytes): it errs on
    the safe side. bandwidth_gbps: 1e9 bytes/s. tflops: dense bf16 (fp16 where there is no bf16), 1e12/s.
    fp8_tflops: None where the chip has no FP8 units. price_low, price_high: $/hour, None where unknown.
    """

    name: str
    memory_gb: float
    bandwidth_gbps: float
    tflops: float
    fp8_tflops: float | None = None
    price_low: float | None = None
    price_high: float | None = None
    prices: str = ""
    source: str = ""
    notes: str = ""

    @property
    def price(self) -> float | None:
        """Planning price, $/hour: geometric mean of the lowest and highest known."""
        if self.price_low is None or self.price_high is None:
            return None
        return float((self.price_low * self.price_high) ** 0.5)

    @property
    def price_spread(self) -> float:
        """Half the distance between the lowest and the highest known price in log units: how far a vendor's price may lie from
        `price`, either way."""
        return 0.5 * math.log(self.price_high / self.price_low) if self.price_low and self.price_high else 0.0

    @property
    def doubt(self) -> str | None:
        """What to say beside estimates where the figures were not checked against a public file."""
        return doubt(f"figures of {self.name}", self.source)

    @property
    def link_gbps(self) -> float:
        """Bandwidth of one GPU to the others, 1e9 bytes/s in each direction: NVLink 3, 4 and 5 (12, 18 and 18 links of 25,
        25 and 50), Infinity Fabric of MI300X (7 of 64), else PCIe 4.0 x16."""
        links = (
            ("A100-40GB", 300.0),
            ("A100-80GB", 300.0),
            ("H100-SXM", 450.0),
            ("H200", 450.0),
            ("GH200", 450.0),
            ("B200", 900.0),
            ("B300", 900.0),
            ("GB", 900.0),
            ("MI300X", 448.0),
        )
        return next((speed for name, speed in links if self.name.startswith(name)), 32.0)

    @property
    def has_fp4(self) -> bool:
        """True for Blackwell: older chips compute with 4-bit weights in 16 bits."""
        return self.name.startswith(("B200", "B300", "GB", "RTX-PRO-6000"))

    @property
    def is_cpu(self) -> bool:
        """True for the row that stands for a machine without a GPU."""
        return self.name == "cpu"


def known_gpus(extra: Path | None = None) -> dict[str, Gpu]:
    """Every GPU by name; rows of a user's file (same columns) replace or add. Raises UserError for a bad file."""
    gpus = dict(_shipped())
    if extra is not None:
        for line, row in read_csv_lines(extra, NEEDED):
            gpus[row["name"]] = _gpu(row, where=f"{extra}:{line}")
    return gpus


def find_gpu(name: str, extra: Path | None = None, *, where: str = "--gpu") -> Gpu:
    """The GPU that `name` means. Raises UserError with the nearest names."""
    gpus = known_gpus(extra)
    index = {key(gpu): gpu for gpu in gpus}
    for row in table("gpus"):
        index.update({key(alias): row["name"] for alias in row["aliases"].split(";") if alias})
    for spelling, memory in _spellings(name):
        found = index.get(key(spelling))
        if found is not None and memory in (None, gpus[found].memory_gb):
            return gpus[found]
    raise UserError(f"unknown GPU {name!r}", where=where, hint=nearest(name.upper(), _names(gpus)))


def _spellings(name: str) -> Iterator[tuple[str, float | None]]:
    """How a GPU may be meant, the likeliest first, and the memory it must then have: as drivers and vendors write it
    (`NVIDIA H100 80GB HBM3`, `Tesla T4`, `GeForce RTX 4090 24GB`), without makers, module and memory type."""
    yield name.split("(")[0], None
    yield name, None
    words = re.sub(r"[-_ ]+", " ", name.lower())
    words = re.sub(r"\b(nvidia|tesla|geforce|amd|instinct|gpu|hbm\d?e?|gddr\dx?)\b", " ", words)
    size = re.search(r"(?<![a-z])(\d+) ?gb?\b", words)
    memory = float(size[1]) if size else None
    chip = " ".join(words.replace(size[0], " ").split()) if size else " ".join(words.split())
    bare = " ".join(re.sub(r"\b(sxm\d?|pcie|oam)\b", " ", chip).split())
    with_size = f" {memory:g}gb" if memory else ""
    yield chip + with_size, None
    yield chip, memory
    if "pcie" not in chip or not with_size:
        yield re.sub(r"\bsxm\d\b", "sxm", chip) + with_size, None
    yield bare + with_size, None
    if "pcie" not in chip:
        yield bare, memory


def _names(gpus: dict[str, Gpu]) -> list[str]:
    aliases = [alias for row in table("gpus") for alias in row["aliases"].split(";") if alias]
    return [*gpus, *aliases]


def parse_hardware(text: str, extra: Path | None = None, *, where: str = "--hardware") -> tuple[Gpu, int]:
    """`L4`, `H100:2` or `cpu` as (GPU, count). Raises UserError for an unknown GPU or a count that is not 1..1024."""
    name, colon, count = text.partition(":")
    if colon and not (re.fullmatch("[0-9]{1,4}", count) and 1 <= int(count) <= 1024):
        raise UserError(f"not a number of GPUs: {count!r}", where=where, hint="for example L4:1")
    return find_gpu(name, extra, where=where), int(count or 1)


@cache
def _shipped() -> dict[str, Gpu]:
    return {row["name"]: _gpu(row, where="gpus.csv") for row in table("gpus")}


def _gpu(row: Record, *, where: str) -> Gpu:
    values = {name: number(row[name]) for name in NEEDED[1:]}
    for name, value in values.items():
        if value is None or not LEAST <= value <= MOST:
            raise UserError(
                f"{name} of {row['name']!r} must be a number from {LEAST:g} to {MOST:g}, found {row[name]!r}",
                where=where,
            )
    fp8 = number(row.get("fp8_dense_TFLOPS", ""))
    if fp8 is not None and not LEAST <= fp8 <= MOST:
        raise UserError(
            f"fp8_dense_TFLOPS of {row['name']!r} must be from {LEAST:g} to {MOST:g}, or empty", where=where
        )
    if not row["name"].strip():
        raise UserError("a GPU without a name", where=where)
    rent = [number(row.get(name, "")) for name in ("price_low_usd_h", "price_high_usd_h")]
    if any(usd is not None and not 0 <= usd <= MOST_USD_H for usd in rent):
        raise UserError(f"a price of {row['name']!r} must be from 0 to {MOST_USD_H:g}", where=where)
    return Gpu(
        name=row["name"],
        memory_gb=values["memory_GB"] or 0.0,
        bandwidth_gbps=values["bandwidth_GBps"] or 0.0,
        tflops=values["bf16_dense_TFLOPS"] or 0.0,
        fp8_tflops=fp8,
        price_low=rent[0],
        price_high=rent[1],
        prices=row.get("price_points_with_source_and_date", ""),
        source=row.get("spec_source", ""),
        notes=row.get("notes", ""),
    )
