"""`merge(Run) -> Release`: the adapter folded into its base, in fp32, rounded once, tensor by tensor, and compared with what
it was. Memory holds a few tensors; the proof holds the model where there is room, else a module at a time."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tunegate.core import manifest as manifests
from tunegate.core.artifacts import Dataset, Release, Run
from tunegate.core.chat_template import template_digest
from tunegate.core.console import progress, say
from tunegate.core.errors import UsageError, UserError
from tunegate.core.files import need_disk, new_folder, read_json, write_json
from tunegate.core.methods import WEIGHTLESS
from tunegate.core.model_source import ModelSource, of_folder, quiet_transformers
from tunegate.serve import base_check, served_model
from tunegate.serve.prompting.prompting import copy_prompting
from tunegate.serve.template_check import FILE as PROBE_FILE
from tunegate.serve.template_check import probe_prompts
from tunegate.train import adapters
from tunegate.train.model_loading import load_tokenizer, stop_ids
from tunegate.train.release import card, merge_adapter, merge_base, merge_proof, prove, prove_model, tensor_files
from tunegate.train.release.merge_adapter import EMBEDDING, HEAD, Adapter
from tunegate.train.release.prove_model import Source
from tunegate.train.release.tensor_files import Spec, TensorFiles

ONTO = ("auto", "dequantized", "original")
ROWS, ROWS_TO_CHOOSE = 8, 32  # held-out answers: to prove one merge, to tell two apart


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """One merge. onto: the base a qlora adapter is folded into: `dequantized` (its NF4 weights, which it was trained on),
    `original`, or `auto` (whichever answers held-out rows better). keep_adapter: do not merge; the release serves base
    and adapter. max_shard_gb: largest weight file, in 1e9 bytes. rows: held-out answers of the proof."""

    onto: str = "auto"
    keep_adapter: bool = False
    max_shard_gb: float = 5.0
    rows: int | None = None


@dataclass
class Rounding:
    """What rounding did to the changed tensors: entries in all, entries as they were in the base, squared error and size of
    the update."""

    entries: int = 0
    unchanged: int = 0
    error: float = 0.0
    update: float = 0.0

    def facts(self) -> dict[str, float]:
        """Shares. update_error: root of squared error over squared update."""
        share = self.unchanged / max(self.entries, 1)
        return {
            "unchanged_share": round(share, 4),
            "update_error": round((self.error / max(self.update, 1e-30)) ** 0.5, 4),
        }


def merge(
    run: Run,
    base: ModelSource,
    out: Path,
    *,
    force: bool,
    dataset: Dataset | None = None,
    config: MergeConfig | None = None,
) -> Release:
    """Write a release with merged weights, tokenizer, template and generation config; or, with `keep_adapter`, the adapter.

    dataset: its held-out answers prove the merge. Raises UserError when the base is not the one the run was trained on, or
    the adapter is of a kind that is not merged; TunegateError when the merged model does not answer as the adapter on
    its base does; InfrastructureError when the disk has no room.
    """
    config = config or MergeConfig()
    if run.method in WEIGHTLESS:
        raise UserError(
            f"a run of the method {run.method} has no weights to merge", where=str(run.path), hint="ft serve it"
        )
    if config.onto != "auto" and run.method != "qlora":
        raise UsageError(f"--onto {config.onto} is for runs of the method qlora, this one is {run.method}")
    base = _trained_on(run, base)
    quiet_transformers()
    tokenizer = load_tokenizer(of_folder(run.path))
    if template_digest(tokenizer) != run.manifest.facts["template_digest"]:
        raise UserError(
            "the run's chat template is not the one it was trained with", where=str(run.path), hint="ft verify"
        )
    manifests.refuse_changed(run.path, "the run")
    with _release(run, base, config, out, force=force) as (folder, facts):
        if config.keep_adapter:
            facts |= _keep(run, folder)
        elif run.method == "full":
            facts["merge"] = _full(run, folder, config)
        else:
            facts["merge"] = _merged(run, base, tokenizer, dataset, config, folder)
    return Release.open(out)


@contextmanager
def _release(
    run: Run, base: ModelSource, config: MergeConfig, out: Path, *, force: bool
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A release folder with what every kind of it holds: tokenizer, probe, the licence's files, card, manifest."""
    dataset = next((i for i in run.manifest.inputs if i.role == "dataset"), None)
    kept = ("base", "base_name", "license", "method", "template_digest", "probe_digest")
    facts: dict[str, Any] = {
        **{key: run.manifest.facts.get(key) for key in kept},
        "base_name": run.manifest.facts.get("base_name", run.base),
        "quantization": "none",
        "dataset_digest": dataset.digest if dataset else "unknown",
        "run_digest": run.digest,
    }
    with new_folder(out, force=force) as folder:
        for name in (
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
            "special_tokens_map.json",
            PROBE_FILE,
        ):
            if (run.path / name).is_file():
                shutil.copy(run.path / name, folder / name)
        copy_prompting(run.path, folder)
        for place in (run.path, *([base.path] if base.path else [])):
            card.copy_licence(place, folder)
        if base.path:
            merge_base.copy_processors(base.path, folder)
        yield folder, facts
        facts["bytes"] = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
        card.write(folder, facts, name=out.name)
        manifests.write(folder, "release", inputs=[run.as_input("run")], config=asdict(config), facts=facts)


