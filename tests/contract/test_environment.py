"""The variables that a user may set stand in docs/cli.md, with their place and what lies there."""

import re
from dataclasses import fields
from pathlib import Path

from tunegate.advisor import calibrate
from tunegate.serve.middleware import GuardSettings

ROOT = Path(__file__).parents[2]
PACKAGES = ("core", "advisor", "serve", "train", "evalkit")
# Set by us for processes that we start, or by an option: a user has no use for them.
OURS = {"INSTANCE", "PROBE_MODEL", "PROMPTING", "CONTEXT_TOKENS", "PROMPTED_DEFAULT", "LAUNCHED_BY"}
OPTIONS = {"DRAIN_S": "--drain", "MAX_BODY_BYTES": "--max-request-mb", "HANG_S": "--hang-after"}


def page():
    return (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")


def test_every_variable_that_a_user_may_set_is_in_the_docs():
    code = "".join(path.read_text(encoding="utf-8") for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
    read = set(re.findall(r"TUNEGATE_([A-Z_]+[A-Z])\b", code)) | {f.name.upper() for f in fields(GuardSettings)}
    table = page().partition("## Environment variables")[2]
    told = set(re.findall(r"`TUNEGATE_([A-Z_]+)`", table.partition("\n\n")[0]))
    assert told == read - OURS - set(OPTIONS)
    assert all(f"`{option} <" in page() for option in OPTIONS.values())


def test_what_lies_in_the_cache_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("TUNEGATE_CACHE", str(tmp_path))
    assert calibrate.store().parent == tmp_path
    code = "".join(path.read_text(encoding="utf-8") for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
    places = set(re.findall(r'cache_folder\(\)\s*/\s*"([a-z.]+)"', code))
    assert places >= {"models", "environments", "serve", "calibration.json"}
    told = page().partition("In the cache lie")[2]
    assert [name for name in places if f"`{name}" not in told] == []
