"""Probable secrets and personal data, by patterns that are public and specific, ours and those of detect-secrets (Yelp) for
the tokens of providers; no entropy rules, which flag plain text. Nothing is downloaded, nothing is verified with a provider.

Sources of the shapes: the providers' documentation of their token formats (AWS IAM identifiers, GitHub token prefixes,
Hugging Face, OpenAI, Slack, Google API keys, RFC 7519 JWT, RFC 7468 PEM); ISO/IEC 7812 (card numbers, Luhn's check) and ISO
13616 (IBAN, modulo 97); the networks' ranges of first digits and groupings of card numbers.

A text that is a JSON object or list is looked at string by string, as parsed: the escape of a line's end before a token is
no letter of it, and a mask takes no quotation mark and no half of an escape with it.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from typing import Any

from tunegate.core.json_schema import pointer

MASK = "[REDACTED]"
_MARK = re.compile(r"\[REDACTED:[\w-]+\]")  # under a key like "password" it would be one again
# Letters alone, fewer than this, are no token (`assistant`, most keys).
SHORTEST_WORD = 16


@dataclass(frozen=True, kw_only=True)
class Secret:
    """A stretch of text. kind: which pattern; personal: data about a person rather than a key; in_key: it stands in a key
    of an object."""

    kind: str
    start: int
    end: int
    personal: bool
    in_key: bool = False


@dataclass(frozen=True, kw_only=True)
class _Pattern:
    kind: str
    regex: re.Pattern[str]
    personal: bool = False
    holds: Callable[[str], bool] = lambda text: True
    # Where the whole does not hold, its first groups may: a year behind an IBAN looks like one more group.
    groups: bool = False
    # Cheap test before the pattern: one of these must stand in the text.
    needs: tuple[str, ...] = ()


def _luhn(text: str) -> bool:
    digits = [int(c) for c in text if c.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    doubled = [d if i % 2 == 0 else (2 * d - 9 if d > 4 else 2 * d) for i, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _iban(text: str) -> bool:
    compact = text.replace(" ", "")
    if not 15 <= len(compact) <= 34:
        return False
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def _ip(text: str) -> bool:
    parts = [int(part) for part in text.split(".")]
    return all(part <= 255 for part in parts) and parts[0] not in (0, 10, 127, 255) and parts[:2] != [192, 168]


# Where a card number may begin and end: not in a decimal number, nor with a year (20261231235959) or the start or end of a UUID
# (8-4-4-4-12).
_CARD = r"\b(?<!\d\.)(?!20[0-4]\d|[\da-fA-F]{8}-[\da-fA-F]{4}-|\d{4}-\d{12}\b)"
_CARD_END = r"\b(?!\.\d)"

_PATTERNS = (
    # First, for the whole block is masked, whatever else its letters look like; one that is cut off, to the end of the text.
    _Pattern(
        kind="private_key",
        regex=re.compile(
            r"(?s)-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
            r"(?:.*?-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|.*)"
        ),
        needs=("PRIVATE KEY",),
    ),
    _Pattern(kind="aws_access_key", regex=re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), needs=("AKIA", "ASIA")),
    _Pattern(
        kind="github_token",
        regex=re.compile(r"\b(?:gh[pousr]_[0-9A-Za-z]{36,}|github_pat_[0-9A-Za-z_]{60,})\b"),
        needs=("gh", "github_pat_"),
    ),
    _Pattern(kind="hugging_face_token", regex=re.compile(r"\bhf_[A-Za-z]{30,}\b"), needs=("hf_",)),
    _Pattern(kind="openai_key", regex=re.compile(r"\bsk-(?:[a-z]+-)*[0-9A-Za-z_-]{20,}"), needs=("sk-",)),
    _Pattern(kind="slack_token", regex=re.compile(r"\bxox[abprs]-[0-9A-Za-z-]{10,}"), needs=("xox",)),
    _Pattern(kind="google_api_key", regex=re.compile(r"\bAIza[0-9A-Za-z_-]{35}\b"), needs=("AIza",)),
    _Pattern(
        kind="jwt", regex=re.compile(r"\beyJ[0-9A-Za-z_-]{8,}\.eyJ[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_-]{8,}"), needs=("eyJ",)
    ),
    _Pattern(
        kind="password",
        regex=re.compile(
            r"""(?i)\b(?:password|passwd|pwd|api[_-]?key|secret[_-]?key)["']?\s*[=:]\s*["']?[^\s"',;]{6,}"""
        ),
        needs=("=", ":"),
    ),
    _Pattern(
        kind="e-mail",
        regex=re.compile(r"\b[\w.%+-]{1,64}@(?!example\.|test\.)[\w-]{1,63}(?:\.[\w-]{1,63})*\.[A-Za-z]{2,24}\b"),
        personal=True,
        needs=("@",),
    ),
    _Pattern(
        kind="card_number",
        regex=re.compile(_CARD + r"[2-6](?:[ -]?\d){12,18}" + _CARD_END),
        personal=True,
        holds=_luhn,
    ),
    # The same among other digits (an expiry date, a CVV): only as networks number and group cards, for any digits would do.
    _Pattern(
        kind="card_number",
        regex=re.compile(
            _CARD
            + r"(?:[2-6]\d{12,18}|(?:[456]\d{3}|22[2-9]\d|2[3-6]\d\d|27[012]\d|35\d\d)(?:([ -])\d{4})(?:\1\d{4}){2}"
            r"|3[0-9]\d\d([ -])\d{6}\2\d{4,5})" + _CARD_END
        ),
        personal=True,
        holds=_luhn,
    ),
    _Pattern(
        kind="iban",
        regex=re.compile(r"\b[A-Z]{2}\d{2}(?: ?[0-9A-Z]{4}){2,7}(?: ?[0-9A-Z]{1,3})?\b"),
        personal=True,
        holds=_iban,
        groups=True,
    ),
    _Pattern(
        kind="ip_address", regex=re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])"), personal=True, holds=_ip
    ),
    _Pattern(
        kind="us_ssn",
        regex=re.compile(r"\b(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}\b"),
        personal=True,
        needs=("-",),
    ),
    _Pattern(
        kind="phone",
        regex=re.compile(r"(?<![\w+])\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d(?:[ .-]?\d){6,11}\b"),
        personal=True,
        needs=("+",),
    ),
)


# Plugins of detect-secrets whose patterns fit one provider's tokens. Left out: those of high entropy and of keywords, which
# flag plain sentences, Artifactory's (any word in capitals that begins with AP), and those of shapes that are ours above.
_PLUGINS = (
    "aws.AWSKeyDetector",
    "azure_storage_key.AzureStorageKeyDetector",
    "basic_auth.BasicAuthDetector",
    "discord.DiscordBotTokenDetector",
    "gitlab_token.GitLabTokenDetector",
    "mailchimp.MailchimpDetector",
    "npm.NpmDetector",
    "pypi_token.PypiTokenDetector",
    "sendgrid.SendGridDetector",
    "slack.SlackDetector",
    "square_oauth.SquareOAuthDetector",
    "stripe.StripeDetector",
    "telegram_token.TelegramBotTokenDetector",
    "twilio.TwilioKeyDetector",
)


@cache
def _patterns() -> tuple[_Pattern, ...]:
    """Our secrets, the plugins' under their own names of what they find, then personal data (an address may be inside)."""
    theirs = []
    for plugin in _PLUGINS:
        module, _, name = plugin.partition(".")
        detector = getattr(import_module(f"detect_secrets.plugins.{module}"), name)
        kind = str(detector.secret_type).lower().replace(" ", "_")
        theirs += [_Pattern(kind=kind, regex=regex) for regex in detector().denylist]
    personal = [pattern for pattern in _PATTERNS if pattern.personal]
    return (*(pattern for pattern in _PATTERNS if not pattern.personal), *theirs, *personal)


