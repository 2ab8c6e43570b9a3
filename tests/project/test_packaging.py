"""The wheel, installed where this checkout is not."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = folder.glob("*.whl")
    return made


def test_the_wheel_holds_the_package_and_the_configurations_and_no_more(wheel: Path):
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "lightning_lance").rglob("*.py")}
    configs = {f"lightning_lance/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert set(names) == modules | configs | {"lightning_lance/py.typed", "lightning_lance/conf/__init__.py"}


def test_the_installed_wheel_builds_and_serves_from_any_folder(wheel: Path, tmp_path: Path):
    """In a clean environment; only the other packages are those of this one."""
    venv.create(tmp_path / "env", with_pip=True)
    python = str(tmp_path / "env/bin/python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True, timeout=100)
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    # As a line of a .pth file, the folder of this environment does not bring its editable installs along.
    (Path(site) / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    work = tmp_path / "work"
    work.mkdir()
    command = [str(tmp_path / "env/bin/lightning-lance"), "prepare", "tokenizer=bytes", "max_documents=20"]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "20 documents" in done.stdout
    script = (
        "import lightning_lance, pathlib; from lightning_lance import TokenStore; "
        "print(lightning_lance.__file__, TokenStore.open(next(pathlib.Path('data').glob('*.lance'))).num_tokens() > 0)"
    )
    printed = subprocess.run([python, "-c", script], cwd=work, check=True, capture_output=True, text=True).stdout
    assert printed.split() == [str(Path(site) / "lightning_lance/__init__.py"), "True"]
