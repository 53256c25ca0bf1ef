"""`export(Release) -> GgufExport`: one GGUF file from merged bf16 weights by llama.cpp's converter and quantizer, proven to
tokenize as the release does and compared with its answers; an Ollama Modelfile beside it."""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunegate.core import manifest as manifests
from tunegate.core.artifacts import GgufExport, Release, datasets_behind
from tunegate.core.chat_template import probe_of, render, render_ids, template_digest, writes_date
from tunegate.core.console import progress, say, warn
from tunegate.core.errors import InfrastructureError, TunegateError, UserError, nearest
from tunegate.core.files import need_disk, new_folder, read_json, sha256_text
from tunegate.core.machine import bf16_flags, cores, memory_gb
from tunegate.core.model_source import of_folder
from tunegate.core.rows import Message, read_rows
from tunegate.serve.served_model import has_adapter, weights_bytes
from tunegate.serve.template_check import probe_prompts
from tunegate.train.model_loading import attention_of, load_tokenizer, stop_ids
from tunegate.train.release import card, llama_cpp, ollama, worker

# float types and the K-quants people serve; llama.cpp knows more, which need an importance matrix to be of use
TYPES = ("q4_k_m", "q4_k_s", "q5_k_m", "q5_k_s", "q6_k", "q8_0", "q3_k_m", "q4_0", "f16", "bf16", "f32")
FAITHFUL = ("q8_0", "f16", "bf16", "f32")  # written by the converter itself; the others are quantized from bf16
# Least share of the bf16 answers' tokens that the file has to agree with, read along (teacher forcing).
LEAST_AGREEMENT = {True: 0.9, False: 0.5}
TEXTS = (
    "0123456789 12 345 6789.10 1e-05 1,000,000",
    "  two  spaces\ttab\n\nnew lines\r\n trailing  ",
    "naïve café Größe Ελληνικά Русский العربية עברית हिन्दी 東京 日本語 한국어 ไทย",
    "🙂 👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 \u200b \ufeff",
    '{"a": [1, 2.5, null], "b": {"c": "\\n"}} def f(x):\n    return x**2  # it\'s',
    "don't we'll I'm THEY'RE it's",
)
# Where tokenizers of one family part: digits that are not 0-9, odd white space. Differences here are counted and told.
RARE = ("x ²³ H₂O", "½ ¾ Ⅷ", "٣٤٥ ६७ 一二", "a\u00a0b\u2003c\u3000d", "\u202eabc\u202c", "ﬁ ﬂ Å")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """One export. type: of the file's weights. prompts: questions whose greedy answers are compared with the release's (0:
    none). max_tokens: of each answer."""

    type: str = "q4_k_m"
    prompts: int = 10
    max_tokens: int = 32


def check(release: Release, config: ExportConfig) -> None:
    """Everything that can be refused before any work. Raises UserError or InfrastructureError."""
    if config.type not in TYPES:
        raise UserError(f"unknown type {config.type!r}", where="--type", hint=nearest(config.type, list(TYPES)))
    if release.quantization != "none":
        merged = next((i.path for i in release.manifest.inputs if i.kind == Release.kind), "the merged release")
        raise UserError(
            f"the release is quantized already ({release.quantization}); a GGUF is made from merged bf16 weights",
            where=str(release.path),
            hint=f"ft export gguf {merged} --type {config.type} --out DIR",
        )
    if has_adapter(release):
        raise UserError(
            "the release is a base with an adapter beside it",
            where=str(release.path),
            hint="ft merge without --keep-adapter",
        )
    size = weights_bytes(release) / 1e9
    if config.prompts and 1.5 * size > memory_gb():
        raise InfrastructureError(
            f"comparing answers loads the bf16 model: about {1.5 * size:.0f} GB of memory, the machine has {memory_gb():.0f}",
            hint="--prompts 0 exports without that comparison",
        )


