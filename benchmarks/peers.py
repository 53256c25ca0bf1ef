"""The Pythons of the tools that we are measured beside: each in an environment of its own, made once, under the cache folder."""

import os
import subprocess
import sys
from pathlib import Path

from tunegate.core.model_source import cache_folder

PINS = {
    "lm-eval": ["lm-eval[api]==0.4.13"],
    "inspect": ["inspect-ai==0.3.285", "openai==3.54.0"],
    "semhash": ["semhash==0.5.0", "model2vec==0.10.0"],
    "llamafactory": ["llamafactory==0.9.5", "torch==2.13.0", "bitsandbytes==0.50.2"],
}
# Rows of text need neither, and beside a CPU build of torch their usual wheels (for CUDA) do not load.
LEFT_OUT = {"llamafactory": ["torchaudio", "torchvision"]}


def python_of(name: str) -> Path:
    """The Python of a peer's environment, made first where it is missing. Raises CalledProcessError."""
    place = cache_folder() / "environments" / f"bench-{'-'.join(p.replace('[api]', '') for p in PINS[name])}"
    if not (place / "complete").is_file():
        print(f"making the environment of {name}", file=sys.stderr)
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(place)], check=True)
        python = str(place / "bin" / "python")
        links = os.environ.get("UV_FIND_LINKS") or os.environ.get(
            "PIP_FIND_LINKS", ""
        )  # a CPU build of torch, as setup.sh
        command = [*uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", python, *PINS[name]]
        for package in LEFT_OUT.get(name, []):
            (place / "left-out.txt").open("a").write(f"{package}; python_version < '3'\n")
            command += ["--overrides", str(place / "left-out.txt")]
        subprocess.run(command, check=True, env={**os.environ, "UV_FIND_LINKS": links})
        (place / "complete").touch()
    return place / "bin" / "python"


def keep_bytecode() -> None:
    """Let every command started from here keep its compiled modules: an import of torch or of lm-eval costs 4 CPU-seconds
    more where PYTHONDONTWRITEBYTECODE forbids that, and would be counted as the tool's own work."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
