"""`ft verify` and `ft doctor`."""

from pathlib import Path
from typing import Annotated

import typer

from tunegate.core import manifest as manifests
from tunegate.core.console import JsonOption, emit_json, out
from tunegate.core.errors import ExitCode

verify_app = typer.Typer(add_completion=False, rich_markup_mode="rich")
doctor_app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@verify_app.command(epilog="Example: ft verify release-awq/")
def verify(
    folder: Annotated[Path, typer.Argument(help="Any folder that a stage wrote.")], as_json: JsonOption = False
) -> None:
    """Re-hash every file of a folder against its manifest and show what it was made from; exit 2 when a byte differs."""
    manifest = manifests.read(folder)
    problems = manifests.verify(folder)
    lineage = manifests.lineage(manifest.inputs)
    if as_json:
        emit_json(
            {
                "ok": not problems,
                "kind": manifest.kind,
                "digest": manifest.digest,
                "problems": problems,
                "lineage": lineage,
            }
        )
    else:
        size = sum(int(item["bytes"]) for item in manifest.outputs)
        out().print(
            f"{manifest.kind} {folder}: {len(manifest.outputs)} files, {size / 1e6:.1f} MB, made {manifest.created}",
            markup=False,
        )
        out().print(f"digest {manifest.digest}", markup=False)
        for row in lineage:
            out().print(
                f"{'  ' * row['depth']}from {row['role']}: {row['kind']} {row['digest'][:12]} ({row['path']})",
                markup=False,
            )
        for problem in problems:
            out().print(f"PROBLEM {problem['path']}: {problem['problem']}", markup=False)
        out().print(f"verify: {'OK' if not problems else f'{len(problems)} problems'}", markup=False)
    if problems:
        raise typer.Exit(ExitCode.BAD_INPUT)


@doctor_app.command(epilog="Example: ft doctor")
def doctor(as_json: JsonOption = False) -> None:
    """Say what is installed, which device each stage will use, what is missing, and the command that mends it."""
    from tunegate.core.doctor import checks

    found = checks()
    ok = all(check.ok for check in found if check.needed)
    if as_json:
        emit_json(
            {
                "ok": ok,
                "checks": [
                    {"name": c.name, "ok": c.ok, "found": c.found, "fix": None if c.ok else c.fix, "needed": c.needed}
                    for c in found
                ],
            }
        )
    else:
        for check in found:
            mark = "ok     " if check.ok else "MISSING" if check.needed else "absent "
            fix = "" if check.ok else f"  -> {check.fix}"
            out().print(f"{mark}  {check.name:<22} {check.found}{fix}", markup=False)
        out().print(
            "doctor: " + ("everything that is needed is here" if ok else "something is missing, see above"),
            markup=False,
        )
    if not ok:
        raise typer.Exit(ExitCode.BAD_INPUT)
