"""A verdict carries the digest of what it is on: a folder that was changed since it was written is refused, of whatever size."""

import pytest

from tests.evalkit.test_gate_inputs import load_test, outputs, policy
from tests.evalkit.test_ladder import answers as answers
from tests.evalkit.test_ladder import chain as chain
from tests.evalkit.test_ladder import ft as ladder
from tunegate.core.artifacts import LoadReport
from tunegate.core.errors import ExitCode

ladder_ft = ladder


def change(file):
    """Other bytes, as many."""
    raw = file.read_bytes()
    file.write_bytes(bytes([raw[0] ^ 1]) + raw[1:])


@pytest.mark.parametrize("name", ["run", "release"])
def test_a_changed_folder_is_not_judged(chain, echo, ft, name):
    change(echo / name / "weights")
    outputs(echo / "o.jsonl", 60)
    for arguments in ((f"./{name}",), ("o.jsonl", "--against", name)):
        done = ft("eval", *arguments, "--task", "task.yaml", "--out", "r")
        assert done.code == ExitCode.BAD_INPUT
        assert f"the {name} is not as it was written: weights: content changed" in " ".join(done.err.split())
        assert not (echo / "r").exists()


def test_a_ladder_leaves_a_changed_step_out_and_refuses_a_changed_end(chain, answers, ladder_ft, echo):
    change(echo / "run" / "weights")
    code, found, err = ladder_ft("awq", "--task", "task.yaml", "--out", "one", "--json")
    assert (code, [step["name"] for step in found["steps"]]) == (0, ["base", "merged", "quantized"])
    assert "left out: the run" in err
    change(echo / "gguf" / "weights")
    code, _, err = ladder_ft("awq", "--task", "task.yaml", "--out", "two", "--gguf", "gguf")
    assert (code, "the export is not as it was written" in err) == (2, True)
    change(echo / "awq" / "weights")
    code, _, err = ladder_ft("awq", "--task", "task.yaml", "--out", "three")
    assert (code, "the release is not as it was written" in err) == (2, True)


@pytest.mark.parametrize("name", ["report.json", "requests.jsonl"])
def test_a_changed_load_test_decides_nothing(echo, ft, name):
    outputs(echo / "o.jsonl", 60)
    ft("eval", "o.jsonl", "--task", "task.yaml", "--out", "r")
    load, gate = load_test(echo / "load"), policy(echo / "gate.yaml", 150)
    text = (load / name).read_text()
    (load / name).write_text(text.replace("194.0", "104.0"))
    LoadReport.open(load)  # of the same size
    for command in (("gate", "r"), ("eval", "o.jsonl", "--task", "task.yaml", "--out", "r2")):
        done = ft(*command, "--policy", gate, "--load", load)
        assert (done.code, done.out) == (2, "")
        assert f"the load test is not as it was written: {name}: content changed" in " ".join(done.err.split())
