"""`ft verify` on a real run and release of the tiny model: any change is found, the lineage reaches the data, one template."""

import json
import shutil

import pytest

from tunegate.core import manifest
from tunegate.core.artifacts import Dataset, Release
from tunegate.core.commands import run
from tunegate.core.manifest import Input
from tunegate.core.model_source import resolve
from tunegate.train import sft
from tunegate.train.config import resolve as resolve_config
from tunegate.train.release import licences
from tunegate.train.release.merge import merge
from tunegate.train.release.verify_cli import app

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def chain(tiny_model, makers_of_data, tmp_path_factory):
    """Dataset (with a source), run and release, made by the stages themselves."""
    folder = tmp_path_factory.mktemp("chain")
    settings = {"model": str(tiny_model), "max_steps": 1, "per_device_train_batch_size": 2, "save_steps": 0, "rank": 4}
    config = resolve_config([("test", settings)])[0]
    made = sft.train(
        makers_of_data(folder / "data"), resolve(str(tiny_model)), config, folder / "run", resume=False, force=False
    )
    merge(made, resolve(str(tiny_model)), folder / "release", force=False)
    return folder


@pytest.fixture(scope="module")
def makers_of_data(tiny_dataset):
    def make(folder):
        shutil.copytree(tiny_dataset.path, folder)
        (folder / "manifest.json").unlink()
        source = Input(role="source", kind="file", path="my.jsonl", digest="5" * 64)
        manifest.write(folder, "dataset", inputs=[source], config={}, facts={"train": 24, "eval": 8})
        return Dataset.open(folder)

    return make


@pytest.fixture
def release(chain, tmp_path):
    return Release.open(shutil.copytree(chain / "release", tmp_path / "release"))


@pytest.fixture
def verify(capsys):
    def call(folder, *arguments):
        capsys.readouterr()
        code = run(app, prog="ft verify", argv=[str(folder), *map(str, arguments), "--json"])
        return int(code), json.loads(capsys.readouterr().out)

    return call


def rewrite(folder, *, inputs=None, facts=None):
    """A manifest written again over what stands there now: hashes hold, what it says differs."""
    old = manifest.read(folder)
    (folder / "manifest.json").unlink()
    manifest.write(
        folder,
        old.kind,
        inputs=list(old.inputs) if inputs is None else inputs,
        config=old.config,
        facts={**old.facts, **(facts or {})},
    )


def said(document):
    return [f"{p['path']}: {p['problem']}" for p in document["problems"]]


def test_a_release_as_it_was_made(chain, verify):
    code, document = verify(chain / "release")
    assert (code, document["ok"], document["problems"]) == (0, True, [])
    assert [row["kind"] for row in document["lineage"]] == ["run", "dataset", "file", "model"]
    stages = document["stages"]
    assert [s["stage"] for s in stages] == ["these files, now", "recorded by merge", "recorded by training"]
    assert len({s["template_digest"] for s in stages}) == len({s["probe_digest"] for s in stages}) == 1
    assert verify(chain / "run")[1]["ok"]


def test_every_byte_counts(release, verify):
    names = [str(item["path"]) for item in release.manifest.outputs]
    assert len(names) >= 8
    for name in [*names, "manifest.json"]:
        path = release.path / name
        before = path.read_bytes()
        place = len(before) // 2
        path.write_bytes(before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :])
        code = run(app, prog="ft verify", argv=[str(release.path)])
        assert code == 2, name
        path.write_bytes(before)
    assert verify(release.path)[0] == 0


def test_extra_hidden_missing_linked_and_empty_are_found(release, verify):
    (release.path / ".hidden").write_text("x")
    (release.path / ".git").mkdir()
    (release.path / ".git" / "hooks").write_text("x")
    (release.path / "empty").mkdir()
    (release.path / "link").symlink_to("/etc/hostname")
    (release.path / "README.md").unlink()
    code, document = verify(release.path)
    assert code == 2
    assert sorted(said(document)) == [
        ".git/hooks: not in the manifest",
        ".hidden: not in the manifest",
        "README.md: missing",
        "empty/: an empty folder, not in the manifest",
        "link: is a symlink",
    ]


@pytest.mark.parametrize("kind", ["release", "gguf"])
def test_an_artifact_inside_a_folder_that_is_passed_on_is_a_problem(tmp_path, verify, chain, kind):
    folder = shutil.copytree(chain / "release", tmp_path / "outer")
    old = manifest.read(folder)
    (folder / "manifest.json").unlink()
    manifest.write(folder, kind, inputs=list(old.inputs), config={}, facts=old.facts)
    shutil.copytree(chain / "run", folder / "sub" / "inner")
    code, document = verify(folder)
    assert (code, document["ok"]) == (2, False)
    assert said(document) == ["sub/inner/: is an artifact of its own, which its digest does not cover: move it out"]


