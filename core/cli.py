"""`ft doctor`."""

import typer

from tunegate.core.console import JsonOption, emit_json, out
from tunegate.core.errors import ExitCode

doctor_app = typer.Typer(add_completion=False, rich_markup_mode="rich")


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
