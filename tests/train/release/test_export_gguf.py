"""GGUF from the real converter and quantizer: tokenizes as the release, answers like it, and is refused where it cannot."""

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tunegate.core import manifest
from tunegate.core.artifacts import GgufExport, Release
from tunegate.core.chat_template import probe_digest, render_ids, template_digest, with_defaults
from tunegate.core.commands import run
from tunegate.core.errors import InfrastructureError, TunegateError, UserError
from tunegate.core.manifest import Input
from tunegate.core.model_source import ModelSource, resolve
from tunegate.serve.vllm_process import free_port
from tunegate.train.model_loading import load_tokenizer
from tunegate.train.release import environments, export_cli, export_gguf, llama_cpp, verify_cli


def make_release(model, folder, **facts):
    shutil.copytree(model, folder)
    tokenizer = load_tokenizer(ModelSource("m", "folder", str(folder), "m"))
    source = Input(role="source", kind="file", path="my.jsonl", digest="5" * 64)
    data = Input(role="dataset", kind="dataset", path="gone", digest="d" * 64, inputs=(source,))
    base = Input(role="base_model", kind="model", path="builtin:x", digest="b" * 64)
    made = Input(role="run", kind="run", path="gone", digest="r" * 64, inputs=(data, base))
    (folder / "README.md").write_text("fine-tuned, apache-2.0")
    (folder / "probe.json").write_text(json.dumps({"prompts": [
        {"messages": [{"role": "user", "content": text}]} for text in ("What is the capital of France?", "Write a haiku about 12 cats.", "Count to 5.")]}))  # fmt: skip
    size = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
    known = {"base": "builtin:x", "base_name": "x", "license": "apache-2.0", "method": "lora", "quantization": "none", "bytes": size,
             "template_digest": template_digest(tokenizer), "probe_digest": probe_digest(tokenizer)}  # fmt: skip
    manifest.write(folder, "release", inputs=[made], config={}, facts={**known, **facts})
    return Release.open(folder)


@pytest.fixture
def ft(capsys):
    def call(app, *arguments):
        capsys.readouterr()
        code = run(app, prog="ft", argv=[*map(str, arguments), "--json"])
        return int(code), json.loads(capsys.readouterr().out)

    return call


def export(ft, release, out, *more):
    return ft(export_cli.app, "gguf", release.path, "--out", out, *more)


@pytest.fixture
def never(monkeypatch):
    def ensure():
        raise AssertionError("nothing may be built or made for this")

    monkeypatch.setattr(llama_cpp, "ensure", ensure)


def test_what_cannot_be_exported_is_refused_before_any_work(tiny_model, tmp_path, ft, never):
    release = make_release(tiny_model, tmp_path / "release")
    code, document = export(ft, release, tmp_path / "out", "--type", "q4km")
    assert (code, document["error"]["hint"].startswith('did you mean "q4_k_m"')) == (2, True)
    quantized = make_release(tiny_model, tmp_path / "awq", quantization="awq")
    manifest_path = quantized.path / "manifest.json"
    manifest_path.unlink()
    manifest.write(
        quantized.path, "release", inputs=[release.as_input("release")], config={}, facts=quantized.manifest.facts
    )
    code, document = export(ft, Release.open(quantized.path), tmp_path / "out")
    assert (code, document["error"]["kind"]) == (2, "bad_input")
    assert "made from merged bf16 weights" in document["error"]["message"]
    assert document["error"]["hint"] == f"ft export gguf {release.path} --type q4_k_m --out DIR"
    kept = make_release(tiny_model, tmp_path / "kept")
    (kept.path / "adapter_config.json").write_text("{}")
    assert "--keep-adapter" in export(ft, kept, tmp_path / "out")[1]["error"]["hint"]
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "x").write_text("")
    assert "exists already" in export(ft, release, tmp_path / "there")[1]["error"]["message"]
    assert not (tmp_path / "out").exists()


