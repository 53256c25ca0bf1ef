"""What tests share: a tiny random Llama with a tokenizer of its own, and a small dataset folder."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tunegate.core import manifest
from tunegate.core.artifacts import Dataset
from tunegate.core.machine import lacks_avx512

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tiny models: one thread is faster, and two test runs side by side do not fight over the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A shell that starts the tests in the background has SIGINT ignored, and so would every child that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = ["What is the capital of France? Paris.", '{"name": "f", "arguments": {"x": 1}}', "system user assistant"]


END_TO_END = "tests/e2e/"


def pytest_xdist_make_scheduler(config, log):
    """In several processes: a file's tests, which share fixtures, stay together, and the end-to-end job is one process's."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return END_TO_END if nodeid.startswith(END_TO_END) else nodeid.partition("::")[0]

    return ByFile(config, log)


def pytest_collection_modifyitems(items):
    """There the end-to-end job, which takes longest, is begun first."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: not item.nodeid.startswith(END_TO_END))


def pytest_runtest_setup(item):
    """What would not end within a CI job's time on this processor is skipped, with that reason."""
    if item.get_closest_marker("avx512") and lacks_avx512() and os.environ.get("TUNEGATE_TESTS") != "all":
        pytest.skip("takes minutes on a processor without AVX-512; TUNEGATE_TESTS=all runs it")


def make_tokenizer(template=TEMPLATE, specials=("<|im_start|>", "<|im_end|>"), eos="<|im_end|>"):
    """A byte-level BPE fast tokenizer of about 300 tokens; every text can be encoded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=eos, chat_template=template)


def make_model(folder: Path, *, seed: int = 0, tied: bool = True, heads: int = 4) -> Path:
    """A Llama of 2 layers, hidden 64, heads over half as many key-value heads, random weights, in a folder with its tokenizer.
    vLLM on a CPU takes no head of 16 values: it serves one with heads=2."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_rows(count: int, first: int = 0) -> list[dict]:
    """Distinct short conversations."""
    return [
        {
            "id": f"r{i}",
            "messages": [
                {"role": "user", "content": f"What is {i} plus {i}?"},
                {"role": "assistant", "content": json.dumps({"sum": 2 * i})},
            ],
        }
        for i in range(first, first + count)
    ]


def write_jsonl(path: Path, rows: list) -> None:
    """One JSON value a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_dataset(folder: Path, train: list[dict], held_out: list[dict]) -> Dataset:
    """A finished dataset folder."""
    folder.mkdir(parents=True)
    write_jsonl(folder / "train.jsonl", train)
    write_jsonl(folder / "eval.jsonl", held_out)
    write_jsonl(folder / "rejected.jsonl", [])
    (folder / "profile.json").write_text("{}\n")
    manifest.write(folder, "dataset", inputs=[], config={}, facts={"train": len(train), "eval": len(held_out)})
    return Dataset.open(folder)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """The folder of the tiny model. Read-only: copy it to change it."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory) -> Dataset:
    """24 training rows, 8 held out. Read-only: copy it to change it."""
    return make_dataset(tmp_path_factory.mktemp("data") / "tiny", make_rows(24), make_rows(8, 100))


@pytest.fixture(scope="module")
def one_thread():
    """Tiny models are quickest with one thread, the more so where the cores are busy."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def makers():
    """The functions above, for tests that need their own model, tokenizer, rows or dataset."""
    import types

    return types.SimpleNamespace(
        tokenizer=make_tokenizer, model=make_model, rows=make_rows, dataset=make_dataset, jsonl=write_jsonl
    )


@pytest.fixture(autouse=True)
def own_places(tmp_path_factory, monkeypatch):
    """Registry and cache of the user who runs the tests stay untouched; no key of theirs is sent anywhere."""
    monkeypatch.setenv("TUNEGATE_HOME", str(tmp_path_factory.getbasetemp() / "home-unused"))
    monkeypatch.delenv("TUNEGATE_API_KEY", raising=False)


# Ray Data needs the second, Ray Train the third.
RAY = ("ray==2.60.0", "msgpack==1.2.4", "tensorboardX==2.6.4")


@pytest.fixture(scope="session")
def with_ray(tmp_path_factory):
    """The environment of a process that can import Ray: ours, or one with Ray beside it."""
    if importlib.util.find_spec("ray") is not None:
        return dict(os.environ)
    place = tmp_path_factory.mktemp("ray")
    install = ["-m", "uv", "pip", "install", "--quiet", "--no-deps", "--target", str(place), *RAY]
    done = subprocess.run([sys.executable, *install], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"Ray cannot be had: {done.stderr.strip().splitlines()[-1]}")
    return {**os.environ, "PYTHONPATH": str(place), "RAY_USAGE_STATS_ENABLED": "0"}