def export(release: Release, config: ExportConfig, out: Path, *, force: bool) -> GgufExport:
    """Write the file, the Modelfile and the manifest.

    Raises UserError for what llama.cpp cannot convert (named), TunegateError when the file tokenizes or answers otherwise.
    """
    check(release, config)
    manifests.refuse_changed(release.path, "the release")
    source = of_folder(release.path)
    tokenizer = load_tokenizer(source)
    if template_digest(tokenizer) != release.manifest.facts["template_digest"]:
        raise UserError(
            "the release's chat template is not the one it was trained with", where=str(release.path), hint="ft verify"
        )
    tools = llama_cpp.ensure()
    stops = stop_ids(source, tokenizer)
    with new_folder(out, force=force) as folder:
        file = f"{release.path.resolve().name}-{config.type}.gguf"
        _room(release, config, folder)
        _make(release, config, tools, folder / file)
        proof = _prove(release, config, tools, tokenizer, stops, folder / file)
        embedded = _metadata(folder / file, "tokenizer.chat_template")
        if sha256_text(embedded) != release.manifest.facts["template_digest"]:
            raise TunegateError("the chat template in the file is not the release's; nothing was written")
        model = _modelfile(folder, file, tokenizer, stops, adds_bos=bool(proof["adds_bos"]))
        card.copy_licence(release.path, folder)
        facts = {
            **{k: v for k, v in release.manifest.facts.items() if k != "merge"},
            "quantization": f"gguf {config.type}",
            "file": file,
            "type": config.type,
            "stops": [tokenizer.convert_ids_to_tokens(stop) for stop in stops],
            "bytes": (folder / file).stat().st_size,
            "bytes_before": release.manifest.facts.get("bytes"),
            "llama_cpp_python": llama_cpp.VERSION,
            "proof": proof,
            "ollama": model,
        }
        manifests.write(
            folder, GgufExport.kind, inputs=[release.as_input("release")], config=asdict(config), facts=facts
        )
    return GgufExport.open(out)


def embedded_template_digest(artifact: GgufExport) -> str:
    """SHA-256 of the chat template inside the file."""
    return sha256_text(_metadata(artifact.model_path, "tokenizer.chat_template"))


def first_answer(artifact: GgufExport) -> str:
    """Load the file in llama.cpp and get a short greedy answer to a first prompt, as text."""
    tools = llama_cpp.ensure()
    job = {"prompts": [{"ids": [1], "answer": []}], "texts": ["Hello"], "stops": [], "max_tokens": 4}
    found = _probe(tools, artifact.model_path, job)
    return f"{len(found['answers'][0])} tokens of {found['vocabulary']}"


def _room(release: Release, config: ExportConfig, folder: Path) -> None:
    size = float(release.manifest.facts.get("bytes") or 0)
    need = size * (1.0 if config.type in FAITHFUL else 1.7) * (2.0 if config.type == "f32" else 1.0)
    need_disk(folder.parent, need, "the export, on the way,", "choose another --out")


def _make(release: Release, config: ExportConfig, tools: llama_cpp.LlamaCpp, file: Path) -> None:
    """Convert (and quantize) a copy of the folder whose tokenizer settings the converter's transformers can read."""
    with tempfile.TemporaryDirectory(prefix="tunegate-gguf-") as temporary:
        staged = Path(temporary) / release.path.resolve().name
        staged.mkdir()
        for item in release.manifest.outputs:
            target = staged / str(item["path"])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to((release.path / str(item["path"])).resolve())
        settings = staged / "tokenizer_config.json"
        if settings.is_symlink():
            document = read_json(settings)
            settings.unlink()
            if document.get("tokenizer_class") in ("TokenizersBackend", None):  # names of transformers 5
                document["tokenizer_class"] = "PreTrainedTokenizerFast"
            settings.write_text(json.dumps({k: v for k, v in document.items() if k != "backend"}), encoding="utf-8")
        job = {
            "action": "make",
            "model": str(staged),
            "out": str(file),
            "type": config.type,
            "converter": str(tools.converter),
            "threads": cores(),
        }
        _worker(tools, job, f"exporting {config.type}", 1 if config.type in FAITHFUL else 2)


