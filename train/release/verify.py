"""`ft verify`: is a folder what its manifest says, does its history reach the data, and does one template hold from end to end?"""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunegate.core import manifest as manifests
from tunegate.core import weight_files
from tunegate.core.artifacts import COLLECTIONS, KINDS, UNCOVERED, Artifact, GgufExport, Release, Run, open_any
from tunegate.core.errors import UserError
from tunegate.core.files import sha256_file
from tunegate.core.manifest import SIGNATURE, Manifest
from tunegate.core.methods import WEIGHTLESS
from tunegate.serve import base_check
from tunegate.train.release import licences, sign

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
EDITED = "content changed"
MODELS = (Run.kind, Release.kind, GgufExport.kind)


@dataclass(frozen=True, kw_only=True)
class Signer:
    """Who is to have signed: the holder of a key, or an identity that an issuer vouches for (keyless; trust_config: of another
    Sigstore than the public one)."""

    key: Path | None = None
    identity: str | None = None
    issuer: str | None = None
    trust_config: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What was found. stages: template and probe digests, by stage. signature: in words. duties: of the licence."""

    manifest: Manifest
    problems: list[dict[str, str]]
    lineage: list[dict[str, Any]]
    stages: list[dict[str, Any]]
    duties: list[licences.Duty]
    signature: str

    def as_json(self) -> dict[str, Any]:
        """What `ft verify --json` prints."""
        return {
            "ok": not self.problems,
            "kind": self.manifest.kind,
            "digest": self.manifest.digest,
            "problems": self.problems,
            "lineage": self.lineage,
            "stages": self.stages,
            "signature": self.signature,
            "licence": [asdict(duty) for duty in self.duties],
        }


def inspect(folder: Path, *, signer: Signer | None = None, distribution: bool = False) -> Inspection:
    """Check a folder of any kind. distribution: duties of the licence that are not met are problems too.

    Raises UserError when it is no folder of ours, or the key cannot be read.
    """
    manifest = manifests.read(folder)
    problems = [*manifests.verify(folder), *_empty_folders(folder)]
    uncovered = KINDS.get(manifest.kind, Artifact).uncovered(folder) if manifest.kind not in COLLECTIONS else []
    problems += [{"path": f"{inner}/", "problem": f"is {UNCOVERED}: move it out"} for inner in uncovered]
    signature, broken = _signature(folder, signer)
    if broken:
        problems.append({"path": SIGNATURE, "problem": broken})
    base = base_check.state(open_any(folder)) if manifest.kind in MODELS and not problems else None
    if base == base_check.CHANGED:
        told = f"the base model {manifest.facts['base']} has changed since it was trained on"
        problems.append({"path": "base_model", "problem": told})
    lineage = [{**row, "state": _state(row, base)} for row in manifests.lineage(manifest.inputs)]
    stages: list[dict[str, Any]] = []
    duties: list[licences.Duty] = []
    if manifest.kind in MODELS:
        problems += _incomplete(manifest)
        problems += _unwanted(folder, manifest)
        if not problems:  # a damaged folder is not loaded
            stages = _stages(folder, manifest, lineage)
            problems += _one_template(stages)
        weights = manifest.facts.get("method") not in WEIGHTLESS  # a prompt passes no weights on
        duties = licences.duties(folder, manifest.facts) if weights else []
        if distribution:
            problems += [{"path": "licence", "problem": f"{d.duty}: {d.fix}"} for d in duties if not d.met]
    return Inspection(
        manifest=manifest, problems=problems, lineage=lineage, stages=stages, duties=duties, signature=signature
    )


def load_in_engine(folder: Path) -> str:
    """Start the engine on a folder and get one answer; what answered, in words.

    Raises UserError for a folder without a model, InfrastructureError with cause and remedy when it does not load.
    """
    artifact = open_any(folder)
    if isinstance(artifact, GgufExport):
        from tunegate.train.release.export_gguf import first_answer

        return f"llama.cpp answers: {first_answer(artifact)!r}"
    if not isinstance(artifact, Release | Run):
        raise UserError(f"a {artifact.kind} folder holds no model to load", where=str(folder))
    from tunegate.serve.vllm_process import serving

    with serving(artifact) as endpoint:
        return f"vLLM loads it and answers, as {endpoint.model}"


def _state(row: dict[str, Any], base: str | None) -> str:
    """Of an ancestor's folder: here, content changed (not what its manifest says), changed (made again: another digest now),
    or gone. Of a file at hand: here, or content changed. An endpoint or a file elsewhere is not looked at, nor is a model, but for
    the base that the folder is loaded with. None of it is a problem of the folder asked about, whose bytes are what they were: sources
    grow, and names are used again. base: the state of a base that it is loaded with, which is a problem where it has changed."""
    if base and row["role"] == "base_model":
        return base
    path = Path(row["path"])
    file = row["kind"] in ("file", "recorded")
    if row["kind"] in ("model", "endpoint") or (file and not path.is_file()):
        return "not checked"
    if file:
        return "here" if sha256_file(path) == row["digest"] else EDITED
    if not manifests.is_finished(path):
        return "gone"
    try:
        if manifests.read(path).digest != row["digest"]:
            return "changed"
        return EDITED if manifests.verify(path) else "here"
    except UserError:
        return "changed"


def _signature(folder: Path, signer: Signer | None) -> tuple[str, str | None]:
    """(in words, what is wrong)."""
    path = folder / SIGNATURE
    there = path.is_file() or path.is_symlink()
    if path.is_symlink():
        return "a symlink", "is a symlink"
    if signer is not None:
        broken = sign.check(folder, **vars(signer))
        by = f"the key {signer.key}" if signer.key else f"{signer.identity}"
        return ("does not hold" if broken else f"made with {by}, over every file"), broken
    if not there:
        return "none", None
    broken = sign.coverage(folder)
    words = "covers every file; by whom was not checked: --key PUBLIC"
    return ("does not hold" if broken else words), broken


def _empty_folders(folder: Path) -> list[dict[str, str]]:
    return [
        {"path": f"{Path(directory).relative_to(folder)}/", "problem": "an empty folder, not in the manifest"}
        for directory, inside, files in os.walk(folder)
        if not inside and not files and Path(directory) != folder
    ]


def _incomplete(manifest: Manifest) -> list[dict[str, str]]:
    """The history of a model has to reach the data it was trained on (with its sources) and the base model."""
    rows = manifests.lineage(manifest.inputs)
    wanting = []
    trained_on = [i for i in _flat(manifest.inputs) if i.kind == "dataset"]
    needs_data = manifest.facts.get("method") not in WEIGHTLESS
    if needs_data and not trained_on:
        wanting.append("the lineage does not reach a dataset")
    elif needs_data and not any(i.inputs for i in trained_on):
        wanting.append("the lineage ends at the dataset: its sources are not named")
    if not any(row["role"] == "base_model" for row in rows):
        wanting.append("the lineage does not reach a base model")
    return [{"path": manifests.NAME, "problem": text} for text in wanting]


def _flat(inputs: tuple[manifests.Input, ...]) -> list[manifests.Input]:
    return [found for item in inputs for found in (item, *_flat(item.inputs))]


def _unwanted(folder: Path, manifest: Manifest) -> list[dict[str, str]]:
    """Pickles (they run code when loaded), training-only template tags, weights that end before they should."""
    from tunegate.train.model_loading import without_generation_tags

    found = []
    for name in (str(item["path"]) for item in manifest.outputs):
        path = folder / name
        if path.suffix.lower() in PICKLES:
            found.append({"path": name, "problem": "a pickle: it runs code when it is loaded"})
        if not path.is_file() or path.is_symlink():
            continue
        template = path.read_text(encoding="utf-8", errors="replace") if path.suffix == ".jinja" else ""
        if without_generation_tags(template) != template:
            found.append({"path": name, "problem": "the template has training-only tags ({% generation %})"})
        found += _weights(path, name)
    return found


def _weights(path: Path, name: str) -> list[dict[str, str]]:
    """A weight file that is not whole, an index that names files which are not there."""
    try:
        if path.suffix == ".safetensors":
            weight_files.read_header(path)
        shards = weight_files.indexed(path.parent) if path.name == weight_files.INDEX else []
    except UserError as error:
        return [{"path": name, "problem": error.message}]
    gone = [shard for shard in shards if not (path.parent / shard).is_file()]
    return [{"path": shard, "problem": "a shard that the index names is missing"} for shard in gone]


def _stages(folder: Path, manifest: Manifest, lineage: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Template and probe digest as each stage recorded them, and as this folder's files give them now."""
    ancestors = [row for row in lineage if row["state"] == "here" and row["kind"] in MODELS]
    now = _computed(folder, manifest)
    return [
        *([{"stage": "these files, now", **now}] if any(now.values()) else []),
        _recorded(manifest.kind, manifest),
        *_modelfile(manifest),
        *(_recorded(str(row["kind"]), manifests.read(Path(row["path"]))) for row in ancestors),
    ]


