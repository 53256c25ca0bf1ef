"""OpenSSF model signing: the right key over these bytes and nothing else."""

import json
import subprocess
import sys

import pytest

from tunegate.core import manifest
from tunegate.core.artifacts import EvalReport
from tunegate.core.commands import run
from tunegate.train.release import release_cli, verify_cli

pytest.importorskip("model_signing", reason="the extra `sign` is not installed")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Two P-256 pairs and one of another curve: {name: (private, public)}."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder, made = tmp_path_factory.mktemp("keys"), {}
    for name, curve in (("mine", ec.SECP256R1()), ("other", ec.SECP256R1()), ("wrong", ec.SECP256K1())):
        key = ec.generate_private_key(curve)
        private, public = folder / f"{name}.pem", folder / f"{name}.pub"
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        public.write_bytes(
            key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
        made[name] = (private, public)
    return made


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "report"
    (path / "sub").mkdir(parents=True)
    (path / "report.json").write_text("{}")
    (path / "sub" / "x").write_text("x")
    manifest.write(path, "eval_report", inputs=[], config={})
    return path


@pytest.fixture
def ft(capsys):
    def call(app, *arguments):
        capsys.readouterr()
        code = run(app, prog="ft", argv=[*map(str, arguments), "--json"])
        return int(code), json.loads(capsys.readouterr().out)

    return call


def sign(ft, folder, key):
    return ft(release_cli.app, "sign", folder, "--key", key)


def verify(ft, folder, *arguments):
    return ft(verify_cli.app, folder, *arguments)


def test_signed_and_verified_by_us_and_by_the_standard_tool(ft, folder, keys, tmp_path, monkeypatch):
    digest = EvalReport.open(folder).digest
    monkeypatch.chdir(tmp_path)
    assert sign(ft, "report", keys["mine"][0])[0] == 0
    assert EvalReport.open(folder).digest == digest, "a signature does not change what the folder is"
    code, document = verify(ft, folder, "--key", keys["mine"][1])
    assert (code, document["problems"]) == (0, [])
    assert "made with the key" in document["signature"]
    code, document = verify(ft, folder)
    assert code == 0
    assert "by whom was not checked" in document["signature"]
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(folder), "--signature", str(folder / "model.sig"),
               "--public_key", str(keys["mine"][1])]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) not in (folder / "model.sig").read_text()


def test_another_key_is_seen(ft, folder, keys):
    sign(ft, folder, keys["other"][0])
    code, document = verify(ft, folder, "--key", keys["mine"][1])
    assert code == 2
    assert [p["path"] for p in document["problems"]] == ["model.sig"]
    assert "does not hold" in document["problems"][0]["problem"]


CHANGES = {
    "byte": lambda f: (f / "sub" / "x").write_text("y"),
    "extra": lambda f: (f / "extra").write_text(""),
    "hidden": lambda f: (f / ".x").write_text(""),
    "in .git": lambda f: ((f / ".git").mkdir(), (f / ".git" / "x").write_text("")),
    "missing": lambda f: (f / "sub" / "x").unlink(),
    "link": lambda f: (f / "l").symlink_to("/etc/hostname"),
    "manifest": lambda f: (f / "manifest.json").write_text((f / "manifest.json").read_text() + " "),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_breaks_the_signature(ft, folder, keys, change):
    sign(ft, folder, keys["mine"][0])
    CHANGES[change](folder)
    code, document = verify(ft, folder, "--key", keys["mine"][1])
    assert code == 2
    assert "model.sig" in [p["path"] for p in document["problems"]]
    code, document = verify(ft, folder)
    assert code == 2
    assert "model.sig" in [p["path"] for p in document["problems"]], "seen without the key too"


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"dsseEnvelope": {"payload": "x"}}', "\x00"])
def test_what_is_no_signature_is_a_problem(ft, folder, keys, text):
    (folder / "model.sig").write_text(text)
    for arguments in ((), ("--key", keys["mine"][1])):
        code, document = verify(ft, folder, *arguments)
        assert (code, [p["path"] for p in document["problems"]]) == (2, ["model.sig"]), document