def _prove(
    release: Release, config: ExportConfig, tools: llama_cpp.LlamaCpp, tokenizer: Any, stops: list[int], file: Path
) -> dict[str, Any]:
    """Token ids of every text equal, and how far the answers are those of the release. Raises TunegateError."""
    texts = [*TEXTS, render(tokenizer, probe_of(tokenizer)), *tokenizer.all_special_tokens, *RARE]
    questions = _questions(release, config.prompts) if config.prompts else []
    prompts = [render_ids(tokenizer, messages, tools=tools_, generate=True) for messages, tools_ in questions]
    answers = _reference(release, prompts, stops, config.max_tokens)
    job = {
        "texts": texts,
        "prompts": [{"ids": ids, "answer": answer} for ids, answer in zip(prompts, answers, strict=True)],
        "stops": stops,
        "max_tokens": config.max_tokens,
    }
    found = _probe(tools, file, job)
    differing = [
        (text, theirs, ours)
        for text, theirs in zip(texts, found["texts"], strict=True)
        if (ours := tokenizer(text, add_special_tokens=False)["input_ids"]) != theirs
    ]
    for text, theirs, ours in differing:
        if text not in RARE:
            raise TunegateError(
                f"the file tokenizes {text[:40]!r} differently: {theirs[:16]} and not {ours[:16]}; nothing was written"
            )
    if differing:
        shown = ", ".join(repr(text) for text, _, _ in differing)
        warn(f"{len(differing)} of {len(RARE)} texts of rare characters tokenize differently in llama.cpp: {shown}")
    proof: dict[str, Any] = {
        "texts": len(texts) - len(RARE),
        "rare_texts": len(RARE),
        "rare_texts_that_differ": [text for text, _, _ in differing],
        "adds_bos": found["adds_bos"],
    }
    if prompts:
        proof |= _agreement(config, answers, found)
    return proof


def _agreement(config: ExportConfig, answers: list[list[int]], found: dict[str, Any]) -> dict[str, Any]:
    tokens = sum(len(answer) for answer in answers)
    share = sum(found["agreeing"]) / max(1, tokens)
    equal = sum(ours == theirs for ours, theirs in zip(answers, found["answers"], strict=True))
    least = LEAST_AGREEMENT[config.type in FAITHFUL]
    say(
        f"{config.type} against bf16: {equal} of {len(answers)} greedy answers equal; same next token at {share:.1%} of {tokens} positions"
    )
    if share < least:
        raise TunegateError(
            f"the file answers otherwise than the release: the same next token at {share:.0%} of positions, at least {least:.0%} are asked for"
        )
    return {"prompts": len(answers), "equal_answers": equal, "same_next_token_share": share, "answer_tokens": tokens}


def _questions(release: Release, count: int) -> list[tuple[list[Message], list[Any] | None]]:
    """Questions to compare answers on: held-out rows of the data it was trained on, else the release's own probe prompts."""
    for _, dataset, _ in datasets_behind(release.manifest.inputs):
        if dataset is not None and dataset.eval_path.is_file():
            return [(list(r.prompt), r.tools) for r, _ in zip(read_rows(dataset.eval_path), range(count), strict=False)]
    prompts = probe_prompts(release.path)[:count]
    say(f"the data it was trained on is not where it was: {len(prompts)} probe prompts are compared")
    return [(p["messages"], p.get("tools")) for p in prompts if "messages" in p]


