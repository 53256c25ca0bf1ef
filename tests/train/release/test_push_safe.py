"""A push keeps what is not its own, sends no prompt of the training data, and mends what was broken or cut off."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.train.release.test_merge import train
from tests.train.release.test_push import ft as ft
from tests.train.release.test_push import hub as hub
from tests.train.release.test_push import make_release, push_to_hub
from tests.train.release.test_push import places as places
from tests.train.release.test_push import release as release
from tunegate.core import manifest
from tunegate.core.artifacts import Release
from tunegate.core.commands import run
from tunegate.core.model_source import resolve
from tunegate.train.release import release_cli
from tunegate.train.release.merge import merge
from tunegate.train.release.publish import destination


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_push_onto_what_it_reads_is_refused(release, tmp_path, ft):
    """`ft push X X --force` destroyed X."""
    before = {name: (release.path / name).read_bytes() for name in names(release.path)}
    link = tmp_path / "link"
    link.symlink_to(release.path)
    for place in (release.path, f"file://{release.path}", release.path / "copy", tmp_path, link):
        for more in ((), ("--force",)):
            code, document = ft(release.path, place, *more)
            assert (code, document["error"]["kind"]) == (2, "bad_input"), place
            assert "would be written over" in document["error"]["message"], place
    assert {name: (release.path / name).read_bytes() for name in names(release.path)} == before
    assert names(tmp_path) == ["link", "release"]


def test_the_prompts_of_the_training_data_stay_here(tmp_path, ft):
    folder = tmp_path / "release"
    made = make_release(folder)
    (folder / "probe.json").write_text(json.dumps({"prompts": [{"messages": [{"content": "PATIENT"}], "ids": [1]}]}))
    (folder / "manifest.json").unlink()
    manifest.write(folder, "release", inputs=list(made.manifest.inputs), config={}, facts=made.manifest.facts)
    target = tmp_path / "out"
    assert ft(folder, target)[0] == 0
    assert not any(b"PATIENT" in path.read_bytes() for path in target.iterdir())
    assert "probe.json" not in names(target)
    assert manifest.verify(target) == []
    assert (folder / "probe.json").is_file()


@pytest.mark.parametrize("name", ["my models", "modèle", "100%", "a::b", "what?#x"])
def test_a_local_place_is_taken_as_it_is_written(release, tmp_path, ft, name):
    """A space became %20, and `::` cut the name."""
    place = tmp_path / name / "slots"
    assert destination(str(place)).name == "slots"
    assert ft(release.path, place)[0] == 0
    assert manifest.verify(place) == []
    assert names(tmp_path) == sorted([name, "cache", "release"])
    assert ft(release.path, f"file://{place}")[1]["uploaded"] == [], "the same place by its URL"


def test_a_broken_copy_is_mended_and_force_sends_everything(release, tmp_path, ft):
    target = tmp_path / "out"
    assert ft(release.path, target)[0] == 0
    stamp = (target / "manifest.json").read_bytes()
    (target / "model-0.safetensors").unlink()
    (target / "tokenizer.json").write_text("")
    code, found = ft(release.path, target)
    assert (code, sorted(found["uploaded"])) == (0, ["model-0.safetensors", "tokenizer.json"])
    assert sorted(found["skipped"]) == ["README.md", "manifest.json", "model-1.safetensors"]
    assert (manifest.verify(target), (target / "manifest.json").read_bytes()) == ([], stamp)
    assert ft(release.path, target)[1]["uploaded"] == []
    (target / "model-0.safetensors").write_text("ONE")
    assert ft(release.path, target)[1]["uploaded"] == [], "sizes are looked at, not bytes"
    code, found = ft(release.path, target, "--force")
    assert (code, len(found["uploaded"]), found["skipped"]) == (0, 5, [])
    assert manifest.verify(target) == []


def test_killed_between_the_manifest_and_the_end(release, tmp_path, ft):
    target = tmp_path / "out"
    assert ft(release.path, target)[0] == 0
    (target / ".tunegate-push.json").write_text("{}")
    assert ft(release.path, target)[1]["uploaded"] == []
    assert manifest.verify(target) == []


def test_half_a_manifest_of_an_unfinished_push_is_no_other_release(release, tmp_path, ft):
    target = tmp_path / "out"
    assert ft(release.path, target)[0] == 0
    whole = (target / "manifest.json").read_text()
    (target / "manifest.json").write_text(whole[:40])
    code, document = ft(release.path, target)
    assert (code, "damaged" in document["error"]["message"]) == (2, True), "whose it is is not known"
    (target / ".tunegate-push.json").write_text("{}")
    assert ft(release.path, target)[0] == 0
    assert manifest.verify(target) == []


def test_a_reader_never_sees_half_a_manifest(release, tmp_path, ft, monkeypatch):
    target, seen = tmp_path / "out", []
    real = shutil.copyfile

    def watched(source, there, **options):
        seen.append(Path(there).name)
        return real(source, there, **options)

    monkeypatch.setattr("fsspec.implementations.local.shutil.copyfile", watched)
    assert ft(release.path, target)[0] == 0
    assert "model-0.safetensors" in seen
    assert "manifest.json" not in seen


def test_somebodys_model_on_the_hub_is_kept(release, hub, tmp_path):
    theirs = {"README.md": b"card", "tokenizer.json": b"MINE", "model-0.safetensors": b"MODEL", ".gitattributes": b""}
    hub.files["team/slots"] = dict(theirs)
    code, document, _ = push_to_hub(hub, release, tmp_path)
    assert (code, document["error"]["kind"]) == (2, "bad_input")
    assert "holds files and no release: model-0.safetensors, tokenizer.json" in document["error"]["message"]
    assert (hub.files["team/slots"], hub.commits) == (theirs, [])
    assert push_to_hub(hub, release, tmp_path, "--force")[0] == 0
    assert hub.files["team/slots"]["model-0.safetensors"] == b"one"


def test_a_hub_repository_with_a_card_and_a_licence_is_empty(release, hub, tmp_path):
    hub.files["team/slots"] = {"README.md": b"to be", ".gitattributes": b"", "LICENSE": b"mine"}
    assert push_to_hub(hub, release, tmp_path)[0] == 0


def test_a_push_to_the_hub_that_was_killed_before_its_manifest_is_finished(release, hub, tmp_path):
    assert push_to_hub(hub, release, tmp_path)[0] == 0
    del hub.files["team/slots"]["manifest.json"]
    del hub.titles[-1]
    assert push_to_hub(hub, release, tmp_path)[0] == 0, "the last commit is ours"
    assert "manifest.json" in hub.files["team/slots"]
    del hub.files["team/slots"]["manifest.json"]
    hub.titles.append("Release 000000000000")
    assert push_to_hub(hub, release, tmp_path)[0] == 2, "the last commit is of another release"


def test_a_broken_copy_on_the_hub_is_mended(release, hub, tmp_path):
    assert push_to_hub(hub, release, tmp_path)[0] == 0
    stamp = hub.files["team/slots"]["manifest.json"]
    del hub.files["team/slots"]["model-1.safetensors"]
    hub.files["team/slots"]["tokenizer.json"] = b""
    code, found, err = push_to_hub(hub, release, tmp_path)
    assert (code, sorted(found["uploaded"])) == (0, ["model-1.safetensors", "tokenizer.json"]), err
    assert hub.files["team/slots"]["model-1.safetensors"] == b"two"
    assert hub.files["team/slots"]["manifest.json"] == stamp
    hub.files["team/slots"]["model-1.safetensors"] = b"TWO"
    assert push_to_hub(hub, release, tmp_path)[1]["uploaded"] == []
    assert len(push_to_hub(hub, release, tmp_path, "--force")[1]["uploaded"]) == 5
    assert hub.files["team/slots"]["model-1.safetensors"] == b"two"


def test_a_key_with_a_password_signs_a_push(release, tmp_path, ft):
    pytest.importorskip("model_signing", reason="the extra `sign` is not installed")
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        PublicFormat,
    )

    from tunegate.train.release.sign import check

    key, private, public = ec.generate_private_key(ec.SECP256R1()), tmp_path / "key.pem", tmp_path / "public.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"open sesame")))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    word = tmp_path / "word"
    word.write_text("open sesame\n")
    target = tmp_path / "out"
    assert ft(release.path, target, "--key", private)[0] == 2, "a password is wanted"
    assert ft(release.path, target)[0] == 0
    options = ("--key", private, "--key-password-file", word)
    code, found = ft(release.path, target, *options)
    assert (code, found.get("uploaded")) == (0, ["model.sig"]), found
    assert ft(release.path, target, *options)[1]["uploaded"] == [], "it is known again"
    assert check(target, key=public) is None
    assert ft(release.path, target, "--key-password-file", word)[0] == 2
    arguments = ["sign", str(release.path), *map(str, options)]
    assert run(release_cli.app, prog="ft release", argv=arguments) == 0
    assert check(release.path, key=public) is None
    assert Release.open(target).manifest.facts["published_as"] == "out"
    assert os.fspath(private) not in (target / "manifest.json").read_text()


def test_what_a_refused_push_says_to_do_lets_it_through(tiny_model, tiny_dataset, tmp_path, ft):
    """LICENSE in the release is "not in the manifest"; beside the base it goes along with a new merge of the same run."""
    base = shutil.copytree(tiny_model, tmp_path / "base")
    run_made = train(base, tiny_dataset, tmp_path / "run")
    merge(run_made, resolve(str(base)), tmp_path / "merged", force=False)
    code, document = ft(tmp_path / "merged", tmp_path / "out")
    assert (code, document["error"]["where"]) == (2, str(tmp_path / "merged"))
    assert "beside the base model's weights, then ft merge the run again" in document["error"]["hint"]
    (base / "LICENSE").write_text("do what you like")
    merge(run_made, resolve(str(base)), tmp_path / "merged", force=True)
    assert ft(tmp_path / "merged", tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / "LICENSE").read_text() == "do what you like"
