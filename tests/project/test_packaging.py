"""The wheel, installed where this checkout is not."""

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    # In the checkout's own build folder, what an earlier build left would get into the wheel too.
    elsewhere = folder / "build.cfg"
    elsewhere.write_text(f"[build]\nbuild_base = {folder}/build\n")
    environment = {**os.environ, "DIST_EXTRA_CONFIG": str(elsewhere)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = folder.glob("*.whl")
    return made


def test_the_wheel_holds_the_package_and_the_configurations_and_no_more(wheel: Path):
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "lightning_lance").rglob("*.py")}
    configs = {f"lightning_lance/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    examples = {f"lightning_lance/examples/{path.name}" for path in (ROOT / "examples").glob("*.py")}
    package = {"lightning_lance/py.typed", "lightning_lance/conf/__init__.py"}
    report = {f"lightning_lance/inspection/report/page.{ending}" for ending in ("html", "css", "js")}
    assert set(names) == modules | configs | examples | package | report


def test_the_installed_wheel_builds_and_trains_from_any_folder(wheel: Path, tmp_path: Path):
    """In an environment of its own; only the other packages are those of this one."""
    site = tmp_path / "env/site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (commands,) = site.glob("*.dist-info/entry_points.txt")
    assert commands.read_text().split() == [
        "[console_scripts]",
        "lightning-lance",
        "=",
        "lightning_lance.cli.main:main",
    ]
    work = tmp_path / "work"
    work.mkdir()
    for number in range(20):
        (work / f"{number}.py").write_text("def f(x):\n    return x\n" * (40 + number))
    overrides = [
        "source=files", "source.patterns=['*.py']", "tokenizer=bytes", "corpus.val_fraction=0.2", "context_length=16",
        "model.n_layer=1", "model.n_head=2", "model.n_embd=16", "data.batch_size=2", "trainer.max_steps=2",
    ]  # fmt: skip
    script = "import sys, lightning_lance.cli.main as cli; print(cli.__file__); sys.argv[1:] = {}; cli.main()"
    # Without the folder of this checkout, where an editable install would find it: -S reads no .pth files.
    command = [sys.executable, "-S", "-c", script.format(["train", *overrides])]
    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{sysconfig.get_paths()['purelib']}"}
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == str(site / "lightning_lance/cli/main.py")
    assert lines[-4].startswith("trained on data/files-")
    assert lines[-1].startswith("to go on: lightning-lance train source=files ")
    assert (work / "outputs/checkpoints/last.ckpt").exists()
    assert (work / "outputs/loss.png").exists()


def test_the_citation_is_of_this_version():
    stated = re.search('^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert stated is not None
    assert f"\nversion: {stated[1]}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