def _reference(release: Release, prompts: list[list[int]], stops: list[int], limit: int) -> list[list[int]]:
    """Greedy answers of the release itself, as token ids."""
    if not prompts:
        return []
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    wide = (
        not bf16_flags() and 3 * weights_bytes(release) / 1e9 < memory_gb()
    )  # bf16 in software takes several times as long
    kind = torch.float32 if wide else torch.bfloat16
    attention = attention_of(AutoConfig.from_pretrained(release.path, trust_remote_code=False))
    model = AutoModelForCausalLM.from_pretrained(
        release.path, dtype=kind, attn_implementation=attention, trust_remote_code=False
    ).eval()
    answers = []
    with torch.inference_mode(), progress("answers of the release", len(prompts)) as tick:
        for ids in prompts:
            found = model.generate(
                torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
                max_new_tokens=limit, eos_token_id=stops, pad_token_id=stops[0], temperature=None, top_p=None, top_k=None,
            )  # fmt: skip
            answers.append([int(token) for token in found[0, len(ids) :]])
            tick()
    return answers


def _probe(tools: llama_cpp.LlamaCpp, file: Path, job: dict[str, Any]) -> dict[str, Any]:
    return _worker(
        tools,
        {"action": "probe", "model": str(file), "threads": cores(), **job},
        "asking llama.cpp",
        len(job["prompts"]) + 1,
    )


def _worker(tools: llama_cpp.LlamaCpp, job: dict[str, Any], what: str, steps: int) -> dict[str, Any]:
    """Run one job in llama.cpp's environment, showing its steps."""
    with progress(what, steps) as tick:

        def heard(line: str) -> None:
            if line.startswith("step "):
                tick(1, line.removeprefix("step ").strip())

        code, lines, answer = worker.answer(tools.python, "gguf_export.py", job, heard)
    if answer is None:
        raise _failure(code, [line for line in lines if line and not line.startswith("step ")])
    return answer


def _failure(code: int, lines: list[str]) -> TunegateError:
    text = "\n".join(lines)
    if code == -9:
        return InfrastructureError("llama.cpp was killed, probably for memory", hint="a machine with more memory")
    if "pre-tokenizer was not recognized" in text:
        return UserError(
            "llama.cpp's converter does not know this tokenizer's pre-tokenizer",
            hint="a newer llama.cpp may; serve with vLLM",
        )
    if unsupported := next((line for line in lines if "not supported" in line), None):
        return UserError(f"llama.cpp cannot convert this model: {unsupported}", hint="serve it with vLLM")
    return TunegateError(f"llama.cpp failed: {lines[-1] if lines else 'no message'}")


def _modelfile(folder: Path, file: str, tokenizer: Any, stops: list[int], *, adds_bos: bool) -> dict[str, Any]:
    """Write the Modelfile; what is said of its template."""
    start = str(tokenizer.bos_token or "") if adds_bos else ""

    def ours(messages: Any, generate: bool) -> str:
        return render(tokenizer, messages, generate=generate).removeprefix(start)

    shape, reason = None, ""
    try:
        if writes_date(tokenizer):
            raise UserError("it puts today's date into every prompt")
        learned = ollama.learn(ours)
        if ollama.differences(learned, ours):
            raise UserError("it renders some conversations in a way of its own")
        shape = learned
    except UserError as error:
        reason = f"the chat template cannot be written in Ollama's language: {error.message}"
        warn(f"the Modelfile has no TEMPLATE: {reason}")
    texts = [str(tokenizer.convert_ids_to_tokens(stop)) for stop in stops]
    text = ollama.modelfile(file, shape, reason, texts)
    (folder / "Modelfile").write_text(text, encoding="utf-8")
    return {
        "template": shape is not None,
        "system": shape.system if shape else None,
        "reason": reason or None,
        "stops": texts,
    }


def _metadata(file: Path, key: str) -> str:
    """A text from the file's header. Raises UserError when it has none."""
    from gguf import GGUFReader

    field = GGUFReader(file).get_field(key)
    if field is None:
        raise UserError(f"the file has no {key}", where=str(file))
    return str(field.contents())
