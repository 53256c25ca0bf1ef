"""A bake-off for real: arms without weights at one vLLM server, a trained one at another; killed, it goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tunegate.core.artifacts import EvalReport

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.avx512]


def test_a_bake_off_that_was_killed_goes_on_and_every_arm_is_a_run_like_any_other(job, data):
    (job.folder / "bakeoff.yaml").write_text(
        "max_steps: 3\nk: 2\nselection: nearest\narms:\n  lora: {max_length: 256, max_left_out_share: 0.8}\n"
    )
    words = ["ft", "bakeoff", "--task", "task.yaml", "--train", "data", "--arms", "few_shot,lora", "--out", "bo",
             "--config", "bakeoff.yaml", "--limit", "6", "--no-curve"]  # fmt: skip
    command = [str(Path(sys.executable).parent / words[0]), *words[1:]]
    log = job.folder / "bakeoff.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, cwd=job.folder, stdout=stream, stderr=stream, start_new_session=True)
        first = job.folder / "bo/reports/few_shot/manifest.json"
        while process.poll() is None and not first.is_file():
            time.sleep(0.2)
        assert first.is_file(), log.read_text()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    made = first.stat().st_mtime_ns
    document = job.run(*words, "--json").ok().json()
    assert first.stat().st_mtime_ns == made  # a finished arm is not asked again
    assert [row["arm"] for row in document["arms"]] == ["base", "few_shot", "lora"]
    assert document["failed"] == {}
    rows = {row["arm"]: row for row in document["arms"]}
    assert rows["few_shot"]["prompt_tokens"] > 1.5 * rows["base"]["prompt_tokens"]  # the examples reached the model
    results = [
        json.loads(line)
        for line in EvalReport.open(job.folder / "bo/reports/few_shot").results_path.read_text().splitlines()
    ]
    assert all(len(row["context"]["ids"]) == 2 for row in results)
    job.run("ft", "verify", "bo").ok()
    gate = job.run("ft", "gate", "bo/reports/few_shot", "--against", "bo/reports/base", "--out", "gate-few", "--json")
    assert gate.code in (0, 1, 3)
    assert gate.json()["decision"] in ("PASS", "FAIL", "INCONCLUSIVE")
