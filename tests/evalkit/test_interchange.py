"""Result files of lm-eval, promptfoo and Inspect as TARGET or BASELINE, and reports as Inspect logs."""

import json
import subprocess
import zipfile

import pytest
from uv import find_uv_bin

N = 60


def lm_eval_lines(answer=lambda i: f"q{i}", target=lambda i: f"q{i}"):
    for i in reversed(range(N)):
        for name in ("none", "flexible"):  # the same answer through two filters
            sample = {"doc_id": i, "doc": {"question": f"q{i}"}, "target": target(i), "filter": name}
            prompt = f"Question: q{i}\nAnswer:"
            yield {**sample, "arguments": {"gen_args_0": {"arg_0": prompt}}, "resps": [[answer(i)]]}


def promptfoo_document(providers=("openai:m",)):
    rows = [
        {
            "promptIdx": 0,
            "testIdx": i,
            "provider": {"id": p, "label": ""},
            "vars": {"question": f"q{i}"},
            "failureReason": 2 if i == 3 else 0,
            "error": "429" if i == 3 else None,
            "response": {"output": f"q{i}", "tokenUsage": {"prompt": 4, "completion": 1}, "cost": 0.001},
            "latencyMs": 100 + i,
        }
        for p in providers
        for i in range(N)
    ]
    for row in rows[3::N]:
        row["response"] = {"error": "429"}
    return {"evalId": "e", "results": {"version": 3, "results": rows}}


def inspect_document():
    samples = [
        {
            "id": i + 1,
            "epoch": 1,
            "input": f"q{i}",
            "target": f"q{i}",
            "output": {
                "choices": [{"message": {"role": "assistant", "content": f"q{i}"}, "stop_reason": "max_tokens"}],
                "usage": {"input_tokens": 3, "output_tokens": 2},
                "time": 0.5,
            },
        }
        for i in range(N)
    ]
    return {"version": 2, "status": "success", "eval": {"model": "m"}, "samples": samples}


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def rows_of(folder):
    return {row["id"]: row for row in map(json.loads, (folder / "results.jsonl").read_text().splitlines())}


def test_lm_eval_as_baseline_and_folder_as_target(echo, ft):
    (echo / "lm").mkdir()
    (echo / "lm/results_T.json").write_text(json.dumps({"results": {}, "configs": {}}))
    write_lines(echo / "lm/samples_t_T.jsonl", lm_eval_lines(lambda i: f"q{i}" if i % 2 else "no"))
    for spec in ("lm", "lm/results_T.json", "lm/samples_t_T.jsonl"):
        done = ft("eval", spec, "--task", "task.yaml", "--out", "r", "--force", "--json")
        assert done.json["outcomes"]["pass"] == N // 2, done.err
    write_lines(echo / "now.jsonl", [{"id": f"i{i}", "output": f"q{i}"} for i in range(N)])
    done = ft("eval", "now.jsonl", "--task", "task.yaml", "--out", "n", "--against", "lm/samples_t_T.jsonl", "--json")
    assert done.code == 0
    assert done.json["comparison"]["exact"]["fixed"] == N // 2


def test_lm_eval_that_cannot_be_mapped_is_named(echo, ft):
    write_lines(
        echo / "samples_t.jsonl", [*lm_eval_lines(), {"doc_id": 99, "doc": {"question": "zzz"}, "resps": [["a"]]}]
    )
    done = ft("eval", "samples_t.jsonl", "--task", "task.yaml", "--out", "r")
    assert done.code == 2
    assert "1 of 61" in done.err
    assert "'zzz'" in done.err
    write_lines(echo / "samples_t.jsonl", lm_eval_lines(target=lambda i: "other"))
    done = ft("eval", "samples_t.jsonl", "--task", "task.yaml", "--out", "r")
    assert done.code == 2
    assert "expect another answer" in done.err
    write_lines(echo / "samples_t.jsonl", [{"doc_id": 0, "doc": {"question": "q0"}, "resps": [[[-1.5, True]]]}])
    done = ft("eval", "samples_t.jsonl", "--task", "task.yaml", "--out", "r")
    assert done.code == 2
    assert "likelihoods" in done.err


def test_promptfoo(echo, ft):
    (echo / "pf.json").write_text(json.dumps(promptfoo_document()))
    done = ft("eval", "pf.json", "--task", "task.yaml", "--out", "r", "--json")
    assert done.json["outcomes"] | {"pass": 59, "infra_error": 1} == done.json["outcomes"]
    row = rows_of(echo / "r")["i7"]
    assert (row["latency_ms"], row["prompt_tokens"], row["cost_usd"]) == (107, 4, 0.001)
    (echo / "two.json").write_text(json.dumps(promptfoo_document(("openai:m", "openai:k"))))
    done = ft("eval", "two.json", "--task", "task.yaml", "--out", "r2")
    assert done.code == 2
    assert "openai:m, openai:k" in done.err
    done = ft("eval", "two.json", "--task", "task.yaml", "--out", "r2", "--model", "openai:k", "--json")
    assert done.json["outcomes"]["pass"] == N - 1


