"""Passing a release on: whole or not a release, killed and resumed without sending twice, the card from facts, no token told."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from tunegate.core import manifest
from tunegate.core.artifacts import EvalReport, Release
from tunegate.core.commands import run
from tunegate.core.manifest import Input
from tunegate.evalkit.folders import write_decision
from tunegate.train.release import publish_cli
from tunegate.train.release.publish import destination

TOKEN = "hf_secretsecretsecret"


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEGATE_CACHE", str(tmp_path / "cache"))


def make_release(folder, weights=("one", "two"), **facts):
    folder.mkdir()
    for number, text in enumerate(weights):
        (folder / f"model-{number}.safetensors").write_text(text)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("old card")
    source = Input(role="source", kind="file", path="my.jsonl", digest="5" * 64)
    data = Input(role="dataset", kind="dataset", path="data", digest="d" * 64, inputs=(source,))
    base = Input(role="base_model", kind="model", path="builtin:x", digest="b" * 64)
    made = Input(role="run", kind="run", path="run", digest="r" * 64, inputs=(data, base))
    known = {"base": "builtin:x", "base_name": "owner/base", "license": "apache-2.0", "method": "lora", "quantization": "awq", "bytes": 6,
             "template_digest": "c" * 64}  # fmt: skip
    manifest.write(folder, "release", inputs=[made], config={}, facts={**known, **facts})
    return Release.open(folder)


@pytest.fixture
def release(tmp_path):
    return make_release(tmp_path / "release")


@pytest.fixture
def report(tmp_path, release):
    folder = tmp_path / "report"
    folder.mkdir()
    document = {
        "target": {"spec": "release", "kind": "release", "digest": release.digest}, "task": {"name": "slots", "primary": "exact"}, "n": 100,
        "data": {"sha256": "e" * 64}, "metrics": {"exact": {"value": 0.91, "low": 0.84, "high": 0.95}},
        "comparison": {"baseline": {"spec": "baseline"}, "metrics": {"exact": {"difference": 0.2, "fixed": 22, "broken": 2, "mcnemar_p": 1e-6}}},
    }  # fmt: skip
    (folder / "report.json").write_text(json.dumps(document))
    manifest.write(
        folder,
        "eval_report",
        inputs=[release.as_input("system")],
        config={},
        facts={"n": 100, "metrics": {"exact": 0.91}},
    )
    opened = EvalReport.open(folder)
    condition = {"metric": "exact", "rule": "superior", "decision": "PASS", "reason": "better: difference +0.2"}
    write_decision(
        folder / "gate",
        {"decision": "PASS", "conditions": [condition], "policy": {"alpha": 0.05}},
        report=opened,
        baseline=None,
    )
    return opened


@pytest.fixture
def ft(capsys):
    def call(*arguments):
        capsys.readouterr()
        code = run(publish_cli.app, prog="ft push", argv=[*map(str, arguments), "--json"])
        return int(code), json.loads(capsys.readouterr().out)

    return call


def test_a_pushed_copy_is_a_release_with_a_card(release, report, tmp_path, ft):
    target = tmp_path / "out" / "slots-v3"
    code, found = ft(release.path, f"file://{target}", "--report", report.path)
    assert (code, found["uploaded"][-1], found["release"]) == (0, "manifest.json", release.digest)
    assert manifest.verify(target) == []
    pushed = Release.open(target)
    assert pushed.digest == found["digest"] != release.digest
    assert [(i.role, i.digest) for i in pushed.manifest.inputs] == [
        ("release", release.digest),
        ("report", report.digest),
    ]
    assert (target / "model-0.safetensors").read_text() == "one"
    assert [row["kind"] for row in manifest.lineage(pushed.manifest.inputs)][:3] == ["release", "run", "dataset"]
    front = yaml.safe_load((target / "README.md").read_text().split("---")[1])
    assert (front["base_model"], front["base_model_relation"], front["license"]) == (
        "owner/base",
        "quantized",
        "apache-2.0",
    )
    assert front["model-index"][0]["results"][0]["metrics"] == [{"type": "exact", "name": "exact", "value": 0.91}]
    card = (target / "README.md").read_text()
    for words in (
        "| slots | exact | 0.910 | 0.840 to 0.950 | 100 |",
        "22 fixed, 2 broken, McNemar p below 0.0001",
        "PASS exact superior",
        "d" * 16,
    ):
        assert words in card
    assert (release.path / "README.md").read_text() == "old card"
    assert manifest.verify(release.path) == [], "the release itself is as it was"
    assert sorted(p.name for p in target.iterdir()) == [
        "README.md",
        "manifest.json",
        "model-0.safetensors",
        "model-1.safetensors",
        "tokenizer.json",
    ]
    code, again = ft(release.path, f"file://{target}", "--report", report.path)
    assert (code, again["uploaded"]) == (0, [])
    assert not any((tmp_path / "cache" / "push").iterdir())


def test_a_base_that_is_a_local_folder_is_no_base_model_on_the_card(tmp_path, ft):
    release = make_release(tmp_path / "r", base_name="tiny", license=None)
    code, document = ft(release.path, tmp_path / "out")
    assert code == 2
    told = "passing it on asks for what is not met: the licence of tiny must be known (no licence is no permission)"
    assert document["error"]["message"] == told
    assert document["error"]["hint"].startswith(
        "put the base model's LICENSE beside the base model's weights, then ft merge"
    )
    (release.path / "LICENSE").write_text("mine")
    (release.path / "manifest.json").unlink()
    manifest.write(
        release.path, "release", inputs=list(release.manifest.inputs), config={}, facts=release.manifest.facts
    )
    assert ft(release.path, tmp_path / "out")[0] == 0
    front = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---")[1])
    assert "base_model" not in front
    assert "license" not in front


def test_duties_of_the_licence_hold_a_push_up(tmp_path, ft):
    release = make_release(tmp_path / "r", base_name="meta-llama/Llama-3.1-8B", license="llama3.1")
    code, document = ft(release.path, tmp_path / "slots")
    told = "passing it on asks for what is not met: pass on a copy of the agreement (Llama 3 Community License, 1.b)"
    assert (code, document["error"]["message"]) == (2, told)
    (release.path / "LICENSE").write_text("agreement")
    (release.path / "manifest.json").unlink()
    manifest.write(
        release.path, "release", inputs=list(release.manifest.inputs), config={}, facts=release.manifest.facts
    )
    assert "call it Llama-slots" in ft(release.path, tmp_path / "slots")[1]["error"]["hint"]
    assert not (tmp_path / "slots").exists()
    assert ft(release.path, tmp_path / "Llama-slots")[0] == 0
    assert "Built with Llama." in (tmp_path / "Llama-slots" / "README.md").read_text()
    assert "Meta Platforms" in (tmp_path / "Llama-slots" / "NOTICE").read_text()


def test_a_gguf_folder_is_passed_on_too(release, tmp_path, ft):
    folder = tmp_path / "gguf"
    folder.mkdir()
    (folder / "r-q8_0.gguf").write_text("GGUF")
    (folder / "Modelfile").write_text("FROM ./r-q8_0.gguf")
    facts = {**release.manifest.facts, "quantization": "gguf q8_0", "file": "r-q8_0.gguf", "type": "q8_0"}
    manifest.write(folder, "gguf", inputs=[release.as_input("release")], config={}, facts=facts)
    target = tmp_path / "out"
    assert ft(folder, target)[0] == 0
    assert (manifest.verify(target), manifest.read(target).kind) == ([], "gguf")
    card = (target / "README.md").read_text()
    assert "library_name: gguf" in card
    assert "llama-server -m r-q8_0.gguf" in card


def test_what_was_changed_or_is_of_other_bytes_is_not_pushed(release, report, tmp_path, ft):
    other = make_release(tmp_path / "other", ("three",))
    code, document = ft(other.path, tmp_path / "out", "--report", report.path)
    assert (code, "not of these bytes" in document["error"]["message"]) == (2, True)
    assert (
        "not about these bytes"
        in ft(other.path, tmp_path / "out", "--gate", report.path / "gate")[1]["error"]["message"]
    )
    (release.path / "model-0.safetensors").write_text("One")
    code, document = ft(release.path, tmp_path / "out")
    assert (code, document["error"]["message"]) == (
        2,
        "the release is not as it was written: model-0.safetensors: content changed",
    )
    assert not (tmp_path / "out").exists()


def test_another_release_is_replaced_only_when_told_and_is_none_meanwhile(release, tmp_path, ft, monkeypatch):
    old = make_release(tmp_path / "old", ("a", "b", "c"))
    target = tmp_path / "out"
    assert ft(old.path, target)[0] == 0
    code, document = ft(release.path, target)
    assert (code, "another release is there" in document["error"]["message"]) == (2, True)
    assert Release.open(target).manifest.inputs[0].digest == old.digest

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("fsspec.implementations.local.LocalFileSystem.put_file", full)
        code, document = ft(release.path, target, "--force")
        assert (code, document["error"]["kind"]) == (4, "infrastructure")
    assert not (target / "manifest.json").exists(), "a half of one and a half of the other is no release"
    assert ft(release.path, target, "--force")[0] == 0
    assert manifest.verify(target) == []
    assert not (target / "model-2.safetensors").exists()


def test_what_is_somebody_elses_stays_and_a_place_that_holds_it_is_refused(release, tmp_path, ft):
    """The name was forgotten: `ft push release/ models/` removed all models there."""
    place = tmp_path / "models"
    (place / "other").mkdir(parents=True)
    (place / "notes.txt").write_text("mine")
    (place / "other" / "w.bin").write_text("weights")
    code, document = ft(release.path, place)
    assert (code, "not empty and holds no release: notes.txt, other" in document["error"]["message"]) == (2, True)
    assert sorted(p.name for p in place.iterdir()) == ["notes.txt", "other"]
    assert ft(release.path, place, "--force")[0] == 0
    assert (place / "notes.txt").read_text() == "mine"
    assert ft(make_release(tmp_path / "smaller", ("one",)).path, place, "--force")[0] == 0
    assert (place / "other" / "w.bin").is_file()
    assert not (place / "model-1.safetensors").exists(), "of the release before"


def test_a_manifest_there_removes_nothing_outside_of_its_folder(release, tmp_path, ft):
    """It may be anybody's, and so may what an unfinished push left."""
    place, victim = tmp_path / "models" / "slots", tmp_path / "models" / "mine.txt"
    place.mkdir(parents=True)
    victim.write_text("mine")
    for name in ("../mine.txt", str(victim)):
        (place / "manifest.json").write_text(json.dumps({"digest": "0", "outputs": [{"path": name}]}))
        (place / ".tunegate-push.json").write_text(json.dumps({name: ""}))
        assert ft(release.path, place, "--force")[0] == 0
        assert victim.read_text() == "mine"


