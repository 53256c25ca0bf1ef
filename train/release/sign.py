"""OpenSSF model signing (OMS) of a folder: `model.sig` inside it, over every file and the manifest.

The format and the cryptography are those of the package `model-signing`; its command line verifies what is made here.
"""

import base64
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.core.artifacts import Artifact
from tunegate.core.errors import InfrastructureError, UserError, first_line
from tunegate.core.files import no_file, relative_files, sha256_file
from tunegate.core.manifest import SIGNATURE, verify


@dataclass(frozen=True, kw_only=True)
class Keyless:
    """Signing by Sigstore. token: an OpenID Connect identity token; without one the CI's own identity is taken, or a browser
    is opened. trust_config: of another Sigstore than the public one."""

    token: str | None = None
    trust_config: Path | None = None


@dataclass(frozen=True, kw_only=True)
class PrivateKey:
    """A P-256 private key in a PEM file, and its password where it has one."""

    path: Path
    password: str | None = None


def sign(artifact: Artifact, by: Path | Keyless, *, password: str | None = None) -> Path:
    """Write `model.sig` with a P-256 private key (PEM), or keyless by Sigstore.

    Raises UserError for a folder that is not as its manifest says and for a key of another kind.
    """
    signing, config = _library("signing"), _hashing()
    if problems := verify(artifact.path):
        first = problems[0]
        if first["path"] != SIGNATURE:
            raise UserError(
                f"not signed: {first['path']}: {first['problem']}",
                where=str(artifact.path),
                hint=f"ft verify {artifact.path}",
            )
    signer = signing.Config().set_hashing_config(config)
    target = artifact.path / SIGNATURE
    if isinstance(by, Path) and not by.is_file():
        raise no_file(by, "key file", _HOW)
    try:
        if isinstance(by, Keyless):
            signer.use_sigstore_signer(
                use_ambient_credentials=by.token is None, identity_token=by.token, trust_config=by.trust_config
            )
        else:
            # the library says text, and hands it on to what takes bytes
            signer.use_elliptic_key_signer(private_key=by, password=_bytes(password))
        signer.sign(artifact.path.resolve(), target)
    except Exception as error:
        if isinstance(by, Keyless):
            raise _sigstore(error) from None
        if not isinstance(error, ValueError | TypeError):
            raise
        raise UserError(f"cannot sign with this key: {error}", where=str(by), hint=_HOW) from None
    return target


_HOW = "make one: openssl ecparam -name prime256v1 -genkey -noout -out key.pem; openssl ec -in key.pem -pubout -out public.pem"


def check(
    folder: Path,
    *,
    key: Path | None = None,
    identity: str | None = None,
    issuer: str | None = None,
    trust_config: Path | None = None,
) -> str | None:
    """What is wrong with the signature, None when it is good: made with that key, or by that identity, over these bytes.

    Raises UserError when the public key cannot be read.
    """
    if key is not None and not key.is_file():
        raise no_file(key, "key file", _HOW)
    verifying, config = _library("verifying"), _hashing()
    signature = folder / SIGNATURE
    if not signature.is_file():
        return "there is no signature"
    verifier = verifying.Config().set_hashing_config(config)
    try:
        if key is not None:
            verifier.use_elliptic_key_verifier(public_key=key)
        else:
            verifier.use_sigstore_verifier(identity=identity, oidc_issuer=issuer, trust_config=trust_config)
    except Exception as error:
        if key is None:
            raise _sigstore(error) from None
        if not isinstance(error, ValueError | TypeError | OSError):
            raise
        raise UserError(f"not a P-256 public key in PEM: {error}", where=str(key), hint=_HOW) from None
    try:
        verifier.verify(folder.resolve(), signature)
    except Exception as error:  # whatever the cryptography below raises: the signature is not good
        return " ".join(f"the signature does not hold: {str(error) or type(error).__name__}".split())
    return None


def secret(path: Path | None) -> str | None:
    """The one line of a file that holds a password or a token; None without a file. Raises UserError for one that cannot be read."""
    from tunegate.serve.client import api_key

    return api_key(path) if path else None


def is_signed_with(folder: Path, key: PrivateKey) -> bool:
    """Whether a folder's signature was made with this private key, over what it holds now.

    Raises UserError for a key that cannot be read.
    """
    _library("verifying")  # cryptography comes with it
    from cryptography.hazmat.primitives import serialization

    try:
        public = serialization.load_pem_private_key(key.path.read_bytes(), password=_bytes(key.password)).public_key()
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot read this key: {first_line(error)}", where=str(key.path), hint=_HOW) from None
    with tempfile.TemporaryDirectory() as place:
        beside = Path(place) / "public.pem"
        beside.write_bytes(
            public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
        return check(folder, key=beside) is None


def _bytes(password: str | None) -> bytes | None:
    return None if password is None else password.encode()


def _sigstore(error: Exception) -> InfrastructureError:
    """Whatever stops keyless signing is outside of us: no network, no identity, a service that refuses."""
    line = (str(error).strip().splitlines() or [""])[0]
    return InfrastructureError(
        f"Sigstore: {line or type(error).__name__}", hint="keyless needs the network; or use --key"
    )


def coverage(folder: Path) -> str | None:
    """Without any key: whether the signature is one, and names exactly these files with these hashes. What is wrong, or None.

    Whether the signer is who they should be, only `check` says.
    """
    try:
        bundle = json.loads((folder / SIGNATURE).read_text(encoding="utf-8"))
        statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
        signed = {str(item["name"]): item["digest"] for item in statement["predicate"]["resources"]}
    except (ValueError, KeyError, TypeError, UnicodeDecodeError):
        return "not a model signature"
    names = {name for name in relative_files(folder) if name != SIGNATURE}
    if names != set(signed):
        odd = sorted(names ^ set(signed))[0]
        return f"signed before {odd} was {'added' if odd in names else 'removed'}"
    changed = [n for n in sorted(names) if not (folder / n).is_file() or sha256_file(folder / n) != signed[n]]
    return f"signed before {changed[0]} was changed" if changed else None


def _hashing() -> Any:
    return _library("hashing").Config().set_ignored_paths(paths=[Path(SIGNATURE)], ignore_git_paths=False)


def _library(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"model_signing.{name}")
    except ImportError:
        raise UserError("model-signing is not installed", hint="pip install 'tunegate[sign]'") from None