@pytest.mark.parametrize("suffix", ["json", "eval"])
def test_inspect_read(echo, ft, suffix):
    document = inspect_document()
    path = echo / f"log.{suffix}"
    if suffix == "json":
        path.write_text(json.dumps(document))
    else:
        samples = document.pop("samples")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("header.json", json.dumps(document))
            for sample in samples:
                archive.writestr(f"samples/{sample['id']}_epoch_1.json", json.dumps(sample))
    done = ft("eval", path.name, "--task", "task.yaml", "--out", "r", "--json")
    assert done.json["outcomes"]["pass"] == N
    row = rows_of(echo / "r")["i7"]
    assert (row["latency_ms"], row["prompt_tokens"], row["finish_reason"]) == (500.0, 3, "length")


def test_damaged_foreign_files_are_one_line(echo, ft):
    for name, content in (
        ("a.eval", b"PK\x03\x04broken"),
        ("b.eval", b""),
        ("c.json", b'{"results": 3}'),
        ("d.json", b'{"version": 9, "eval": {}, "samples": []}'),
        ("e.json", b'{"evalId": 1}'),
    ):
        (echo / name).write_bytes(content)
        done = ft("eval", name, "--task", "task.yaml", "--out", "r")
        assert (done.code, done.err.count("\n"), done.err[:6]) == (2, 1, "error:"), (name, done.err)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("samples_t.jsonl", '{"doc_id": 0, "doc": "q0", "arguments": "q0", "resps": {"a": 1}}\n'),
        ("samples_t.jsonl", '{"doc_id": 0, "doc": {"question": "q0"}, "arguments": {"gen_args_0": 2.5}, "resps": [["a"]]}\n'),
        ("pf.json", json.dumps(promptfoo_document()).replace('"prompt": 4', '"prompt": 1e400')),
        ("in.json", json.dumps(inspect_document()).replace('"input_tokens": 3', '"input_tokens": "3"')),
        ("z.eval", "PK\x05\x06" + "\0" * 18),
    ],
)  # fmt: skip
def test_foreign_files_of_another_form_are_one_line(echo, ft, name, text):
    (echo / name).write_text(text)
    done = ft("eval", name, "--task", "task.yaml", "--out", "r")
    assert done.code == 2, done.err
    assert done.err.splitlines()[-1].startswith("error: ")
    assert not (echo / "r").exists()


def written_log(echo, ft, suffix):
    lines = [{"id": f"i{i}", "output": f"q{i}" if i else "wrong \u202e", "latency_ms": 4.0} for i in range(N - 1)]
    write_lines(echo / "out.jsonl", [*lines, {"id": f"i{N - 1}", "error": "503"}])
    ft("eval", "out.jsonl", "--task", "task.yaml", "--out", "r", "--force")
    done = ft("report", "r", "--to", "inspect", "--out", f"log.{suffix}", "--json")
    assert done.code == 0, done.err
    return echo / f"log.{suffix}"


@pytest.mark.parametrize("suffix", ["json", "eval"])
def test_inspect_log_comes_back_as_it_went(echo, ft, suffix):
    log = written_log(echo, ft, suffix)
    ft("eval", log.name, "--task", "task.yaml", "--out", "again")
    before, after = rows_of(echo / "r"), rows_of(echo / "again")
    for key in ("output", "outcome", "latency_ms", "scores"):
        assert {i: r[key] for i, r in before.items()} == {i: r[key] for i, r in after.items()}


def test_to_and_out_go_together(echo, ft):
    for arguments in (["--to", "inspect"], ["--out", "x.json"], ["--to", "csv", "--out", "x"]):
        assert ft("report", "r", *arguments).code == 2


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["json", "eval"])
def test_inspect_s_own_reader_opens_it(echo, ft, suffix):
    """By the real inspect-ai, in an environment made on the fly; its own writer's log then comes back to us (zstandard)."""
    uv = find_uv_bin()
    log = written_log(echo, ft, suffix)
    script = (
        "import sys; from inspect_ai.log import read_eval_log, read_eval_log_sample, write_eval_log as w\n"
        "l = read_eval_log(sys.argv[1]); w(l, sys.argv[2])\n"
        "s = read_eval_log_sample(sys.argv[1], id='i0', epoch=1)\n"
        "lost = [x.error.message for x in l.samples if x.error]\n"
        "print(len(l.samples), s.scores['exact'].value, s.output.completion, *lost)\n"
    )
    command = [uv, "run", "-q", "--no-project", "--with", "inspect-ai==0.3.285", "python", "-c"]
    if subprocess.run([*command, "import inspect_ai"], capture_output=True).returncode:
        pytest.skip("inspect-ai cannot be installed here")
    command.append(script)
    done = subprocess.run([*command, str(log), f"own.{suffix}"], capture_output=True, text=True, cwd=echo)
    assert done.stdout.strip() == f"{N} 0.0 wrong \u202e 503", done.stderr
    done = ft("eval", f"own.{suffix}", "--task", "task.yaml", "--out", "again", "--json")
    assert done.json["outcomes"]["pass"] == N - 2
