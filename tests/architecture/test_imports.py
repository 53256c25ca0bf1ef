"""What a `--help` may import, that every command loads, and that layers point one way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tunegate.core.ft import FtGroup

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "transformers", "vllm", "datasets", "pandas", "trl", "peft", "accelerate", "bitsandbytes"}
PROBE = """
import json, sys
from tunegate.{module} import {names}
from tunegate.core.commands import run
found = {{}}
for argv in json.loads(sys.argv[1]):
    sys.stdout.flush()
    import contextlib, io
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        code = run(app, prog="{prog}", argv=argv)
    heavy = sorted(set(json.loads(sys.argv[2])) & set(sys.modules))
    found[" ".join(argv)] = [int(code), heavy, text.getvalue()]
print(json.dumps(found))
"""


def probe(module, prog, calls):
    """{call: [exit code, heavy modules imported by then, text]} of help calls, all in one fresh interpreter."""
    code = PROBE.format(module=module, names="app", prog=prog)
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(calls), json.dumps(sorted(HEAVY))],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


FT_SUB = {
    "data": ("prepare", "inspect", "check", "split", "clean", "dedup", "convert", "leakage"),
    "export": ("gguf",),
    "release": ("list", "show", "promote", "rollback", "sign"),
    "serve": ("run", "status", "logs", "stop", "top"),
    "eval": ("run", "init", "power", "noise"),
}
ADVISE = ("recommend", "estimate", "breakeven", "gpus", "prices", "rules", "backtest", "calibrate")


@pytest.fixture(scope="module")
def ft_helps():
    calls = [["--help"], ["--version"], *([name, "--help"] for name in FtGroup.entries)]
    calls += [[name, sub, "--help"] for name, subs in FT_SUB.items() for sub in subs]
    return probe("core.ft", "ft", calls)


@pytest.fixture(scope="module")
def advise_helps():
    calls = [["--help"], *([name, "--help"] for name in ADVISE)]
    calls += [["estimate", "train", "--help"], ["estimate", "serve", "--help"], ["rules", "--json"], ["gpus", "--json"]]
    return probe("advisor.cli", "ftadvise", calls)


def test_no_help_of_ft_imports_anything_heavy(ft_helps):
    assert {call: heavy for call, (_, heavy, _) in ft_helps.items() if heavy} == {}
    assert {call: code for call, (code, _, _) in ft_helps.items() if code} == {}


def test_nothing_of_ftadvise_imports_anything_heavy(advise_helps):
    assert {call: heavy for call, (_, heavy, _) in advise_helps.items() if heavy} == {}
    assert {call: code for call, (code, _, _) in advise_helps.items() if code} == {}


def test_every_help_ends_with_an_example(ft_helps, advise_helps):
    wanting = []
    for prog, helps in (("ft", ft_helps), ("ftadvise", advise_helps)):
        for call, (_, _, text) in helps.items():
            if not call.endswith("--help"):
                continue
            last = [line.strip() for line in text.splitlines() if line.strip()]
            start = next((i for i in range(len(last) - 1, -1, -1) if last[i].startswith("Example: ")), None)
            boxed = start is None or any(line.startswith(("╭", "│", "╰")) for line in last[start:])
            if boxed or prog not in " ".join(last[start:]):
                wanting.append(f"{prog} {call}")
    assert wanting == []


def test_the_help_of_ft_names_every_command(ft_helps):
    text = ft_helps["--help"][2]
    assert all(f"│ {name} " in text for name in FtGroup.entries)


@pytest.mark.parametrize("name", FtGroup.entries)
def test_every_entry_loads(name):
    command = FtGroup.entries[name].load()
    assert command.get_help is not None
    assert FtGroup.entries[name].help.endswith(".")


def test_importing_the_tables_of_commands_is_quick_and_light():
    code = "import sys; import tunegate.core.ft, tunegate.advisor.cli; print(sorted({m.partition('.')[0] for m in sys.modules} & {'numpy', 'torch', 'transformers', 'aiohttp', 'yaml', 'scipy', 'pandas', 'pydantic'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_layers_point_one_way():
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports"))],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert "1 kept, 0 broken" in done.stdout
