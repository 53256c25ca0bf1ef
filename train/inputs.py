"""What a run is made from beside the dataset and the base model, as inputs of its manifest."""

from tunegate.core import embedding
from tunegate.core.files import home_path
from tunegate.core.manifest import Input
from tunegate.core.methods import WEIGHTLESS
from tunegate.train import adapters
from tunegate.train.config import TrainConfig, keys_of

FILE_KEYS = (("system_prompt", "system_file"), ("documents", "docs"))


def others(config: TrainConfig) -> list[Input]:
    """The adapter to go on from, the system file, the documents and the encoder they are found by; what the method does
    not read is left out. Raises UserError for an adapter or an encoder that cannot be read."""
    read = keys_of(config.method)
    adapter = adapters.as_inputs(home_path(config.adapter)) if config.adapter and "adapter" in read else []
    named = [(role, getattr(config, key) if key in read else "") for role, key in FILE_KEYS]
    found = [(role, home_path(spec)) for role, spec in named if spec]
    files = [(role, file) for role, path in found for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    texts = [Input.of_file(file, role) for role, file in files if file.is_file()]
    return [*adapter, *texts, *([_encoder(config)] if _encodes(config) else [])]


def _encodes(config: TrainConfig) -> bool:
    return "embedder" in keys_of(config.method) and bool(config.docs or config.method in WEIGHTLESS)


def _encoder(config: TrainConfig) -> Input:
    digest = embedding.load(config.embedder).digest
    return Input(role="embedder", kind="model", path=config.embedder, digest=digest)