def find_secrets(text: str, key: str = "") -> Iterator[Secret]:
    """The stretches that look like secrets or personal data, first pattern wins where two overlap.

    key: under which the text stands in JSON, for some are known by their key alone (`"password": "..."`).
    """
    if _reads_as_json(text):
        yield from _in_json(text)
        return
    lead, tail = (f'{key}": "', '"') if _NAMES_A_SECRET.search(key) else ("", "")
    for pattern, start, end in _matches(lead + text + tail):
        start, end = max(0, start - len(lead)), min(end - len(lead), len(text))
        if start < end and not _MARK.fullmatch(text, start, end):
            yield Secret(kind=pattern.kind, start=start, end=end, personal=pattern.personal)


def masked(text: str, key: str = "") -> tuple[str, int]:
    """(the text with each stretch replaced by its kind, as `[REDACTED:e-mail]`; how many)."""
    found = sorted(find_secrets(text, key), key=lambda secret: secret.start)
    parts, at = [], 0
    keys: Counter[str] = Counter()
    for secret in found:
        keys[secret.kind] += secret.in_key
        parts += [text[at : secret.start], _mark(secret.kind, keys[secret.kind] if secret.in_key else 1)]
        at = secret.end
    return "".join([*parts, text[at:]]), len(found)


def _reads_as_json(text: str) -> bool:
    """Whether a text is a JSON object or list to a lenient reader: NaN and a key that stands twice are no reason to mask across
    its strings."""
    try:
        return text.lstrip()[:1] in ("{", "[") and isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def secrets_in(value: Any) -> Iterator[tuple[str, Secret]]:
    """(JSON pointer, secret) of every stretch in the keys, texts and whole numbers of a JSON value, in order."""
    for holder, key, path in _places(value):
        if isinstance(holder, dict):
            yield from ((pointer(path[:-1]), replace(secret, in_key=True)) for secret in find_secrets(key))
        text, beside = _text_at(holder, key)
        yield from ((pointer(path), secret) for secret in find_secrets(text, beside))