KILLED = """
import os, signal, sys
from fsspec.implementations.local import LocalFileSystem
from tunegate.core.commands import run
from tunegate.train.release.publish_cli import app
real, count = LocalFileSystem.put_file, [0]
def put_file(self, source, target, **options):
    count[0] += 1
    if count[0] == int(sys.argv[3]):
        open(target, "wb").write(open(source, "rb").read()[:1])  # half of a file
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, source, target, **options)
LocalFileSystem.put_file = put_file
run(app, prog="ft push", argv=[sys.argv[1], sys.argv[2]])
"""


@pytest.mark.parametrize("at", [1, 3, 5])
def test_killed_in_the_middle_and_run_again(release, tmp_path, ft, at):
    target = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(release.path), str(target), str(at)], capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert not (target / "manifest.json").exists(), "nor half of one"
    code, found = ft(release.path, target)
    assert code == 0, found
    assert len(found["skipped"]) == at - 1, "what was sent whole is not sent again"
    assert len(found["uploaded"]) == 5 - (at - 1)
    assert manifest.verify(target) == [], "nor is anything left of it"


def test_places_and_what_is_no_place(release, tmp_path, ft):
    assert destination("owner/name").kind == destination("hf://owner/name@v2").kind == "hub"
    assert destination("hf://owner/name@v2").revision == "v2"
    assert (destination("s3://bucket/a/b/").place, destination("s3://bucket/a/b/").name) == ("s3://bucket/a/b", "b")
    assert destination("./x/y").place == f"file://{Path.cwd()}/x/y"
    assert ft(release.path, "memory://models/slots")[0] == 0
    for bad in ("hf://name", "hf://a/b/c", "s3://", "nosuch://x/y"):
        code, document = ft(release.path, bad)
        assert (code, document["error"]["kind"]) == (2, "bad_input"), bad


