"""JSON Schema Test Suite, as the jsonschema sdist on PyPI carries it, with jsonschema-rs as a second opinion.

TUNEGATE_SCHEMA_SUITE names its `json/` folder; without it the sdist is fetched by pip, or the tests skip.
"""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tunegate.core.errors import UserError
from tunegate.core.json_schema import checker

SDIST = "jsonschema==4.26.0"
REMOTE = "http://localhost:1234"  # references to the suite's own server: never fetched here
DRAFTS = {
    "draft4": "http://json-schema.org/draft-04/schema#",
    "draft6": "http://json-schema.org/draft-06/schema#",
    "draft7": "http://json-schema.org/draft-07/schema#",
    "draft2019-09": "https://json-schema.org/draft/2019-09/schema",
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
}
# Tests whose schema refers to the suite's own server, which are refused here: references are never fetched.
REMOTES = {"draft4": 17, "draft6": 23, "draft7": 23, "draft2019-09": 36, "draft2020-12": 49}
KNOWN: dict[str, set[str]] = {draft: set() for draft in DRAFTS}


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    if given := os.environ.get("TUNEGATE_SCHEMA_SUITE"):
        return Path(given) / "tests"
    folder = tmp_path_factory.mktemp("suite")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--no-binary",
        ":all:",
        "-d",
        str(folder),
        SDIST,
    ]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("the jsonschema sdist, which carries the suite, cannot be downloaded")
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.glob("*/json/tests"))


def cases(suite, draft):
    for file in sorted((suite / draft).glob("*.json")):
        for case in json.loads(file.read_text()):
            schema = case["schema"]
            if isinstance(schema, dict) and "$schema" not in schema:
                schema = {"$schema": DRAFTS[draft], **schema}
            for test in case["tests"]:
                yield f"{file.stem}: {case['description']}: {test['description']}", schema, test


@pytest.mark.slow
@pytest.mark.parametrize("draft", DRAFTS)
def test_required(suite, draft):
    missed, n, remote = set(), 0, 0
    for name, schema, test in cases(suite, draft):
        n += 1
        try:
            valid = not checker(schema).violations(test["data"])
        except UserError as error:
            if REMOTE in json.dumps(schema) or "refers to" in str(error):
                remote += 1
                continue
            valid = None
        if name.startswith("format: ") and valid is False and test["valid"]:
            continue  # the suite takes format as annotation only; here it is asserted
        if valid is not test["valid"]:
            missed.add(name)
    print(draft, n, "tests,", remote, "with remote references,", len(missed), "missed")
    assert n > 600
    assert remote <= REMOTES[draft]
    assert missed == KNOWN[draft], sorted(missed ^ KNOWN[draft])


@pytest.mark.slow
@pytest.mark.parametrize("draft", ["draft7", "draft2020-12"])
def test_second_opinion(suite, draft):
    """jsonschema-rs on the same cases: where the two differ, the suite says who is right, and it is us."""
    other = pytest.importorskip("jsonschema_rs")
    compared, ours_wrong = 0, []
    for name, schema, test in cases(suite, draft):
        try:
            ours = not checker(schema).violations(test["data"])
            theirs = other.validator_for(schema).is_valid(test["data"])
        except (UserError, ValueError, other.ValidationError):
            continue
        compared += 1
        if ours != theirs and ours is not test["valid"] and not name.startswith("format: "):
            ours_wrong.append(name)
    assert compared > 600
    assert ours_wrong == []
