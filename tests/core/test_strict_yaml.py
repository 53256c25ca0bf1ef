"""YAML is read as JSON: nothing that JSON has no word for gets in, and every fault names its line."""

import pytest

from tunegate.core.errors import UserError
from tunegate.core.strict_yaml import parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1e3", {"a": 1000.0}),
        ("a: 2026-11-24", {"a": "2026-11-24"}),
        ("a: .5", {"a": 0.5}),
        ("a: 'no'", {"a": "no"}),
        ("a: 010", {"a": 10}),  # eight to YAML 1.1
        ("a: -0x10", {"a": -16}),
        ("a: 1:30", {"a": "1:30"}),  # ninety to YAML 1.1
        ("a: 1_000", {"a": "1_000"}),
        ("a: +7", {"a": 7}),
        ("a: 5.", {"a": 5.0}),
    ],
)
def test_values_are_those_of_json(text, value):
    assert parse_yaml(text, "f") == value


@pytest.mark.parametrize(
    "node",
    ["!!int ''", "!!float ''", "!!bool x", "!!int x", "!!timestamp x", "!!binary x", "!!set {a}", "!!python/name:os.system", "! x"],
)  # fmt: skip
def test_a_tag_is_refused_with_its_line(node):
    """The loader's own constructors end in IndexError, KeyError or AttributeError for some of these."""
    with pytest.raises(UserError, match="are not read: write the value itself") as caught:
        parse_yaml(f"a: 1\nb: {node}\n", "f.yaml")
    assert caught.value.where == "f.yaml:2"


@pytest.mark.parametrize("node", ["1e400", "-1e400", "9" * 400, "-0x" + "f" * 4000])
def test_a_number_beyond_a_double_is_refused(node):
    with pytest.raises(UserError, match="beyond the range of a number") as caught:
        parse_yaml(f"a: 1\nb: {node}\n", "f.yaml")
    assert caught.value.where == "f.yaml:2"


@pytest.mark.parametrize(
    "text", ["a: &x [1]\nb: *x", "a: 1\na: 2", "1: a", "a: [" * 5000, "a: " + "9" * 5000, "a: \x00"]
)
def test_other_faults_are_one_error(text):
    with pytest.raises(UserError, match="not valid YAML"):
        parse_yaml(text, "f.yaml")
