"""`ft export gguf`: options, one call, printing."""

from pathlib import Path
from typing import Annotated

import typer

from tunegate.core.artifacts import Release
from tunegate.core.console import JsonOption, emit_json, out
from tunegate.core.files import refuse_existing, refuse_input
from tunegate.train.paths import given_path

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    epilog="Example: ft export gguf release/ --type q4_k_m --out gguf/",
)


@app.callback()
def root() -> None:
    """Write a release in another engine's format."""


@app.command(
    epilog="Example: ft export gguf release/ --type q4_k_m --out gguf/ && ollama create mine -f gguf/Modelfile"
)
def gguf(
    release_folder: Annotated[
        Path, typer.Argument(metavar="RELEASE", help="Release folder of ft merge (bf16).", parser=given_path)
    ],
    out_folder: Annotated[Path, typer.Option("--out", help="Folder to write.", parser=given_path, metavar="<path>")],
    kind: Annotated[
        str, typer.Option("--type", help="q4_k_m, q5_k_m, q6_k, q8_0, f16, bf16, ...: of the file's weights.")
    ] = "q4_k_m",
    prompts: Annotated[int, typer.Option(min=0, help="Questions whose answers are compared; 0: none.")] = 10,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of each answer compared.")] = 32,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing folder.")] = False,
    as_json: JsonOption = False,
) -> None:
    """One GGUF file for llama.cpp and Ollama, with tokenizer and template inside, proven against the release."""
    release = Release.open(release_folder)
    refuse_input(out_folder, release_folder)
    refuse_existing(out_folder, force=force)
    from tunegate.train.release.export_gguf import ExportConfig, export

    config = ExportConfig(type=kind.lower(), prompts=prompts, max_tokens=max_tokens)
    made = export(release, config, out_folder, force=force)
    facts = made.manifest.facts
    if as_json:
        emit_json({"gguf": str(made.model_path), "digest": made.digest, **facts})
        return
    proof = facts["proof"]
    out().print(
        f"gguf: {made.model_path} ({facts['bytes'] / 1e6:.0f} MB), {proof['texts']} texts tokenize as before",
        markup=False,
    )
    if "prompts" in proof:
        out().print(
            f"answers: {proof['equal_answers']} of {proof['prompts']} equal to bf16's, same next token at "
            f"{proof['same_next_token_share']:.1%} of {proof['answer_tokens']} positions",
            markup=False,
        )
    template = "renders as ours" if facts["ollama"]["template"] else f"none ({facts['ollama']['reason']})"
    out().print(f"Modelfile: template {template}; stops {' '.join(facts['stops'])}", markup=False)
    out().print(
        f"next: ollama create NAME -f {made.path}/Modelfile, or llama-server -m {made.model_path}", markup=False
    )