@pytest.mark.parametrize(
    ("outer", "inner", "found"),
    [
        ("dataset", "eval_report", True),
        ("run", "eval_report", True),
        ("eval_report", "dataset", True),
        ("load_report", "gate_decision", True),
        ("eval_report", "gate_decision", False),  # `ft gate REPORT` puts it there
        ("bakeoff", "run", False),
        ("ladder", "eval_report", False),
    ],
)
def test_an_artifact_that_no_stage_puts_there_is_found_in_a_folder_of_any_kind(verify, tmp_path, outer, inner, found):
    for folder, kind in ((tmp_path / "outer", outer), (tmp_path / "outer" / "inner", inner)):
        folder.mkdir()
        (folder / "f.txt").write_text(kind)
        facts = {"base": "no/such", "method": "lora"} if kind == "run" else {}
        manifest.write(folder, kind, inputs=[], config={}, facts=facts)
    _, document = verify(tmp_path / "outer")
    assert any(text.startswith("inner/: is an artifact of its own") for text in said(document)) == found


def test_a_gate_inside_a_report_is_none(tmp_path, verify):
    for folder, kind in ((tmp_path / "report" / "gate", "gate_decision"), (tmp_path / "report", "eval_report")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "file").write_text("x")
        manifest.write(folder, kind, inputs=[], config={})
    assert verify(tmp_path / "report")[0] == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [("garbage", "not valid JSON: "), ("{}", "not a Tunegate manifest"), ('{"schema_version": 99, "kind": "run"}', "written by a newer version")],
)  # fmt: skip
def test_a_manifest_inside_that_cannot_be_read_is_a_row_like_any_other(release, verify, text, says):
    (release.path / "sub").mkdir()
    (release.path / "sub" / "manifest.json").write_text(text)
    code, document = verify(release.path)
    assert code == 2
    assert f"sub/manifest.json: {says}" in "\n".join(said(document))


def test_a_lineage_that_does_not_reach_the_data_or_the_base(release, verify):
    full = release.manifest.inputs[0]
    data, base = full.inputs
    for inputs, says in (
        ([], ["the lineage does not reach a dataset", "the lineage does not reach a base model"]),
        ([Input(role="run", kind="run", path="r", digest="0", inputs=(base,))], ["the lineage does not reach a dataset"]),
        ([Input(role="run", kind="run", path="r", digest="0", inputs=(Input(role="dataset", kind="dataset", path="d", digest="1"), base))],
         ["the lineage ends at the dataset: its sources are not named"]),
        ([Input(role="run", kind="run", path="r", digest="0", inputs=(data,))], ["the lineage does not reach a base model"]),
    ):  # fmt: skip
        rewrite(release.path, inputs=inputs)
        code, document = verify(release.path)
        assert code == 2
        assert said(document) == [f"manifest.json: {text}" for text in says]


def test_another_template_than_it_was_trained_with_is_found(release, verify):
    path = release.path / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|im_start|>", "<|im_start|> "))
    rewrite(release.path)
    code, document = verify(release.path)
    assert code == 2
    assert "the chat template are not one at all stages" in said(document)[0]
    assert "the token ids of the probe" in said(document)[1]
    assert len(said(document)) == 2


def test_every_kind_of_pickle_is_found_wherever_it_lies(release, verify):
    names = [
        "a.bin",
        "b.pt",
        "c.pth",
        "d.pkl",
        "e.pickle",
        "f.ckpt",
        "g.BIN",
        "sub/h.bin",
        "checkpoint.bin",
        "checkpoint-1/o.pt",
    ]
    for name in names:
        (release.path / name).parent.mkdir(exist_ok=True)
        (release.path / name).write_bytes(b"\x80\x04.")
    rewrite(release.path)
    code, document = verify(release.path)
    assert (code, {p["path"] for p in document["problems"]}) == (2, set(names))