def _trained_on(run: Run, base: ModelSource) -> ModelSource:
    """The base that the run was trained on: `base`, or of a hub id that has moved on the revision of then."""
    trained = next((i for i in run.manifest.inputs if i.role == "base_model"), None)
    found = base_check.as_trained_on(base, trained.digest) if trained else base
    if found is None:
        raise UserError(
            f"the base model {base.spec!r} has changed since the run was trained on it",
            where=base.location,
            hint="restore the base the run was trained on; its digest is in the run's manifest",
        )
    if found != base:
        say(f"{base.spec} has moved on; the revision that was trained on is taken: {found.revision}")
    return found


def _keep(run: Run, folder: Path) -> dict[str, Any]:
    """The adapter as it is. Raises UserError for a kind that vLLM does not serve."""
    if run.method == "full":
        raise UsageError("a run of the method full has no adapter to keep")
    served_model.rank_of(served_model.Adapter(name=run.path.name, artifact=run))
    for name in (served_model.ADAPTER, adapters.WEIGHTS):
        shutil.copy(run.path / name, folder / name)
    if run.method == "qlora":
        say("the adapter was trained on NF4 weights; it is served on the original ones")
    return {"adapter": True, "merge": {"kind": "not merged: base and adapter are served together"}}


def _full(run: Run, folder: Path, config: MergeConfig) -> dict[str, Any]:
    """The run's weights in shards, byte for byte."""
    files = TensorFiles(run.path)
    _model_files(run.path, folder, {})
    with progress("writing weights", len(files.specs)) as tick:
        tensor_files.write(folder, files.specs, files.read, max_shard_bytes=int(config.max_shard_gb * 1e9), tick=tick)
    return {"kind": "full weights, nothing to merge"}


def _model_files(source: Path, folder: Path, changes: dict[str, Any]) -> None:
    """`config.json` (with changes) and `generation_config.json` of the base."""
    config = {**read_json(source / "config.json"), **changes}
    config.pop("quantization_config", None)
    config.pop("torch_dtype", None)
    write_json(folder / "config.json", config)
    if (source / "generation_config.json").is_file():
        shutil.copy(source / "generation_config.json", folder / "generation_config.json")


def _merged(
    run: Run, base: ModelSource, tokenizer: Any, dataset: Dataset | None, config: MergeConfig, folder: Path
) -> dict[str, Any]:
    """Write the merged weights; the proof that they answer as before."""
    place = merge_base.folder_of(base)
    card.copy_licence(place, folder)  # of a hub id the files are here only now
    if base.path is None:
        merge_base.copy_processors(place, folder)
    files = TensorFiles(place)
    adapter = merge_adapter.read(run.path, files.specs, files.named)
    specs, changes = _specs(files, adapter, place)
    _model_files(place, folder, changes)
    qlora = run.method == "qlora"
    dtype = str(run.manifest.config.get("dtype", "bfloat16"))
    original = merge_base.original(files, dtype)
    bases = {"original": original}
    if qlora:
        bases = {"dequantized": merge_base.dequantized(files, place, dtype), "original": original}
    stops = stop_ids(ModelSource(base.spec, base.kind, str(place), base.name), tokenizer)
    rows = config.rows if config.rows is not None else ROWS_TO_CHOOSE if qlora else ROWS
    prompts = probe_prompts(run.path)
    parameters = sum(spec.bytes for spec in specs.values()) // 2
    bench = merge_proof.Bench(
        config=place, folder=run.path, adapter=adapter, trained=bases["dequantized" if qlora else "original"],
        prompts=prove.ends_of(prompts), rows=prove.held_out(dataset, tokenizer, stops, rows), pad=tokenizer.pad_token_id,
        stops=stops, keep=_plan(specs, parameters, folder), vocabulary=changes.get("vocab_size"),
    )  # fmt: skip
    known, effect = merge_proof.reference(bench)
    unrounded = merge_proof.check_arithmetic(bench, known, folder)
    onto, losses = "original", dict[str, float]()
    if qlora:
        virtual = {k: _rounded(adapter, source, specs, Rounding()) for k, source in bases.items()}
        onto, losses = _onto(bench, virtual, folder, config.onto)
    rounding = Rounding()
    with progress("writing merged weights", len(specs)) as tick:
        make = _rounded(adapter, bases[onto], specs, rounding)
        tensor_files.write(folder, specs, make, max_shard_bytes=int(config.max_shard_gb * 1e9), tick=tick)
    if (
        qlora and onto == "original"
    ):  # another base than the one trained on: it has to answer as the adapter does on that
        bench = replace(bench, trained=original)
        known, effect = merge_proof.reference(bench)
    proof = merge_proof.check_files(bench, known, effect, folder, merge_base.original(TensorFiles(folder)))
    shares = rounding.facts()
    say(
        f"rounding left {shares['unchanged_share']:.1%} of the adapted weights as they were in the base; the update that is "
        f"left differs from the adapter's by {shares['update_error']:.1%} (root mean square)"
    )
    kind = "adapter merged in fp32, rounded once"
    return {
        "kind": kind,
        "onto": onto,
        "onto_losses": losses,
        "unrounded_difference": round(unrounded, 9),
        **shares,
        **proof,
    }


