"""An engine is a map: over pieces that went through pickle, in processes of a Ray cluster or here, the results are the same."""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tunegate.core.errors import InfrastructureError, UserError
from tunegate.train.data import engine as engines
from tunegate.train.data import twins
from tunegate.train.data.dedup import DedupConfig
from tunegate.train.data.engine import engine, rows_of
from tunegate.train.data.prepare import PrepareConfig, prepare
from tunegate.train.data.read import Reading, read

CLUSTER = """
import sys
from ray.cluster_utils import Cluster
from tunegate.core.commands import run
from tunegate.train.data.cli import app
small = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=small)
cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
code = run(app, prog="ft data", argv=[*sys.argv[1:], "--engine", "ray", "--address", cluster.address, "--json"])
import ray
nodes = sum(node["Alive"] for node in ray.nodes())
print(nodes, "nodes", file=sys.stderr)
ray.shutdown()
cluster.shutdown()
sys.exit(code)
"""


def through_pickle(function: Callable[[Any], Any], pieces: Iterable[Any]) -> Iterator[Any]:
    for piece in list(pieces):
        yield pickle.loads(pickle.dumps(function(pickle.loads(pickle.dumps(piece)))))


def record(text: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}], **more}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Plain rows, rows with tools, near twins, conflicts, big integers, a bad line, CRLF, and U+2028 in a text."""
    question = "please book a table at the {} restaurant near the {} for two people on friday evening"
    words = ["italian", "greek", "old", "new", "blue", "quiet", "busy", "small", "large", "cheap"]
    lines = []
    for at in range(240):
        text = question.format(words[at % 10], words[at // 10 % 10]) + ("s" if at >= 100 else "")
        more = {"n": 10**25 + at, "tags": {"when": "2024-01-01"}} if at % 7 == 0 else {}
        lines.append(json.dumps(record(text, f"answer {at % 3}\u2028mail a@b.org", **more), ensure_ascii=False))
    lines[50] = "{bad"
    path = tmp_path / "my.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    return path


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


def test_stretches_give_the_rows_and_faults_of_the_whole(monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    expected = list(read([str(source)], Reading()))
    for size in (1, 700, 5000, 1 << 23):
        monkeypatch.setattr(engines, "STRETCH", size)
        found = list(rows_of([str(source)], Reading(), through_pickle))
        assert [getattr(item, "line", 0) for item in found] == list(range(1, 241))
        assert [(type(a), str(a)) for a in found if not hasattr(a, "error")] == [
            (type(a), str(a)) for a in expected if not hasattr(a, "error")
        ]
        assert [a.error.line() for a in found if hasattr(a, "error")] == [
            a.error.line() for a in expected if hasattr(a, "error")
        ]


def test_a_file_has_the_format_of_its_first_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However a file is cut: an alpaca record after messages is a fault, in the same block or in a later one."""
    path = tmp_path / "a.jsonl"
    alpaca = {"instruction": "q", "input": "", "output": "a"}
    path.write_text("".join(json.dumps(r) + "\n" for r in [*[record("q", "a")] * 1000, alpaca, *[alpaca] * 400]))
    here = list(read([str(path)], Reading()))
    assert [hasattr(item, "error") for item in here] == [False] * 1000 + [True] * 401
    monkeypatch.setattr(engines, "STRETCH", 3000)
    assert list(map(str, rows_of([str(path)], Reading(), through_pickle))) == list(map(str, here))


def test_the_same_folder_by_the_map_of_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    monkeypatch.setattr(twins, "BLOCK", 64)
    config = PrepareConfig(on_error="reject", yes=True)
    prepare([str(source), "builtin:bfcl"], tmp_path / "here", config)
    monkeypatch.setattr(engines, "STRETCH", 2000)
    prepare([str(source), "builtin:bfcl"], tmp_path / "there", config, mapped=through_pickle)
    assert written(tmp_path / "here") == written(tmp_path / "there")


def test_blocks_change_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    folders = []
    for block in (3, 4096):
        monkeypatch.setattr(twins, "BLOCK", block)
        config = PrepareConfig(on_error="reject", yes=True, dedup=DedupConfig(near_model="lexical"))
        prepare([str(source)], tmp_path / str(block), config)
        folders.append(written(tmp_path / str(block)))
    assert folders[0] == folders[1]
    assert b"duplicate_near" in folders[0]["rejected.jsonl"]


def test_wrong_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError) as caught:
        engine("rya", None)
    assert (caught.value.where, caught.value.hint) == ("--engine", 'did you mean "ray"?')
    with pytest.raises(UserError) as caught:
        engine("local", "localhost:1")
    assert caught.value.where == "--address"
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="Ray is not installed") as caught:
        engine("ray", None)
    assert "tunegate[ray]" in (caught.value.hint or "")


def test_a_cluster_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ray:
        @staticmethod
        def is_initialized() -> bool:
            return False

        @staticmethod
        def init(**options: Any) -> None:
            raise ConnectionError(f"cannot reach {options['address']}\nat all")

    monkeypatch.setitem(sys.modules, "ray", Ray)
    with pytest.raises(InfrastructureError, match=r"cannot reach 10\.0\.0\.9:6379") as caught:
        engine("ray", "10.0.0.9:6379")
    assert caught.value.where == "--address 10.0.0.9:6379"


@pytest.mark.slow
@pytest.mark.avx512
@pytest.mark.timeout(480)
def test_a_cluster_of_two_workers_writes_the_same_bytes(tmp_path: Path, source: Path, with_ray: dict[str, str]) -> None:
    options = [str(source), "--on-error", "reject", "--yes"]
    done = subprocess.run(
        [sys.executable, "-c", CLUSTER, "prepare", *options, "--out", str(tmp_path / "there")],
        env=with_ray,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 nodes" in done.stderr
    report = json.loads(done.stdout)
    _, here = prepare([str(source)], tmp_path / "here", PrepareConfig(on_error="reject", yes=True))
    assert (report["rows_in"], report["train"], report["rejected"]) == (here.rows_in, here.train, here.rejected)
    assert report["rejected"]["duplicate_near"] > 0
    assert written(tmp_path / "here") == written(tmp_path / "there")