def _modelfile(manifest: Manifest) -> list[dict[str, Any]]:
    """The Modelfile's template, where it has one: compared with ours when it was written, unchanged since by its hash."""
    if not (manifest.facts.get("ollama") or {}).get("template"):
        return []
    return [
        {
            "stage": "rendered alike by the Modelfile",
            "template_digest": manifest.facts["template_digest"],
            "probe_digest": None,
        }
    ]


def _recorded(kind: str, manifest: Manifest) -> dict[str, Any]:
    quantization = manifest.facts.get("quantization")
    stage = {"run": "training", "gguf": "GGUF"}.get(kind, "merge" if quantization == "none" else str(quantization))
    return {"stage": f"recorded by {stage}", **{k: manifest.facts.get(k) for k in ("template_digest", "probe_digest")}}


def _computed(folder: Path, manifest: Manifest) -> dict[str, Any]:
    if manifest.kind == GgufExport.kind:
        from tunegate.train.release.export_gguf import embedded_template_digest

        return {"template_digest": embedded_template_digest(GgufExport.open(folder)), "probe_digest": None}
    if manifest.facts.get("method") in WEIGHTLESS:
        return {"template_digest": None, "probe_digest": None}
    from tunegate.core.chat_template import probe_digest, template_digest
    from tunegate.core.model_source import of_folder
    from tunegate.train.model_loading import load_tokenizer

    tokenizer = load_tokenizer(of_folder(folder))
    return {"template_digest": template_digest(tokenizer), "probe_digest": probe_digest(tokenizer)}


def _one_template(stages: list[dict[str, Any]]) -> list[dict[str, str]]:
    problems = []
    for key, words in (("template_digest", "chat template"), ("probe_digest", "token ids of the probe")):
        values = {stage["stage"]: stage[key] for stage in stages if stage.get(key)}
        if len(set(values.values())) > 1:
            shown = "; ".join(f"{stage} {value[:12]}" for stage, value in values.items())
            problems.append({"path": "tokenizer", "problem": f"the {words} are not one at all stages: {shown}"})
    return problems
