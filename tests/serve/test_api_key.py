"""Where the API key comes from, and that no message repeats it."""

import pytest

from tunegate.core.errors import UserError
from tunegate.serve.client import ChatClient, api_key


def test_the_key_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    assert api_key() is None
    monkeypatch.setenv("TUNEGATE_API_KEY", "from-environment")
    assert api_key() == "from-environment"
    (tmp_path / "key").write_text("from-file\n")
    assert api_key(tmp_path / "key") == "from-file"
    (tmp_path / "key").write_text(" \n")
    with pytest.raises(UserError, match="no key in this file"):
        api_key(tmp_path / "key")
    with pytest.raises(UserError, match="no such key file"):
        api_key(tmp_path / "none")
    with pytest.raises(UserError, match="is a folder, a key file is needed here"):
        api_key(tmp_path)


def test_a_header_that_is_none_repeats_no_key_either():
    client = ChatClient("http://127.0.0.1:9/v1", "m", key="sk-SECRET-1")
    error = client._failure(OSError("bad line: sk-SECRET-1"))
    assert error.message == "the connection broke: bad line: ***"
