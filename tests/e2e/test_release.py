"""The merged release of the real model: verified, not promoted without evidence, passed on, found whole where it arrives."""

import pytest

pytestmark = pytest.mark.e2e


def test_verified_not_promoted_without_a_decision_and_pushed_once(job, release, tmp_path):
    found = job.run("ft", "verify", "release", "--json").ok().json()
    assert [stage["stage"] for stage in found["stages"]] == [
        "these files, now", "recorded by merge", "recorded by training",
    ]  # fmt: skip
    assert {row["kind"] for row in found["lineage"]} == {"run", "dataset", "file", "model"}
    refused = job.run("ft", "release", "promote", "release", "--gate", "release", "--json")
    assert refused.code == 2
    assert refused.json()["error"]["kind"] == "bad_input"
    assert job.run("ft", "release", "list", "--json").ok().json()["releases"] == []
    pushed = job.run("ft", "push", "release", f"file://{tmp_path}/models/slots", "--json").ok().json()
    assert "model.safetensors" in pushed["uploaded"]
    there = job.run("ft", "verify", str(tmp_path / "models" / "slots"), "--json").ok().json()
    assert there["digest"] == pushed["digest"]
    assert there["lineage"][0]["digest"] == pushed["release"]
    assert job.run("ft", "push", "release", f"file://{tmp_path}/models/slots", "--json").ok().json()["uploaded"] == []