def test_a_missing_signature_is_a_problem_where_one_is_asked_for(ft, folder, keys):
    assert verify(ft, folder)[0] == 0
    code, document = verify(ft, folder, "--key", keys["mine"][1])
    assert (code, document["problems"]) == (2, [{"path": "model.sig", "problem": "there is no signature"}])


def test_wrong_keys_and_options_are_one_line(ft, folder, keys, tmp_path):
    assert "openssl" in sign(ft, folder, keys["wrong"][0])[1]["error"]["hint"]
    (tmp_path / "bad.pem").write_text("no key")
    for path in (tmp_path / "none.pem", tmp_path / "bad.pem", keys["mine"][1]):
        code, document = sign(ft, folder, path)
        assert (code, document["error"]["kind"]) == (2, "bad_input"), path
    assert not (folder / "model.sig").exists()
    sign(ft, folder, keys["mine"][0])
    assert verify(ft, folder, "--key", tmp_path / "bad.pem")[1]["error"]["kind"] == "bad_input"
    assert ft(release_cli.app, "sign", folder)[1]["error"]["kind"] == "usage"
    assert verify(ft, folder, "--identity", "a@b.c")[1]["error"]["kind"] == "usage"


def test_what_was_changed_is_not_signed_but_what_was_signed_may_be_signed_again(ft, folder, keys):
    for name in ("mine", "other"):
        assert sign(ft, folder, keys[name][0])[0] == 0
    assert verify(ft, folder, "--key", keys["other"][1])[0] == 0
    (folder / "sub" / "x").write_text("y")
    code, document = sign(ft, folder, keys["mine"][0])
    assert (code, document["error"]["message"]) == (2, "not signed: sub/x: content changed")


def test_keyless_takes_an_identity_token_and_another_sigstore(ft, folder, keys, tmp_path, monkeypatch):
    from model_signing import signing, verifying

    asked = []

    class TUFError(Exception):
        pass

    def record(self, **given):
        asked.append(given)
        raise TUFError("offline")

    monkeypatch.setattr(signing.Config, "use_sigstore_signer", record)
    monkeypatch.setattr(verifying.Config, "use_sigstore_verifier", record)
    (tmp_path / "token").write_text("header.claims.signature\n")
    trust = tmp_path / "trust.json"
    assert ft(release_cli.app, "sign", folder, "--keyless")[0] == 4
    assert ft(release_cli.app, "sign", folder, "--keyless", "--identity-token-file", tmp_path / "token")[0] == 4
    monkeypatch.setenv("SIGSTORE_IDENTITY_TOKEN", "of.the.environment")
    assert ft(release_cli.app, "sign", folder, "--keyless", "--trust-config", trust)[0] == 4
    tokens = [None, "header.claims.signature", "of.the.environment"]
    assert [given["identity_token"] for given in asked] == tokens
    assert [given["use_ambient_credentials"] for given in asked] == [True, False, False]
    assert asked[-1]["trust_config"] == trust
    sign(ft, folder, keys["mine"][0])
    code, _ = verify(ft, folder, "--identity", "a@b.c", "--issuer", "https://issuer", "--trust-config", trust)
    assert code == 4
    assert asked[-1] == {"identity": "a@b.c", "oidc_issuer": "https://issuer", "trust_config": trust}
    code, document = ft(release_cli.app, "sign", folder, "--key", keys["mine"][0], "--trust-config", trust)
    assert (code, document["error"]["kind"]) == (2, "usage")


def test_keyless_without_sigstore_is_an_infrastructure_error(ft, folder, keys, monkeypatch):
    from model_signing import signing, verifying

    class TUFError(Exception):
        pass

    def gone(*_, **__):
        raise TUFError("Failed to refresh TUF metadata")

    monkeypatch.setattr(signing.Config, "use_sigstore_signer", gone)
    monkeypatch.setattr(verifying.Config, "use_sigstore_verifier", gone)
    code, document = ft(release_cli.app, "sign", folder, "--keyless")
    assert (code, document["error"]["kind"]) == (4, "infrastructure")
    assert not (folder / "model.sig").exists()
    sign(ft, folder, keys["mine"][0])
    code, document = verify(ft, folder, "--identity", "a@b.c", "--issuer", "https://issuer")
    assert (code, document["error"]["message"]) == (4, "Sigstore: Failed to refresh TUF metadata")
