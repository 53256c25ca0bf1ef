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
from jsonschema_specifications import REGISTRY
from referencing import Registry, Resource
from referencing.exceptions import NoSuchResource
from referencing.jsonschema import specification_with

from tunegate.core.errors import UserError
from tunegate.core.json_schema import Checker, SchemaFaultError, checker

SDIST = "jsonschema==4.26.0"
REMOTE = "http://localhost:1234/"  # the suite's own server; its files stand in the folder `remotes`
DRAFTS = {
    "draft4": "http://json-schema.org/draft-04/schema#",
    "draft6": "http://json-schema.org/draft-06/schema#",
    "draft7": "http://json-schema.org/draft-07/schema#",
    "draft2019-09": "https://json-schema.org/draft/2019-09/schema",
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
}
# Required tests, without the folders optional/: in the suite's commit 44401e0c (reference) and in the older copy of the sdist.
COUNTS = {
    "draft4": (618, 610),
    "draft6": (839, 829),
    "draft7": (927, 913),
    "draft2019-09": (1259, 1227),
    "draft2020-12": (1299, 1257),
}
# A `$schema` of one's own is refused with a reason, where the suite wants vocabularies switched by it.
OWN_META_SCHEMA = {
    "vocabulary: schema that uses custom metaschema with with no validation vocabulary: applicator vocabulary still works",
    "vocabulary: schema that uses custom metaschema with with no validation vocabulary: no validation: valid number",
    "vocabulary: schema that uses custom metaschema with with no validation vocabulary: "
    "no validation: invalid number, but it still validates",
    "vocabulary: ignore unrecognized optional vocabulary: string value",
    "vocabulary: ignore unrecognized optional vocabulary: number value",
}
# Of jsonschema 4.26.0's 2019-09 class; the test is newer than the sdist's copy of the suite.
UNEVALUATED = "unevaluatedProperties: unevaluatedProperties with adjacent non-bool additionalProperties: with additional properties"
MISSED: dict[str, set[str]] = {draft: set() for draft in DRAFTS}
MISSED["draft2019-09"] = MISSED["draft2020-12"] = OWN_META_SCHEMA


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


def registry(suite, draft):
    """The suite's remotes, read from its folder when a schema refers to them; nothing else is found, nothing fetched."""

    def retrieve(uri):
        if not uri.startswith(REMOTE):
            raise NoSuchResource(ref=uri)
        contents = json.loads((suite.parent / "remotes" / uri.removeprefix(REMOTE)).read_text())
        return Resource.from_contents(contents, default_specification=specification_with(DRAFTS[draft]))

    return Registry(retrieve=retrieve).combine(REGISTRY)


@pytest.mark.slow
@pytest.mark.parametrize("draft", DRAFTS)
def test_required(suite, draft):
    missed, n, asserted = set(), 0, set()
    known = registry(suite, draft)
    for name, schema, test in cases(suite, draft):
        n += 1
        try:
            valid = not Checker(schema, "schema", known).violations(test["data"])
        except SchemaFaultError as error:
            missed.add(name if "unknown $schema" in error.line() else f"{name}: {error.line()}")
            continue
        if valid is not test["valid"]:
            (asserted if name.startswith("format: ") else missed).add(name)
    print(
        draft, n, "tests,", len(missed), "missed,", len(asserted), "formats asserted that are only notes to the suite"
    )
    assert n in COUNTS[draft]
    newer = {UNEVALUATED} if (draft, n) == ("draft2019-09", COUNTS["draft2019-09"][0]) else set()
    assert missed == MISSED[draft] | newer, sorted(missed ^ MISSED[draft])
    assert all(name.endswith("only an annotation by default") for name in asserted), asserted


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
