"""Probable secrets and personal data, by patterns that are public and specific, ours and those of detect-secrets (Yelp) for
the tokens of providers; no entropy rules, which flag plain text. Nothing is downloaded, nothing is verified with a provider.

Sources of the shapes: the providers' documentation of their token formats (AWS IAM identifiers, GitHub token prefixes,
Hugging Face, OpenAI, Slack, Google API keys, RFC 7519 JWT, RFC 7468 PEM); ISO/IEC 7812 (card numbers, Luhn's check) and ISO
13616 (IBAN, modulo 97).
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module

MASK = "[REDACTED]"


@dataclass(frozen=True, kw_only=True)
class Secret:
    """A stretch of text. kind: which pattern; personal: data about a person rather than a key."""

    kind: str
    start: int
    end: int
    personal: bool


@dataclass(frozen=True, kw_only=True)
class _Pattern:
    kind: str
    regex: re.Pattern[str]
    personal: bool = False
    holds: Callable[[str], bool] = lambda text: True
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


_PATTERNS = (
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
        kind="private_key", regex=re.compile(r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----"), needs=("PRIVATE KEY",)
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
    _Pattern(kind="card_number", regex=re.compile(r"\b\d(?:[ -]?\d){12,18}\b"), personal=True, holds=_luhn),
    _Pattern(
        kind="iban",
        regex=re.compile(r"\b[A-Z]{2}\d{2}(?: ?[0-9A-Z]{4}){2,7}(?: ?[0-9A-Z]{1,3})?\b"),
        personal=True,
        holds=_iban,
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


def find_secrets(text: str) -> Iterator[Secret]:
    """The stretches that look like secrets or personal data, first pattern wins where two overlap."""
    taken: list[tuple[int, int]] = []
    for pattern in _patterns():
        if pattern.needs and not any(word in text for word in pattern.needs):
            continue
        for match in pattern.regex.finditer(text):
            start, end = match.span()
            if pattern.holds(match[0]) and not any(start < b and a < end for a, b in taken):
                taken.append((start, end))
                yield Secret(kind=pattern.kind, start=start, end=end, personal=pattern.personal)


def masked(text: str) -> tuple[str, int]:
    """(the text with each stretch replaced by its kind, as `[REDACTED:e-mail]`; how many)."""
    found = sorted(find_secrets(text), key=lambda secret: secret.start)
    parts, at = [], 0
    for secret in found:
        parts += [text[at : secret.start], f"{MASK[:-1]}:{secret.kind}]"]
        at = secret.end
    return "".join([*parts, text[at:]]), len(found)
