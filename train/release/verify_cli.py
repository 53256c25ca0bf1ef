"""`ft verify`: options, one call, printing."""

from pathlib import Path
from typing import Annotated

import typer

from tunegate.core.console import JsonOption, emit_json, out
from tunegate.core.errors import ExitCode, TunegateError, UsageError
from tunegate.train.paths import given_path
from tunegate.train.release.verify import Inspection, Signer, inspect, load_in_engine

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command(epilog="Example: ft verify release-awq/ --key public.pem")
def verify(
    folder: Annotated[Path, typer.Argument(help="Any folder that a stage wrote.", parser=given_path)],
    key: Annotated[
        Path | None,
        typer.Option("--key", help="Public key (PEM) that must have signed it.", parser=given_path, metavar="<path>"),
    ] = None,
    identity: Annotated[str | None, typer.Option("--identity", help="Keyless: who must have signed it.")] = None,
    issuer: Annotated[str | None, typer.Option("--issuer", help="Keyless: who vouches for the identity (URL).")] = None,
    trust_config: Annotated[
        Path | None, typer.Option("--trust-config", help="Keyless: of another Sigstore than the public one.")
    ] = None,
    engine: Annotated[bool, typer.Option("--engine", help="Also load it (vLLM; GGUF: llama.cpp), one answer.")] = False,
    distribution: Annotated[
        bool, typer.Option("--distribution", help="Duties of the base's licence that are not met are problems.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Re-hash a folder, follow its lineage to the data, check template, tokenizer, licence and signature; exit 2 on any problem."""
    if (identity is None) != (issuer is None) or (key and identity):
        raise UsageError("give --key, or --identity together with --issuer")
    signer = Signer(key=key, identity=identity, issuer=issuer, trust_config=trust_config) if key or identity else None
    found = inspect(folder, signer=signer, distribution=distribution)
    loaded = None
    if engine and not found.problems:
        try:
            loaded = load_in_engine(folder)
        except TunegateError as error:
            found.problems.append({"path": "engine", "problem": error.line()})
    if as_json:
        emit_json({**found.as_json(), "engine": loaded})
    else:
        for line in _lines(folder, found, loaded):
            out().print(line, markup=False)
    if found.problems:
        raise typer.Exit(ExitCode.BAD_INPUT)


def _lines(folder: Path, found: Inspection, loaded: str | None) -> list[str]:
    manifest = found.manifest
    size = sum(int(item["bytes"]) for item in manifest.outputs)
    lines = [
        f"{manifest.kind} {folder}: {len(manifest.outputs)} files, {size / 1e6:.1f} MB, made {manifest.created}",
        f"digest {manifest.digest}",
    ]
    for row in found.lineage:
        state = "" if row["state"] in ("here", "not checked") else f" [{row['state']}]"
        lines.append(
            f"{'  ' * row['depth']}from {row['role']}: {row['kind']} {row['digest'][:12]} ({row['path']}){state}"
        )
    lines += [
        f"template {str(s['template_digest'])[:12]}, probe tokens {str(s['probe_digest'])[:12]}: {s['stage']}"
        for s in found.stages
    ]
    if found.signature != "none":
        lines.append(f"signature {found.signature}")
    unmet = [duty for duty in found.duties if not duty.met]
    lines += [f"before you pass it on: {d.duty} ({d.source}): {d.fix}" for d in unmet]
    if found.duties and not unmet:
        lines.append(f"licence duties: {len(found.duties)} met")
    if loaded:
        lines.append(loaded)
    lines += [f"PROBLEM {problem['path']}: {problem['problem']}" for problem in found.problems]
    return [*lines, f"verify: {'OK' if not found.problems else f'{len(found.problems)} problems'}"]