def test_too_little_memory_and_disk_are_said_before(tiny_model, tmp_path, monkeypatch):
    release = make_release(tiny_model, tmp_path / "release")
    monkeypatch.setattr(export_gguf, "memory_gb", lambda: 1e-5)
    with pytest.raises(InfrastructureError, match="of memory") as caught:
        export_gguf.check(release, export_gguf.ExportConfig())
    assert "--prompts 0" in caught.value.hint
    export_gguf.check(release, export_gguf.ExportConfig(prompts=0))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(InfrastructureError, match="are free"):
        export_gguf._room(release, export_gguf.ExportConfig(), tmp_path)


@pytest.mark.parametrize(
    ("lines", "kind", "says"),
    [
        (["NotImplementedError: BPE pre-tokenizer was not recognized - update"], UserError, "pre-tokenizer"),
        (["ERROR:hf-to-gguf:Model FooForCausalLM is not supported"], UserError, "FooForCausalLM is not supported"),
        (["Traceback", "ValueError: x"], TunegateError, "ValueError: x"),
    ],
)
def test_what_llama_cpp_says_is_told_by_who_can_mend_it(lines, kind, says):
    error = export_gguf._failure(3, lines)
    assert type(error) is kind
    assert says in error.message
    assert isinstance(export_gguf._failure(-9, []), InfrastructureError)


def test_a_file_that_tokenizes_or_answers_otherwise_writes_nothing(tiny_model, tmp_path, monkeypatch):
    """The worker's answers are made up here; what is done with them is real."""
    release = make_release(tiny_model, tmp_path / "release")
    tokenizer = load_tokenizer(ModelSource("m", "folder", str(release.path), "m"))
    monkeypatch.setattr(llama_cpp, "ensure", lambda: llama_cpp.LlamaCpp(Path("python"), Path("convert")))
    monkeypatch.setattr(export_gguf, "_make", lambda *a: a[-1].write_bytes(b"GGUF"))
    monkeypatch.setattr(export_gguf, "_metadata", lambda *a: tokenizer.chat_template)

    def answers(shift, share):
        def probe(tools, file, job):
            texts = [[i + shift for i in tokenizer(t, add_special_tokens=False)["input_ids"]] for t in job["texts"]]
            told = [p["answer"] for p in job["prompts"]]
            return {"texts": texts, "answers": told, "agreeing": [int(len(a) * share) for a in told], "adds_bos": False}

        monkeypatch.setattr(export_gguf, "_probe", probe)
        config = export_gguf.ExportConfig(type="q4_k_m", prompts=2, max_tokens=8)
        return lambda: export_gguf.export(release, config, tmp_path / "out", force=False)

    with pytest.raises(TunegateError, match=r"tokenizes .* differently"):
        answers(1, 1.0)()
    with pytest.raises(TunegateError, match="answers otherwise than the release"):
        answers(0, 0.2)()
    assert [p.name for p in tmp_path.iterdir()] == ["release"], "nothing half-made is left"
    made = answers(0, 1.0)()
    assert made.manifest.facts["proof"]["same_next_token_share"] == 1.0
    assert manifest.verify(made.path) == []


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.loads(response.read())


