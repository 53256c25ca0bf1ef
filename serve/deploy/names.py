"""The names a user gives a deployment's parts, held against what the platform takes, whether its tools are asked or not."""

import re

from tunegate.core.errors import UsageError, UserError
from tunegate.serve.deploy.plan import DeployOptions
from tunegate.serve.endpoint_url import checked_url, is_url

# RFC 1123 subdomain, as Kubernetes takes it for secrets and claims.
_SUBDOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
# The grammar of image references (github.com/distribution/reference), without its rare forms of a host.
_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_IMAGE = re.compile(rf"(?:[A-Za-z0-9][A-Za-z0-9.-]*(?::\d+)?/)?{_PART}(?:/{_PART})*(?::\w[\w.-]{{0,127}})?(?:@sha256:[0-9a-f]{{64}})?", re.ASCII)  # fmt: skip


def check_names(options: DeployOptions, to: str) -> None:
    """Raises UserError for a GPU that the files for platform `to` are not made for, and for a secret, volume, image or
    address that it cannot have by that name."""
    if options.gpu.name.startswith("MI") and to != "ray":
        raise UserError(
            f"{options.gpu.name} is AMD's, and the files for {to} are for NVIDIA's devices and images", where="--gpu",
            hint="--to ray, on a cluster whose Ray has vLLM for ROCm; or a GPU of NVIDIA",
        )  # fmt: skip
    if options.gpu.name == "V100":
        raise UserError(
            "V100 has compute capability 7.0, and vLLM's builds (CUDA 13) begin with 7.5", where="--gpu",
            hint="T4 or a later GPU",
        )  # fmt: skip
    image, secret, volume = options.image, options.secret, options.volume
    if image is not None and ":" not in image.rpartition("/")[2] and "@" not in image:
        raise UsageError(f"{image!r} names no version", where="--image", hint="IMAGE:TAG or IMAGE@sha256:...")
    if image is not None and not _IMAGE.fullmatch(image):
        raise UsageError(f"{image!r} is no image", where="--image", hint="IMAGE:TAG or IMAGE@sha256:..., in lower case")
    if not is_url(options.prometheus):
        raise UsageError(f"{options.prometheus!r} is no address", where="--prometheus", hint="http://prometheus:9090")
    checked_url(options.prometheus)
    if secret is not None and not _SUBDOMAIN.fullmatch(secret):
        raise UsageError(
            f"no secret can be called {secret!r}", where="--secret", hint="lower-case letters, digits, '-' and '.'"
        )
    if volume is not None:
        _check_volume(volume, to)


def _check_volume(volume: str, to: str) -> None:
    if to in ("kubernetes", "kuberay"):
        if not _SUBDOMAIN.fullmatch(volume):
            raise UsageError(
                f"no volume claim can be called {volume!r}", where="--volume", hint="lower-case letters, digits, '-' and '.'"
            )  # fmt: skip
    elif not volume or not volume.isprintable():
        raise UsageError(f"{volume!r} is no path", where="--volume", hint="the folder that holds the release")
    elif to == "compose" and not volume.startswith((".", "/", "~", "$")):
        raise UsageError(f"{volume!r} is no path for Compose", where="--volume", hint=f"./{volume}")
    elif to == "compose" and ":" in re.sub(r"\$\{[^}]*\}", "", volume):
        raise UsageError(f"{volume!r} holds a colon, which ends a path in Compose", where="--volume")
