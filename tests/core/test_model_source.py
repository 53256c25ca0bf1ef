"""From a name to a model, or to an error that says what to do."""

import shutil

import pytest

from tunegate.core.errors import UserError
from tunegate.core.model_source import cache_folder, folder_digest, resolve


@pytest.mark.parametrize(
    ("spec", "says", "hint"),
    [
        ("builtin:smollm2-153m", "no builtin model 'smollm2-153m'", '"smollm2-135m"'),
        ("builtin:", "no builtin model ''", "known: smollm2-135m"),
        ("/no/such/folder", "no model '/no/such/folder'", "builtin:smollm2-135m"),
        ("./missing", "no model './missing'", "builtin:smollm2-135m"),
        ("smollm2", "no model 'smollm2': not a folder, a hub id", "builtin:smollm2-135m"),
        ("missing.gguf", "no such GGUF file", None),
    ],
)
def test_what_cannot_be_a_model(spec, says, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says) as caught:
        resolve(spec)
    assert hint is None or hint in caught.value.hint


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json: not a model folder"):
        resolve(str(tmp_path))


def test_a_folder_is_identified_by_its_bytes_and_not_by_its_place(tiny_model, tmp_path):
    source = resolve(str(tiny_model))
    assert (source.kind, source.path, source.license) == ("folder", tiny_model.resolve(), None)
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    (copy / "README.md").write_text("a card changes nothing")
    assert resolve(str(copy)).as_input().digest == source.as_input().digest == folder_digest(tiny_model)
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert resolve(str(copy)).as_input().digest != source.as_input().digest


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all", b"GGUF\x03\x00\x00\x00" + b"\xff" * 64])
def test_a_file_that_is_no_gguf_is_the_users_to_mend(tmp_path, monkeypatch, content):
    monkeypatch.setenv("TUNEGATE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot read this GGUF") as caught:
        resolve(str(path))
    assert caught.value.where == str(path)
    assert not list((tmp_path / "cache").rglob("*"))


def test_where_unpacked_models_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("TUNEGATE_CACHE", "/a")
    assert str(cache_folder()) == "/a"
    monkeypatch.delenv("TUNEGATE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert str(cache_folder()) == "/b/tunegate"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/c")
    assert str(cache_folder()) == "/c/.cache/tunegate"
