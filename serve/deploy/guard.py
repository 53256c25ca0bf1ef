"""The guard's modules as files, so that a stock vLLM image can be given them without being built anew."""

from importlib.resources import files

# All that `tunegate.serve.middleware` imports of ours; a test imports it from these files alone.
GUARD_FILES = ("tunegate/serve/middleware.py", "tunegate/serve/connections.py", "tunegate/serve/engine_watch.py")


def guard_text(name: str) -> str:
    """The content of one of GUARD_FILES."""
    package, _, file = name.rpartition("/")
    return files(package.replace("/", ".")).joinpath(file).read_text(encoding="utf-8")
