"""A sentence encoder is known by its files: an index that was made with others of them is told."""

import shutil

import pytest

from tunegate.core import embedding
from tunegate.core.errors import UserError
from tunegate.core.files import sha256_file, sha256_text
from tunegate.serve.prompting.index import Index, Passage


@pytest.fixture
def encoder(tmp_path):
    """A copy of the packaged encoder that a test may change."""
    return shutil.copytree(embedding._builtin(), tmp_path / "encoder")


def digest(folder):
    embedding.load.cache_clear()
    return embedding.load(str(folder)).digest


@pytest.mark.parametrize("file", ["tokenizer.json", "config.json", "vocab.txt", "model.safetensors"])
def test_another_tokenizer_or_config_is_another_encoder(encoder, tmp_path, file):
    Index.build([Passage(id="a", text="Paris")], embedder=str(encoder)).save(tmp_path)
    before = digest(encoder)
    path = encoder / file
    content = bytearray(path.read_bytes())
    if file == "model.safetensors":
        content[-1] ^= 1
    else:
        content += b"\n"
    path.write_bytes(content)
    assert digest(encoder) != before
    with pytest.raises(UserError, match="this index was made with other"):
        Index.load(tmp_path)


def test_an_encoder_in_bin_is_known_by_its_bytes(encoder):
    import torch
    from safetensors.torch import load_file

    weights = load_file(encoder / "model.safetensors")
    (encoder / "model.safetensors").unlink()
    torch.save(weights, encoder / "pytorch_model.bin")
    before = digest(encoder)
    name = next(name for name in weights if name.endswith("word_embeddings.weight"))
    weights[name] = weights[name] + 1
    torch.save(weights, encoder / "pytorch_model.bin")
    assert digest(encoder) != before


def test_the_packaged_encoder_keeps_its_digest():
    """Runs that were made with it are still served."""
    weights = embedding._builtin() / "model.safetensors"
    assert embedding.load().digest == sha256_text(sha256_file(weights))
