"""A key for a release that was pushed before: the signature alone is sent, over the manifest that stands there."""

import json
import sys

import pytest

from tests.train.release.test_push import hub as hub
from tests.train.release.test_push import make_release, push_to_hub
from tunegate.core import manifest
from tunegate.core.commands import run
from tunegate.train.release import publish_cli, sign

pytest.importorskip("model_signing", reason="the extra `sign` is not installed")


@pytest.fixture
def keys(tmp_path):
    """Two P-256 pairs: {name: (private, public)}."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    def pair(name):
        key, private, public = (
            ec.generate_private_key(ec.SECP256R1()),
            tmp_path / f"{name}.pem",
            tmp_path / f"{name}.pub",
        )
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        return private, public

    return {name: pair(name) for name in ("mine", "other")}


@pytest.fixture
def push(tmp_path, capsys, monkeypatch):
    """Pushes the release to `out`: (exit code, document); its command line stands in the manifest."""
    monkeypatch.setenv("TUNEGATE_CACHE", str(tmp_path / "cache"))
    release = make_release(tmp_path / "release")

    def call(*more, as_json=True):
        arguments = [str(release.path), str(tmp_path / "out"), *map(str, more), *(["--json"] if as_json else [])]
        monkeypatch.setattr(sys, "argv", ["ft", "push", *arguments])
        capsys.readouterr()
        code = run(publish_cli.app, prog="ft push", argv=arguments)
        out = capsys.readouterr().out
        return int(code), json.loads(out) if as_json else out.replace("\n", " ")

    return call


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != "model.sig"}


def test_a_key_given_later_signs_what_is_there(push, keys, tmp_path):
    target = tmp_path / "out"
    assert push()[0] == 0
    assert not (target / "model.sig").exists()
    before = times(target)
    code, found = push("--key", keys["mine"][0])
    assert (code, found["uploaded"]) == (0, ["model.sig"]), found
    assert sorted(found["skipped"]) == sorted(before)
    assert times(target) == before, "nothing else is sent"
    assert sign.check(target, key=keys["mine"][1]) is None
    assert manifest.verify(target) == []
    signature = (target / "model.sig").read_bytes()
    for more in (("--key", keys["mine"][0]), ()):
        code, found = push(*more)
        assert (code, found["uploaded"], (target / "model.sig").read_bytes()) == (0, [], signature)
    code, said = push("--key", keys["other"][0], as_json=False)
    assert (code, "is there already, only its signature was sent" in said) == (0, True), said
    assert sign.check(target, key=keys["other"][1]) is None
    assert not any((tmp_path / "cache" / "push").iterdir())


def test_a_signature_that_does_not_hold_is_made_anew(push, keys, tmp_path):
    target = tmp_path / "out"
    assert push("--key", keys["mine"][0])[0] == 0
    (target / "model.sig").write_text("{}")
    assert push("--key", keys["mine"][0])[1]["uploaded"] == ["model.sig"]
    assert sign.check(target, key=keys["mine"][1]) is None
    (target / "model-0.safetensors").write_text("ONE")
    assert push("--key", keys["mine"][0])[1]["uploaded"] == []
    assert "does not hold" in sign.check(target, key=keys["mine"][1]), "ours is signed, not what others put there"


def changed(target, **changes):
    """The manifest at `target` written again: same files, its own hash right, other words."""
    old = manifest.read(target)
    facts = {**old.facts, **changes}
    (target / "manifest.json").unlink()
    manifest.write(target, old.kind, inputs=list(old.inputs), config=old.config, seeds=old.seeds, facts=facts)


@pytest.mark.parametrize("change", ["facts", "self", "cut"])
def test_a_manifest_that_says_something_else_is_not_vouched_for(push, keys, tmp_path, change):
    target = tmp_path / "out"
    assert push()[0] == 0
    path = target / "manifest.json"
    if change == "facts":
        changed(target, license="mit")
    elif change == "self":
        path.write_text(path.read_text().replace("apache-2.0", "mit"))
    else:
        path.write_text(json.dumps({"digest": manifest.read(target).digest}))
    code, document = push("--key", keys["mine"][0])
    assert (code, document["error"]["kind"], document["error"]["where"]) == (2, "bad_input", f"file://{target}")
    assert "the manifest there says something else" in document["error"]["message"]
    assert not (target / "model.sig").exists()
    path.unlink()
    assert push("--key", keys["mine"][0], "--force")[0] == 0, "as the hint says"
    assert sign.check(target, key=keys["mine"][1]) is None


def test_the_hub_gets_the_signature_alone_too(hub, keys, tmp_path):
    release = make_release(tmp_path / "release")
    assert push_to_hub(hub, release, tmp_path)[0] == 0
    commits = len(hub.commits)
    code, found, err = push_to_hub(hub, release, tmp_path, "--key", keys["mine"][0])
    assert (code, found["uploaded"]) == (0, ["model.sig"]), (found, err)
    assert hub.commits[commits:] == [[("file", "model.sig")]]
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, data in hub.files["team/slots"].items():
        (copy / name).write_bytes(data)
    assert sign.check(copy, key=keys["mine"][1]) is None
    code, found, _ = push_to_hub(hub, release, tmp_path, "--key", keys["mine"][0])
    assert (code, found["uploaded"], len(hub.commits)) == (0, [], commits + 1)
