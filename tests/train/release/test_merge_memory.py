"""A model larger than the memory that is allowed is merged and proven: the peak is a shard and a little, not the model."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SHARD_GB = 0.15
MAKE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from conftest_of_release import make_run
from conftest_of_tests import make_tokenizer
folder = Path(sys.argv[1])
tokenizer = make_tokenizer()
config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=1536, intermediate_size=4096, num_hidden_layers=24,
    num_attention_heads=12, num_key_value_heads=4, tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id,
    bos_token_id=None, pad_token_id=tokenizer.eos_token_id)
torch.set_default_dtype(torch.bfloat16)
LlamaForCausalLM(config).save_pretrained(folder / "base", max_shard_size="150MB")
torch.set_default_dtype(torch.float32)
tokenizer.save_pretrained(folder / "base")
make_run(folder / "base", folder / "run")
"""
MERGE = """
import json, resource, sys
from pathlib import Path
import torch, transformers, peft
from accelerate import init_empty_weights
from transformers import LlamaForCausalLM
torch.set_num_threads(1)
from tunegate.core import machine
from tunegate.core.artifacts import Run
from tunegate.core.model_source import resolve
from tunegate.train.release import prove_model
from tunegate.train.release.merge import MergeConfig, merge
folder = Path(sys.argv[1])
now = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
prove_model.memory_limits = lambda: (1.2e9, 1.2e9)  # what a machine would have that does not hold the model in fp32
release = merge(Run.open(folder / "run"), resolve(str(folder / "base")), folder / "release", force=False,
    config=MergeConfig(max_shard_gb=float(sys.argv[2])))
peak = machine.peak_resident_gb() * 1e9
print(json.dumps({"before": now, "peak": peak, "bytes": release.manifest.facts["bytes"], **release.manifest.facts["merge"]}))
"""


def test_the_peak_is_a_shard_and_a_little(tmp_path):
    here = Path(__file__)
    (tmp_path / "conftest_of_release.py").write_text((here.parent / "conftest.py").read_text())
    (tmp_path / "conftest_of_tests.py").write_text((here.parents[2] / "conftest.py").read_text())
    python = [sys.executable, "-c"]
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "65536"}
    subprocess.run([*python, textwrap.dedent(MAKE), str(tmp_path), str(tmp_path)], check=True, env=environment)
    done = subprocess.run(
        [*python, textwrap.dedent(MERGE), str(tmp_path), str(SHARD_GB)],
        check=True, env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["bytes"] > 1.1e9, "the model is large against the limit"
    assert len(list((tmp_path / "release").glob("model-*.safetensors"))) > 6
    # 1.2 shards, and the libraries that are loaded on use
    assert found["peak"] - found["before"] < 1.2 * SHARD_GB * 1e9 + 200e6
    assert found["mean_logit_difference"] < 0.1


def test_killed_in_the_middle_leaves_nothing_that_is_a_release(tiny_model, adapter_run, tmp_path):
    """SIGKILL between two tensors: what is left is hidden, has no manifest, and the next merge is not in its way."""
    from tunegate.core.artifacts import Release
    from tunegate.core.errors import UserError
    from tunegate.core.model_source import resolve
    from tunegate.train.release.merge import merge

    run = adapter_run("run")
    script = """
        import os, signal, sys
        from pathlib import Path
        from tunegate.core.artifacts import Run
        from tunegate.core.model_source import resolve
        from tunegate.train.release import tensor_files
        from tunegate.train.release.merge import merge
        write = tensor_files.write
        def killed(folder, specs, make, **options):
            def one(name):
                if ".layers.1." in name:
                    os.kill(os.getpid(), signal.SIGKILL)
                return make(name)
            return write(folder, specs, one, **options)
        tensor_files.write = killed
        merge(Run.open(Path(sys.argv[1])), resolve(sys.argv[2]), Path(sys.argv[3]), force=False)
    """
    out = tmp_path / "out" / "release"
    command = [sys.executable, "-c", textwrap.dedent(script), str(run.path), str(tiny_model), str(out)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -9
    (left,) = out.parent.iterdir()
    assert left.name.startswith(".release.")
    assert any(left.glob("*.safetensors")), "it was killed while writing"
    with pytest.raises(UserError, match=r"no manifest\.json"):
        Release.open(left)
    assert Release.open(merge(run, resolve(run.base), out, force=False).path)