@pytest.mark.slow
@pytest.mark.avx512
@pytest.mark.timeout(1800)
def test_the_real_model_through_llama_cpp(tmp_path, ft):
    """Builds llama.cpp where it is not yet (about 5 minutes); then about a minute."""
    release = make_release(Path(resolve("builtin:smollm2-135m").location), tmp_path / "release")
    size = release.manifest.facts["bytes"]
    for kind, least, largest in (("q8_0", 0.95, 0.56), ("q4_k_m", 0.6, 0.40)):
        out = tmp_path / kind
        code, found = export(ft, release, out, "--type", kind, "--max-tokens", "16")
        assert code == 0, found
        assert found["proof"]["same_next_token_share"] >= least
        assert found["bytes"] < largest * size
        assert found["ollama"] == {"template": True, "system": "turn", "reason": None, "stops": ["<|im_end|>"]}
        made = GgufExport.open(out)
        assert export_gguf.embedded_template_digest(made) == release.manifest.facts["template_digest"]
        code, verified = ft(verify_cli.app, out, "--engine")
        assert (code, verified["problems"]) == (0, [])
        assert "llama.cpp answers" in verified["engine"]
        assert [s["stage"] for s in verified["stages"]] == [
            "these files, now",
            "recorded by GGUF",
            "rendered alike by the Modelfile",
            "recorded by merge",
        ]
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    tokenizer = load_tokenizer(ModelSource("m", "folder", str(release.path), "m"))
    with llama_cpp.serving(GgufExport.open(tmp_path / "q8_0")) as url:
        tokens = post(url.removesuffix("/v1") + "/tokenize", {"messages": asked})["tokens"]
        assert tokens == render_ids(tokenizer, asked, generate=True), "the template in the file renders as ours"
        answer = post(f"{url}/chat/completions", {"messages": asked, "max_tokens": 16, "temperature": 0})
        assert "Paris" in answer["choices"][0]["message"]["content"]
        assert answer["choices"][0]["finish_reason"] in ("stop", "length")
    raw = bytearray((out / found["file"]).read_bytes())
    raw[-1] ^= 1
    (out / found["file"]).write_bytes(raw)
    assert ft(verify_cli.app, out)[0] == 2
    config = json.loads((release.path / "config.json").read_text())
    other = make_release(release.path, tmp_path / "unknown")
    (other.path / "config.json").write_text(
        json.dumps({**config, "architectures": ["NewForCausalLM"], "model_type": "new"})
    )
    with pytest.raises(UserError, match="NewForCausalLM"):
        export_gguf._make(other, export_gguf.ExportConfig(type="bf16"), llama_cpp.ensure(), tmp_path / "x.gguf")
    assert environments.is_made("gguf")


def test_a_build_that_fails_says_why_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEGATE_CACHE", str(tmp_path))
    code = "import sys; print('configuring'); print('CMake Error: no C++ compiler', file=sys.stderr); sys.exit(1)"
    with pytest.raises(InfrastructureError, match="cannot be built: CMake Error: no C\\+\\+ compiler"):
        llama_cpp._run([sys.executable, "-c", code], "llama.cpp cannot be built")

    def other_bytes(command, what, settings=None):
        (Path(command[command.index("--dest") + 1]) / "llama_cpp_python-0.3.36.tar.gz").write_bytes(b"x")

    monkeypatch.setattr(llama_cpp, "_run", other_bytes)
    with pytest.raises(InfrastructureError, match="not the one that is known"):
        llama_cpp._wheel(Path("python"))
    assert list((tmp_path / "wheels").iterdir()) == []


def test_a_fixed_date_is_no_reason_to_leave_the_template_out(makers, tmp_path):
    """`--template-defaults date_string=...` fixes it; the word for today's date is still in the text."""
    dated = "{% if date is not defined %}{% set date = strftime_now('%d %b') %}{% endif %}<|im_start|>system\nIt is {{ date }}.<|im_end|>\n"
    told = {}
    for name, text in (("today", dated), ("fixed", with_defaults(dated, {"date": "1 Jan"}))):
        tokenizer = makers.tokenizer()
        tokenizer.chat_template = text + tokenizer.chat_template
        (tmp_path / name).mkdir()
        told[name] = export_gguf._modelfile(tmp_path / name, "m.gguf", tokenizer, [1], adds_bos=False)
    assert "today's date" in told["today"]["reason"]
    assert told["fixed"]["reason"] is None
    assert "It is 1 Jan." in (tmp_path / "fixed" / "Modelfile").read_text()


def test_a_proxy_does_not_hide_our_own_server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port('127.0.0.1')}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    statuses = [503, 200]

    class Health(BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.path == "/health"
            self.send_response(statuses.pop(0))
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Health) as server, tempfile.TemporaryFile() as log:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        alive = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        try:
            llama_cpp._wait(alive, server.server_address[1], time.monotonic() + 20, log)
        finally:
            alive.communicate()
            server.shutdown()
    assert statuses == [], "one that is not ready is asked again"