def mask_in(value: dict[str, Any]) -> tuple[dict[str, Any], int, list[str]]:
    """(a copy of a JSON object with the stretches of `secrets_in` masked; how many; pointers of texts that were JSON and
    are none any more, for a number in them was masked). A number that is masked becomes text."""
    copy = json.loads(json.dumps(value))
    total, broken, holders = 0, [], {}
    for holder, key, path in list(_places(copy)):
        holders[id(holder)] = holder
        text, beside = _text_at(holder, key)
        hidden, count = masked(text, beside)
        if count:
            holder[key] = hidden
            total += count
            broken += [pointer(path)] if _reads_as_json(text) and not _reads_as_json(hidden) else []
    return copy, total + sum(_mask_keys(holder) for holder in holders.values() if isinstance(holder, dict)), broken


def _mask_keys(holder: dict[str, Any]) -> int:
    """Mask an object's keys in place; those that would fall together are numbered."""
    found = {key: masked(key) for key in holder}
    total = sum(count for _, count in found.values())
    if total:
        items = list(holder.items())
        holder.clear()
        for key, item in items:
            hidden, same = found[key][0], 1
            while (new := hidden if same == 1 else f"{hidden} {same}") in holder:
                same += 1
            holder[new] = item
    return total


def _places(value: Any) -> Iterator[tuple[Any, Any, tuple[Any, ...]]]:
    """(an object or list, a key or index in it, the path there) of everything in a JSON value, in order. A loop, not a
    recursion: values nest as deep as the reader lets them."""
    todo: list[tuple[Any, Any, tuple[Any, ...]]] = [([value], 0, ())]
    while todo:
        holder, key, path = todo.pop()
        if path:
            yield holder, key, path
        item = holder[key]
        if isinstance(item, dict | list):
            keys = item if isinstance(item, dict) else range(len(item))
            todo += [(item, inner, (*path, inner)) for inner in reversed(keys)]


def _text_at(holder: Any, key: Any) -> tuple[str, str]:
    """(the text or whole number that stands there, else nothing; the key it stands under)."""
    item = holder[key]
    number = isinstance(item, int) and not isinstance(item, bool)
    return (str(item) if isinstance(item, str) or number else ""), (key if isinstance(holder, dict) else "")


def _mark(kind: str, number: int) -> str:
    mark = f"{MASK[:-1]}:{kind}]"
    return mark if number == 1 else f"{mark} {number}"


def _matches(text: str) -> Iterator[tuple[_Pattern, int, int]]:
    """(pattern, start, end) in plain text."""
    if not text or (len(text) < SHORTEST_WORD and text.isalpha()):
        return
    taken: list[tuple[int, int]] = []
    for pattern in _patterns():
        if pattern.needs and not any(word in text for word in pattern.needs):
            continue
        at = 0
        while match := pattern.regex.search(text, at):
            start, end = match.start(), _end(pattern, match)
            at = max(end or match.end(), start + 1)
            if end and not any(start < b and a < end for a, b in taken):
                taken.append((start, end))
                yield pattern, start, end


def _end(pattern: _Pattern, match: re.Match[str]) -> int:
    """Where the stretch ends: at the match's end, or that of the most of its groups that hold; 0 where none do."""
    found = match[0]
    while found:
        if pattern.holds(found):
            return match.start() + len(found)
        found = found.rpartition(" ")[0] if pattern.groups else ""
    return 0


# What a key is named whose text is a secret, whatever it looks like: as the patterns have it.
_NAMES_A_SECRET = re.compile(r"(?i)(?:password|passwd|pwd|api[_-]?key|secret[_-]?key)$|aws")
# A string of JSON text with the colon that makes it a key, or a number.
_TOKEN = re.compile(r'(?s)"([^"\\]*(?:\\.[^"\\]*)*)"(\s*:\s*)?|(-?\d[\d.eE+-]*)')
# A character of such a string, as it is written.
_WRITTEN = re.compile(r"(?s)\\u[dD][89abAB][\da-fA-F]{2}\\u[dD][c-fC-F][\da-fA-F]{2}|\\u[\da-fA-F]{4}|\\.|[^\\]")


def _in_json(text: str) -> Iterator[Secret]:
    """The stretches in the strings (keys, too) and whole numbers of JSON text, at their places in the text as it is written."""
    key, value_at = "", -1
    for token in _TOKEN.finditer(text):
        string, colon, number = token.groups()
        if number is None:
            inside = json.loads(f'"{string}"') if "\\" in string else string
        else:
            inside = number if number.lstrip("-").isdigit() else ""
        found = list(find_secrets(inside, key if token.start() == value_at else ""))
        if found:
            places = _written_at(string or number, token.start(1 if number is None else 3))
            for secret in found:
                start, end = places[secret.start], places[secret.end]
                yield replace(secret, start=start, end=end, in_key=secret.in_key or colon is not None)
        if colon is not None:
            key, value_at = inside, token.end()


def _written_at(written: str, at: int) -> Sequence[int]:
    """Where each character of a JSON string's content, and its end, stand in the text that has the string from `at` on."""
    if "\\" not in written:
        return range(at, at + len(written) + 1)
    return [*(at + unit.start() for unit in _WRITTEN.finditer(written)), at + len(written)]
