"""`ft release list | show | promote | rollback | sign`: options, one call, printing."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from tunegate.core import manifest as manifests
from tunegate.core.artifacts import Release, Run, open_any
from tunegate.core.console import JsonOption, emit_json, out, say, table
from tunegate.core.errors import UsageError, UserError
from tunegate.core.methods import WEIGHTLESS
from tunegate.core.registry import Promotion
from tunegate.train.paths import given_path
from tunegate.train.release.promote import MADE, described, standing, who
from tunegate.train.release.promote import promote as do_promote
from tunegate.train.release.promote_registry import current, open_registry

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    epilog="Example: ft release promote release-awq/ --gate report/gate --as champion",
)
# Settings of a method, and what was found while it was made, that the screen shows.
OF_WEIGHTS = ("rank", "alpha", "learning_rate", "num_train_epochs", "max_steps", "seed")
OF_PROMPTS = ("k", "selection", "examples", "passages", "passage_tokens", "embedder", "docs", "system_file", "instruction_tokens")  # fmt: skip
RegistryOption = Annotated[
    str | None,
    typer.Option(
        "--registry", help="A folder, or mlflow:URI[#NAME]; else TUNEGATE_REGISTRY, TUNEGATE_HOME, .tunegate."
    ),
]
ByOption = Annotated[str | None, typer.Option("--by", help="Who; default: the CI's actor, else user@host.")]
ReasonOption = Annotated[str | None, typer.Option("--reason", help="Kept in the history.")]


@app.callback()
def root() -> None:
    """Names for releases: champion, candidate, baseline; each moved only on a passing gate."""


@app.command("list", epilog="Example: ft release list")
def list_releases(registry: RegistryOption = None, as_json: JsonOption = False) -> None:
    """What each alias means now, since when, by whom, on which evidence."""
    store = open_registry(registry)
    histories = store.histories()
    now = {alias: standing(history)[-1] for alias, history in sorted(histories.items())}
    if as_json:
        found = [{"alias": a, "changes": len(histories[a]), **p.as_json()} for a, p in now.items()]
        emit_json({"registry": store.where(), "releases": found})
        return
    if not now:
        out().print(f"nothing was promoted yet in {store.where()}", markup=False)
        return
    rows = [
        [alias, str(p.facts.get("name", "")), p.digest[:12], f"{p.action}d" if p.action == "promote" else "rolled back",
         p.at, p.by, f"{p.evidence.get('decision')} {str(p.evidence.get('gate'))[:12]}", str(len(histories[alias]))]
        for alias, p in now.items()
    ]  # fmt: skip
    table(None, ["alias", "release", "digest", "how", "since", "by", "evidence", "changes"], rows, left=7)


@app.command(epilog="Example: ft release show champion")
def show(
    what: Annotated[str, typer.Argument(metavar="ALIAS|RELEASE", help="An alias, or a release folder.")] = "champion",
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """One screen: which data, which base, which recipe, which quantization, which evidence, who promoted it."""
    store = open_registry(registry)
    path = Path(what)
    if manifests.is_finished(path):
        artifact = _servable(path)
        histories = store.histories()
        named = [a for a, h in histories.items() if h and standing(h)[-1].digest == artifact.digest]
        entries = [(alias, entry) for alias, h in histories.items() for entry in h if entry.digest == artifact.digest]
        promotion = entries[-1][1] if entries else None
        facts = described(artifact) | ({"recipe": promotion.facts.get("recipe")} if promotion else {})
        document: dict[str, Any] = {"aliases": named, "digest": artifact.digest, "path": str(path), "facts": facts,
                    "promotion": promotion.as_json() if promotion else None, "history": []}  # fmt: skip
    else:
        promotion = current(store, what)
        history = [entry.as_json() for entry in store.histories()[what]]
        document = {"aliases": [what], "digest": promotion.digest, "path": promotion.path, "facts": promotion.facts,
                    "promotion": promotion.as_json(), "history": history}  # fmt: skip
    if as_json:
        emit_json(document)
        return
    for line in _screen(document):
        out().print(line, markup=False)


@app.command(
    epilog="Example: ft release promote release-awq/ --gate report/gate --as champion --reason 'v2 of the data'"
)
def promote(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="Release (or Run) folder.", parser=given_path)],
    gate: Annotated[
        Path,
        typer.Option(
            "--gate",
            help="GateDecision folder, or the report it lies in (REPORT/gate).",
            parser=given_path,
            metavar="<path>",
        ),
    ],
    alias: Annotated[str, typer.Option("--as", help="champion, candidate, baseline, or a name of yours.")] = "champion",
    by: ByOption = None,
    reason: ReasonOption = None,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let an alias mean a release; refused without a PASS decided on exactly these bytes."""
    artifact = _servable(release)
    store = open_registry(registry)
    promotion = do_promote(artifact, gate, alias, store, by=by, reason=reason)
    if as_json:
        emit_json({"alias": alias, "registry": store.where(), **promotion.as_json()})
        return
    evidence = promotion.evidence
    out().print(
        f"{alias}: {artifact.path} ({artifact.digest[:12]}), on {evidence['decision']} {evidence['gate'][:12]} of report "
        f"{evidence['report'][:12]} over {evidence['n']} items, decided on these bytes",
        markup=False,
    )
    out().print(f"kept in {promotion.path}; back again: ft release rollback {alias}", markup=False)


