"""A Chromium for the tests of pages: that of this machine, or one from the npm registry, kept in the checkout.

python -m tests.support.chromium     # fetches one, if there is none; says why, where that is not possible
"""

from __future__ import annotations

import base64
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.support.paths import ROOT

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_PACKAGE = "@sparticuz/chromium@147.0.0"
# Of the package's archive, as the registry has it.
_SHA512 = "4ZKeAQQa8up2mt675qSitztLdbQrlf8BKdC5naeap+5Mv1OV1OlJdPoU+EJC/p5sQUJUQmN4r+q5+EhaaOUHpQ=="
_FOLDER = ROOT / ".chromium" / "147.0.0"
_SECONDS = 120
# Node, which is where npm is, knows Brotli; Python does not.
_UNPACK = "const [a, b] = process.argv.slice(1); const fs = require('fs');" + (
    "fs.writeFileSync(b, require('zlib').brotliDecompressSync(fs.readFileSync(a)))"
)
_FONTS = """<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>{folder}/fonts</dir><cachedir>{folder}/cache</cachedir></fontconfig>
"""


class Chromium(NamedTuple):
    """A browser.

    Attributes:
        path: Its program.
        environment: Variables that it needs.
    """

    path: str
    environment: dict[str, str]


def found() -> Chromium | None:
    """Return the Chromium to test with: that of the variable CHROMIUM, of PATH, or the one that was fetched."""
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    if path is not None:
        return Chromium(path, {})
    if not _FOLDER.is_dir():
        return None
    own = {"LD_LIBRARY_PATH": str(_FOLDER / "lib"), "FONTCONFIG_FILE": str(_FOLDER / "fonts.conf")}
    return Chromium(str(_FOLDER / "chromium"), own)


def fetch() -> str:
    """Fetch one, and return what was done, or why not."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return "no Chromium is fetched: the npm registry has one for Linux on x86_64 only"
    if npm is None or node is None:
        return "no Chromium is fetched: there is no npm"
    _FOLDER.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_FOLDER.parent, prefix="part-") as name:
        part = Path(name)
        command = [npm, "pack", _PACKAGE, "--silent", "--pack-destination", str(part)]
        try:
            subprocess.run(
                command, check=True, timeout=_SECONDS, capture_output=True, cwd=part, stdin=subprocess.DEVNULL
            )
        except (subprocess.SubprocessError, OSError) as error:
            return f"no Chromium is fetched: npm pack {_PACKAGE} has failed ({error})"
        (archive,) = part.glob("*.tgz")
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if digest != _SHA512:
            return f"no Chromium is fetched: {_PACKAGE} has the hash sha512-{digest}, expected sha512-{_SHA512}"
        _unpack(archive, part, node)
        archive.unlink()
        shutil.rmtree(part / "package")
        (part / "fonts.conf").write_text(_FONTS.format(folder=_FOLDER))
        try:
            part.rename(_FOLDER)
        except OSError:
            return "another process has fetched a Chromium"
        # What the context removes.
        part.mkdir()
    return f"fetched a Chromium to {_FOLDER}"


def _unpack(archive: Path, folder: Path, node: str) -> None:
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    for name in ("chromium", "al2023.tar", "fonts.tar"):
        packed_file = folder / "package/bin" / f"{name}.br"
        subprocess.run([node, "-e", _UNPACK, str(packed_file), str(folder / name)], check=True, timeout=_SECONDS)
    (folder / "chromium").chmod(0o755)
    for name in ("al2023.tar", "fonts.tar"):
        with tarfile.open(folder / name) as libraries:
            libraries.extractall(folder, filter="data")
        (folder / name).unlink()


if __name__ == "__main__" and found() is None:
    print(fetch())
