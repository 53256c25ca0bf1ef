"""Quantizing without the quantizer: group sizes, calibration rows, environments, the worker's imports."""

import ast
import json
from pathlib import Path

import pytest

from tunegate.core.commands import run
from tunegate.core.errors import InfrastructureError, TunegateError, UsageError, UserError
from tunegate.train.release import environments, quantize_worker
from tunegate.train.release.cli import quantize_app
from tunegate.train.release.quantize import calibration_rows
from tunegate.train.release.quantize_plan import QuantizeConfig, check_config, pick_group_size


def shape(hidden, ffn, heads, head_dim=None):
    return {"hidden_size": hidden, "intermediate_size": ffn, "num_attention_heads": heads, "head_dim": head_dim}


@pytest.mark.parametrize(
    ("model", "widths", "size"),
    [
        ("SmolLM2-135M", shape(576, 1536, 9), 32),
        ("Llama-3.1-8B", shape(4096, 14336, 32), 128),
        ("Llama-3.2-1B", shape(2048, 8192, 32), 128),
        ("Qwen2.5-0.5B", shape(896, 4864, 14), 32),
        ("Qwen3-0.6B, head size of its own", shape(1024, 3072, 16, 128), 128),
        ("odd feed-forward width", shape(2048, 8192 + 64, 32), 64),
        ("odder", shape(2048, 8192 + 32, 32), 32),
    ],
)
def test_the_group_size_divides_every_width(model, widths, size):
    assert pick_group_size(widths, None) == size


def test_a_group_size_that_was_asked_for_is_kept_or_refused():
    assert pick_group_size(shape(576, 1536, 9), 64) == 64
    with pytest.raises(UserError, match="group size 128 does not fit layer widths") as caught:
        pick_group_size(shape(576, 1536, 9), 128)
    assert caught.value.hint == "possible here: 64, 32"
    with pytest.raises(UserError, match="group size 48"):
        pick_group_size(shape(576, 1536, 9), 48)
    with pytest.raises(UserError, match="no group size of"):
        pick_group_size(shape(100, 300, 5), None)


def test_calibration_rows_come_from_training_and_are_stable(tiny_dataset, capsys):
    few = [row.id for row in calibration_rows(tiny_dataset, QuantizeConfig(rows=5))]
    assert len(set(few)) == 5
    assert few == [row.id for row in calibration_rows(tiny_dataset, QuantizeConfig(rows=5))]
    assert few != [row.id for row in calibration_rows(tiny_dataset, QuantizeConfig(rows=5, seed=1))]
    assert set(few) <= {f"r{i}" for i in range(24)}, "no row of the held-out part"
    capsys.readouterr()
    assert len(calibration_rows(tiny_dataset, QuantizeConfig(rows=1000))) == 24
    assert "24 training rows; all of them calibrate (1000 asked)" in capsys.readouterr().err


def test_another_pinned_list_is_another_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEGATE_CACHE", str(tmp_path))
    first = environments.folder("llmcompressor")
    assert first == environments.folder("llmcompressor")
    assert not environments.is_made("llmcompressor")
    workers = tmp_path / "workers"
    workers.mkdir()
    pinned = (environments.WORKERS / "llmcompressor.txt").read_text()
    monkeypatch.setattr(environments, "WORKERS", workers)
    (workers / "llmcompressor.txt").write_text(pinned)
    assert environments.folder("llmcompressor") == first
    (workers / "llmcompressor.txt").write_text(pinned.replace("torch==2.13.0", "torch==2.13.1"))
    assert environments.folder("llmcompressor") != first