@app.command(epilog="Example: ft release rollback champion --reason 'complaints about dates'")
def rollback(
    alias: Annotated[str, typer.Argument(help="The alias to take back.")] = "champion",
    to: Annotated[str | None, typer.Option("--to", help="Digest (its beginning) of an earlier promotion.")] = None,
    by: ByOption = None,
    reason: ReasonOption = None,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let an alias mean what it meant before; its history keeps both."""
    store = open_registry(registry)
    was, entry = store.roll_back(alias, to, by or who(), reason)
    if as_json:
        emit_json({"alias": alias, "registry": store.where(), "was": was.digest, **entry.as_json()})
        return
    name = f"{entry.facts.get('name', '')} ({entry.digest[:12]})"
    out().print(
        f"{alias}: {name} again, as promoted {entry.promoted}; was {was.facts.get('name', '')} ({was.digest[:12]})",
        markup=False,
    )
    out().print(f"kept in {entry.path}", markup=False)
    say("what is being served does not change by itself: restart the server on that folder")


@app.command(epilog="Example: ft release sign release-awq/ --key key.pem && ft verify release-awq/ --key public.pem")
def sign(
    folder: Annotated[Path, typer.Argument(metavar="RELEASE", help="Any finished folder.", parser=given_path)],
    key: Annotated[Path | None, typer.Option("--key", help="P-256 private key, PEM.")] = None,
    key_password_file: Annotated[
        Path | None, typer.Option("--key-password-file", help="Where the key has one.")
    ] = None,
    keyless: Annotated[bool, typer.Option("--keyless", help="By Sigstore, with your identity or the CI's.")] = False,
    identity_token_file: Annotated[
        Path | None,
        typer.Option("--identity-token-file", help="Keyless: an OpenID Connect token; else SIGSTORE_IDENTITY_TOKEN."),
    ] = None,
    trust_config: Annotated[
        Path | None, typer.Option("--trust-config", help="Keyless: of another Sigstore than the public one.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Sign every byte of a folder (OpenSSF model signing): model.sig inside it, checked by `ft verify --key`."""
    if (key is None) == (not keyless):
        raise UsageError("give --key KEY or --keyless")
    if key and (identity_token_file or trust_config):
        raise UsageError("--identity-token-file and --trust-config are for --keyless")
    from tunegate.train.release.sign import Keyless, secret
    from tunegate.train.release.sign import sign as do_sign

    token = secret(identity_token_file) or os.environ.get("SIGSTORE_IDENTITY_TOKEN")
    by = key or Keyless(token=token, trust_config=trust_config)
    signature = do_sign(open_any(folder), by, password=secret(key_password_file))
    if as_json:
        emit_json({"signature": str(signature), "folder": str(folder)})
        return
    out().print(f"signed: {signature}; check with: ft verify {folder} --key PUBLIC", markup=False)


def _servable(path: Path) -> Release | Run:
    artifact = open_any(path)
    if not isinstance(artifact, Release | Run):
        raise UserError(f"is a {artifact.kind} folder, a release (or run) is needed here", where=str(path))
    return artifact


def _recipe(facts: dict[str, Any]) -> str:
    """The method with the settings it reads, and what making it chose and counted."""
    from tunegate.train.config import keys_of

    method = str(facts.get("method"))
    read = keys_of(method)
    known = {key: value for key, value in (facts.get("recipe") or {}).items() if key in read}
    known |= {key: facts[key] for key in MADE if key in facts}
    shown = OF_PROMPTS if method in WEIGHTLESS else OF_WEIGHTS
    told = ", ".join(f"{key} {known[key]}" for key in shown if known.get(key) not in (None, "", -1))
    return f"{method}: {told}" if told else method


def _screen(document: dict[str, Any]) -> list[str]:
    facts = document["facts"]
    data, run = facts.get("data") or {}, facts.get("run") or {}
    counts = f", {data['train']} rows to train on, {data['eval']} held out" if "train" in data else ""
    made_by = f" (run {run['path']}, {str(run.get('digest', ''))[:12]})" if "path" in run else ""
    quantization = ", ".join(
        [str(facts.get("quantization", "none"))]
        + [f"{k.replace('_', ' ')} {facts[k]}" for k in ("format", "group_size", "calibration_rows") if k in facts]
    )
    lines = [
        f"{' '.join(document['aliases']) or 'no alias'}: {facts.get('name')}",
        f"digest        {document['digest']}",
        f"folder        {document['path']}",
        f"data          {data.get('path', 'unknown')} ({str(data.get('digest', ''))[:12]}){counts}",
        f"base          {facts.get('base')} = {facts.get('base_name')}, licence {facts.get('license') or 'unknown'} ({str(facts.get('base_digest', ''))[:12]})",
        f"recipe        {_recipe(facts)}{made_by}",
        f"quantization  {quantization}",
    ]
    if document["promotion"] is None:
        return [*lines, "promoted      never, in this registry"]
    promotion = Promotion.from_json(document["promotion"])
    evidence = promotion.evidence
    against = f", against baseline {baseline[:12]}" if (baseline := evidence.get("baseline")) else ""
    lines.append(
        f"evidence      {evidence.get('decision')} {str(evidence.get('gate'))[:12]}, report {str(evidence.get('report'))[:12]} "
        f"over {evidence.get('n')} items{against}"
    )
    conditions = evidence.get("conditions", [])
    lines += [f"{'':14}{c['decision']} {c['metric']} {c['rule']}: {c['reason']}" for c in conditions]
    how = "rolled back" if promotion.action == "rollback" else "promoted"
    lines.append(f"{how:<14}{promotion.at} by {promotion.by}{': ' + promotion.reason if promotion.reason else ''}")
    if promotion.promoted:
        lines.append(f"promoted      {promotion.promoted}")
    for entry in document["history"][-6:-1][::-1]:
        reason = f": {entry['reason']}" if entry.get("reason") else ""
        lines.append(f"before        {entry['at']} {entry['action']} {entry['digest'][:12]} by {entry['by']}{reason}")
    return lines