def test_no_training_tags_no_pickle_no_cut_weights(release, verify):
    template = release.path / "chat_template.jinja"
    keep = template.read_text()
    template.write_text("{% generation %}{% endgeneration %}" + keep)
    (release.path / "training_args.bin").write_bytes(b"\x80\x04.")
    weights = release.path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    (release.path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    rewrite(release.path)
    size = weights.stat().st_size
    code, document = verify(release.path)
    assert code == 2
    assert sorted(said(document)) == [
        "chat_template.jinja: the template has training-only tags ({% generation %})",
        "model-2.safetensors: a shard that the index names is missing",
        f"model.safetensors: the weight file has {size} bytes, its header says {size + 8}: cut off or overwritten",
        "training_args.bin: a pickle: it runs code when it is loaded",
    ]


@pytest.mark.parametrize("tag", ["{%- generation -%}", "{%generation%}", "{%+ generation\n%}"])
def test_training_tags_are_found_however_they_are_spelt(release, verify, tag):
    """As training takes them out."""
    template = release.path / "chat_template.jinja"
    template.write_text(tag + "{% endgeneration %}" + template.read_text())
    rewrite(release.path)
    code, document = verify(release.path)
    assert (code, said(document)) == (
        2,
        ["chat_template.jinja: the template has training-only tags ({% generation %})"],
    )


LLAMA = {"license": "llama3.1", "base_name": "meta-llama/Llama-3.1-8B-Instruct", "method": "lora"}
GEMMA = {"license": None, "base_name": "google/gemma-2-9b-it", "method": "lora"}


@pytest.mark.parametrize(
    ("facts", "family"),
    [
        (LLAMA, "llama"),
        ({"license": None, "base_name": "meta-llama/Meta-Llama-3-8B"}, "llama"),
        (GEMMA, "gemma"),
        (GEMMA | {"base_name": "google/gemma-7b-it"}, "gemma"),
        (GEMMA | {"base_name": "google/codegemma-7b-it"}, "gemma"),
        (GEMMA | {"base_name": "Qwen/Qwen2.5-Coder-3B-Instruct"}, "qwen-research"),
        (GEMMA | {"base_name": "Qwen/Qwen2.5-32B"}, "unknown"),
        ({"license": "apache-2.0", "base_name": "google/gemma-4-E2B"}, "permissive"),
        ({"license": None, "base_name": "google/gemma-4-E2B"}, "unknown"),
        ({"license": "qwen-research", "base_name": "Qwen/Qwen2.5-3B-Instruct"}, "qwen-research"),
        ({"license": None, "base_name": "Qwen/Qwen2.5-3B"}, "qwen-research"),
        ({"license": "apache-2.0", "base_name": "Qwen/Qwen3-8B"}, "permissive"),
        ({"license": None, "base_name": "mine"}, "unknown"),
        ({"license": "other", "base_name": "x/Llama-3-8B"}, "unknown"),
    ],
)
def test_the_family_of_a_licence(facts, family):
    assert licences.family(facts) == family


@pytest.mark.parametrize("facts", [LLAMA, GEMMA])
def test_duties_are_met_by_files_and_card(tmp_path, facts):
    folder = tmp_path / "Llama-slots"
    folder.mkdir()
    (folder / "README.md").write_text("fine-tuned")
    assert sum(not d.met for d in licences.duties(folder, facts)) >= 3
    (folder / "LICENSE.txt").write_text("the agreement")
    (folder / "NOTICE").write_text(licences.notice(facts))
    (folder / "README.md").write_text("\n".join(licences.card_lines(facts)))
    assert [d.duty for d in licences.duties(folder, facts) if not d.met] == []
    if facts is LLAMA:
        unmet = [d for d in licences.duties(folder, facts, name="slots") if not d.met]
        assert [d.fix for d in unmet] == ["call it Llama-slots"]
        assert "Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright © Meta" in licences.notice(facts)


def test_duties_are_problems_only_when_it_is_passed_on(release, verify):
    rewrite(release.path, facts={"license": "llama3.2", "base_name": "meta-llama/Llama-3.2-1B"})
    code, document = verify(release.path)
    assert code == 0
    assert [d["met"] for d in document["licence"]] == [False] * 4
    code, document = verify(release.path, "--distribution")
    assert code == 2
    assert [p["path"] for p in document["problems"]] == ["licence"] * 4


def test_verify_looks_at_parents_that_are_at_hand(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source, parent, child = tmp_path / "my.jsonl", tmp_path / "data", tmp_path / "report"
    source.write_text("{}\n")
    for folder in (parent, child):
        folder.mkdir()
        (folder / "file").write_text("as it was")
    made = manifest.write(parent, "dataset", inputs=[manifest.Input.of_file(source, "source")], config={})
    manifest.write(child, "eval_report", inputs=[made.as_input("data", parent)], config={})

    def verify(*arguments):
        capsys.readouterr()
        code = run(app, prog="ft verify", argv=[str(child), "--json", *arguments])
        return code, json.loads(capsys.readouterr().out)

    code, d = verify()
    assert (code, [row["state"] for row in d["lineage"]]) == (0, ["here", "here"])
    source.write_text("{} \n")
    code, d = verify()
    assert (code, d["ok"], [row["state"] for row in d["lineage"]]) == (0, True, ["here", "content changed"])
    (parent / "file").write_text("as it wos")
    code, d = verify()
    assert (code, [row["state"] for row in d["lineage"]]) == (0, ["content changed", "content changed"])
    assert run(app, prog="ft verify", argv=[str(child)]) == 0
    assert f"({parent}) [content changed]" in capsys.readouterr().out.replace("\n", "")
    code, d = verify("--key", "nokey.pem")
    assert (code, d["error"]["message"], d["error"]["where"]) == (2, "no such key file", "nokey.pem")