def test_an_environment_that_cannot_be_made_is_infrastructure_and_not_complete(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEGATE_CACHE", str(tmp_path))
    monkeypatch.setattr(environments.sys, "executable", "/bin/false")
    with pytest.raises(InfrastructureError, match="uv could not make the environment"):
        environments.ensure("llmcompressor")
    assert not environments.is_made("llmcompressor")


def test_what_is_left_out_beside_torch_is_left_out_of_our_own_environment_too():
    ours = Path(__file__).parents[3] / "requirements" / "overrides.txt"
    assert set(environments.OVERRIDES.splitlines()) <= set(ours.read_text().splitlines())


def test_each_pinned_list_pins_exactly():
    for path in environments.WORKERS.glob("*.txt"):
        for line in path.read_text().splitlines():
            assert line.startswith("#") or line.count("==") == 1, f"{path.name}: {line}"


@pytest.mark.parametrize("path", sorted(environments.WORKERS.glob("*.py")), ids=lambda p: p.name)
def test_workers_import_nothing_of_ours(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not [n for n in names if n.partition(".")[0] == "tunegate"]
        assert not (isinstance(node, ast.ImportFrom) and node.level)


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """Runs `quantize_worker.run` with a script in the worker's place."""
    import sys
    from pathlib import Path

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def call(script):
        (tmp_path / "llmcompressor_awq.py").write_text(script)
        monkeypatch.setattr(environments, "ensure", lambda _: Path(sys.executable))
        monkeypatch.setattr(environments, "WORKERS", tmp_path)
        (tmp_path / "job.json").write_text(json.dumps({}))
        quantize_worker.run("llmcompressor", tmp_path / "job.json", 2)

    return call


def test_a_workers_layers_are_shown_and_its_failure_told(worker, capsys, tmp_path):
    worker("import sys; print('layer 1', file=sys.stderr); print('layer 2', file=sys.stderr)")
    assert "quantizing, layers: 2/2" in capsys.readouterr().err
    with pytest.raises(TunegateError, match="the quantizer failed: ValueError: odd width") as caught:
        worker("raise ValueError('odd width')")
    (log,) = tmp_path.glob("tunegate-quantize-*.log")
    assert str(log) in caught.value.hint
    with pytest.raises(InfrastructureError, match="was killed, probably for memory"):
        worker("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(InfrastructureError, match="no space left on the device while quantizing"):
        worker("raise OSError(28, 'No space left on device')")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"backend": "autoawq", "scheme": "fp8"}, "--backend autoawq makes AWQ only"),
        ({"backend": "autoawq", "symmetric": True}, "always has zero points"),
        ({"backend": "autoawk"}, "unknown backend 'autoawk'"),
        ({"scheme": "int3"}, "unknown scheme 'int3'"),
        ({"scheme": "fp8", "group_size": 64}, "means nothing to --scheme fp8"),
        ({"scheme": "fp8", "rounding": "nearest"}, "means nothing to --scheme fp8"),
        ({"scheme": "w8a8", "symmetric": True}, "means nothing to --scheme w8a8"),
        ({"scheme": "w8a8", "search": "module"}, "means nothing to --scheme w8a8"),
        ({"backend": "autoawq", "rounding": "nearest"}, "means nothing to --backend autoawq"),
    ],
)
def test_choices_that_do_not_go_together_are_refused(choice, message):
    with pytest.raises(UsageError, match=message):
        check_config(QuantizeConfig(**choice))


@pytest.mark.parametrize(
    ("option", "value", "scheme"),
    [("--group-size", "64", "fp8"), ("--rounding", "gptq", "fp8"), ("--search", "gram", "w8a8")],
)
def test_an_option_that_the_scheme_does_not_read_is_refused_whatever_its_value(option, value, scheme, capsys, tmp_path):
    """Its default's value too: who names it takes it for done."""
    argv = [str(tmp_path), "--out", str(tmp_path / "out"), "--scheme", scheme, option, value]
    assert run(quantize_app, prog="ft quantize", argv=argv) == 2
    assert capsys.readouterr().err == f"error: {option}: means nothing to --scheme {scheme} (leave it out)\n"


def test_an_option_that_the_scheme_reads_is_let_through():
    check_config(QuantizeConfig(scheme="w8a8", rounding="nearest"), ["rounding", "scheme"])
    check_config(QuantizeConfig(group_size=64, symmetric=True, search="module"), ["group_size", "symmetric", "search"])