def _onto(
    bench: merge_proof.Bench, virtual: dict[str, Source], folder: Path, asked: str
) -> tuple[str, dict[str, float]]:
    if bench.rows:
        return merge_proof.choose(bench, virtual, folder, asked)
    onto = asked if asked in virtual else "dequantized"
    say(f"no held-out answers to tell the two merges apart: merged onto the {onto} base")
    return onto, {}


def _specs(files: TensorFiles, adapter: Adapter, place: Path) -> tuple[dict[str, Spec], dict[str, Any]]:
    """(tensors of the release, changes of its config): an output matrix tied to the embedding stays so while both stay equal."""
    import torch
    from transformers import AutoConfig

    specs = {
        name: Spec(dtype=merge_base.release_dtype(spec.dtype), shape=adapter.shape(name, spec.shape))
        for name, spec in files.specs.items()
    }
    changes: dict[str, Any] = {"dtype": next(iter(specs.values())).dtype, "use_cache": True}
    config = AutoConfig.from_pretrained(place, trust_remote_code=False).get_text_config()
    if not config.tie_word_embeddings and HEAD in specs:
        return _resized(specs, config.vocab_size, changes)
    specs.pop(HEAD, None)
    if adapter.changed() & {EMBEDDING, HEAD}:
        read = merge_base.original(files)
        if not torch.equal(adapter.apply(EMBEDDING, read(EMBEDDING)), adapter.apply(HEAD, read(HEAD))):
            say(
                "the adapter changes the embedding or the output matrix alone: the merged model has both, no longer tied"
            )
            specs[HEAD] = Spec(dtype=specs[EMBEDDING].dtype, shape=adapter.shape(HEAD, files.specs[EMBEDDING].shape))
            changes["tie_word_embeddings"] = False
    return _resized(specs, config.vocab_size, changes)


def _resized(
    specs: dict[str, Spec], vocabulary: int, changes: dict[str, Any]
) -> tuple[dict[str, Spec], dict[str, Any]]:
    if EMBEDDING in specs and specs[EMBEDDING].shape[0] != vocabulary:
        say(f"the embedding has {specs[EMBEDDING].shape[0]} rows, the base's has {vocabulary}: tokens were added")
        changes["vocab_size"] = specs[EMBEDDING].shape[0]
    return specs, changes


def _plan(specs: dict[str, Spec], parameters: int, folder: Path) -> bool:
    """Whether the proof keeps the model in memory; what memory and disk are needed is said before any work.

    Raises InfrastructureError for too little of either.
    """
    largest = max(spec.bytes for spec in specs.values())
    keep = prove_model.fits(parameters)
    # one tensor in the base's type, in fp32, its update and its rounded copy
    streamed = 10 * largest
    prove_model.need_memory(streamed, "the largest tensor")
    need = parameters * 4 if keep else streamed
    disk = sum(spec.bytes for spec in specs.values())
    need_disk(folder.parent, disk, "the merged model", "choose another --out")
    say(
        f"merging {parameters / 1e9:.2f} billion weights, tensor by tensor, {disk / 1e9:.2f} GB to write; the proof takes about {need / 1e9:.1f} GB of memory "
        + ("(the whole model in fp32)" if keep else "(a module at a time: the whole model in fp32 does not fit)")
    )
    return keep


def _rounded(adapter: Adapter, source: Source, specs: dict[str, Spec], rounding: Rounding) -> Source:
    """The release's tensors, made one by one; counts what rounding does to the changed ones."""
    import torch

    changed = adapter.changed()

    def make(name: str) -> Any:
        name = adapter.named(name)
        before = source(name)
        spec = specs.get(name, specs.get(EMBEDDING) if name == HEAD else None)
        if spec is None:  # put together from several tensors of the files, none of which an adapter changes
            return before
        if name not in changed:
            return before.to(getattr(torch, spec.dtype))
        merged = adapter.apply(name, before)
        made = merged.to(getattr(torch, spec.dtype))
        if before.shape == made.shape:
            rounding.entries += made.numel()
            rounding.unchanged += int((made == before.to(made.dtype)).sum())
            rounding.update += float((merged - before).square_().sum())
            rounding.error += float(merged.sub_(made).square_().sum())
        return made

    return make