def hub_environment(url, cache):
    drop = ("HF_HUB_OFFLINE",)
    keep = {k: v for k, v in os.environ.items() if k not in drop}
    return {**keep, "HF_ENDPOINT": url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "TUNEGATE_CACHE": str(cache), "HF_HOME": str(cache / "hf"),
            "HF_HUB_DISABLE_TELEMETRY": "1"}  # fmt: skip


@pytest.fixture
def hub():
    spec = importlib.util.spec_from_file_location("hub_standin", Path(__file__).with_name("hub_standin.py"))
    standin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(standin)
    state, stop = standin.start()
    yield state
    stop()


def push_to_hub(hub, release, tmp_path, *more, wait=True):
    code = "from tunegate.core.ft import main; main()"
    command = [sys.executable, "-c", code, "push", str(release.path), "team/slots", "--json", *map(str, more)]
    process = subprocess.Popen(
        command,
        env=hub_environment(hub.url, tmp_path / "cache"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if not wait:
        return process
    out, err = process.communicate(timeout=120)
    assert TOKEN not in out + err, "a token is never told"
    return process.returncode, json.loads(out), err


def test_the_hub_gets_everything_and_then_the_manifest(release, report, hub, tmp_path):
    code, found, err = push_to_hub(hub, release, tmp_path, "--report", report.path)
    assert code == 0, (found, err)
    files = hub.files["team/slots"]
    assert json.loads(files["manifest.json"])["digest"] == found["digest"]
    assert sorted(files) == [
        "README.md",
        "manifest.json",
        "model-0.safetensors",
        "model-1.safetensors",
        "tokenizer.json",
    ]
    assert hub.commits[-1] == [("file", "manifest.json")]
    assert ("lfsFile", "model-0.safetensors") in hub.commits[0]
    assert hub.created[0]["visibility"] == "private"
    assert hub.tokens == {f"Bearer {TOKEN}"}
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, data in files.items():
        (copy / name).write_bytes(data)
    assert manifest.verify(copy) == []
    commits = len(hub.commits)
    code, again, _ = push_to_hub(hub, release, tmp_path, "--report", report.path)
    assert (code, again["uploaded"], len(hub.commits)) == (0, [], commits)
    other = make_release(tmp_path / "other", ("three",))
    code, document, _ = push_to_hub(hub, other, tmp_path)
    assert (code, "another release is there" in document["error"]["message"]) == (2, True)
    assert push_to_hub(hub, other, tmp_path, "--force")[0] == 0
    assert sorted(hub.files["team/slots"]) == ["README.md", "manifest.json", "model-0.safetensors", "tokenizer.json"]
    assert hub.commits[commits] == [("deletedFile", "manifest.json")]
    hub.files["team/slots"]["examples/mine.txt"] = b"mine"
    assert push_to_hub(hub, release, tmp_path, "--force")[0] == 0
    assert "examples/mine.txt" in hub.files["team/slots"], "what no manifest names stays"


def test_killed_while_uploading_to_the_hub_and_run_again(release, hub, tmp_path):
    running, made = threading.Event(), {}

    def kill():
        running.wait(30)
        made["process"].send_signal(signal.SIGKILL)

    hub.kill_at, hub.kill = 3, kill
    made["process"] = push_to_hub(hub, release, tmp_path, wait=False)
    running.set()
    made["process"].communicate(timeout=120)
    assert made["process"].returncode == -signal.SIGKILL
    sent = list(hub.puts)
    assert len(sent) == 2
    assert hub.files["team/slots"] == {}, "nothing is committed, so nothing is taken for a release"
    code, _, err = push_to_hub(hub, release, tmp_path)
    assert code == 0, err
    assert len(hub.puts) == len(set(hub.puts)) == 3, "what was sent before is not sent again"
    assert hub.puts[: len(sent)] == sent
    assert "manifest.json" in hub.files["team/slots"]


def test_a_hub_that_refuses_or_is_gone(release, hub, tmp_path):
    hub.refuse = 403
    code, document, _ = push_to_hub(hub, release, tmp_path)
    assert (code, "refuses the token" in document["error"]["message"]) == (2, True)
    hub.url = "http://127.0.0.1:9"
    code, document, _ = push_to_hub(hub, release, tmp_path)
    assert (code, document["error"]["kind"]) == (4, "infrastructure"), document


@pytest.mark.slow
def test_an_s3_store(release, tmp_path):
    """s3fs against moto's server, both beside our environment and not in it (they pin other versions)."""
    place = tmp_path / "s3"
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--target", str(place), "--python", sys.executable,
               "moto[s3,server]==5.2.5", "s3fs==2026.9.0"]  # fmt: skip
    if subprocess.run(install, check=False, timeout=300).returncode:
        pytest.skip("moto and s3fs cannot be fetched")
    environment = {
        **os.environ,
        "PYTHONPATH": str(place),
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": TOKEN,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", "0", "-H", "127.0.0.1"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = next(line for line in server.stderr if "http://127.0.0.1" in line)
        url = "http://127.0.0.1:" + line.rpartition(":")[2].split()[0]
        threading.Thread(target=server.stderr.read, daemon=True).start()
        environment["AWS_ENDPOINT_URL"] = url
        make = "import s3fs; s3fs.S3FileSystem().mkdir('models')"
        subprocess.run([sys.executable, "-c", make], env=environment, check=True, timeout=60)

        def push(*more):
            command = [
                sys.executable,
                "-c",
                "from tunegate.core.ft import main; main()",
                "push",
                str(release.path),
                *more,
                "--json",
            ]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
            assert TOKEN not in done.stdout + done.stderr
            return done.returncode, json.loads(done.stdout)

        code, found = push("s3://models/slots")
        assert (code, len(found["uploaded"])) == (0, 5), found
        fetch = f"import s3fs; s3fs.S3FileSystem().get('models/slots', {str(tmp_path / 'got')!r}, recursive=True)"
        subprocess.run([sys.executable, "-c", fetch], env=environment, check=True, timeout=60)
        assert manifest.verify(tmp_path / "got") == []
        assert push("s3://models/slots")[1]["uploaded"] == []
        code, document = push("s3://no-such-bucket/slots")
        assert (code, document["error"]["kind"]) == (4, "infrastructure")
    finally:
        server.terminate()
        server.wait(20)
        server.stderr.close()
        shutil.rmtree(place)
