"""Fingerprints of fixed files, as in the first versions: existing stores must always be found."""

from pathlib import Path
from typing import Any

import pytest

from lightning_lance.build.plan import make_plan
from lightning_lance.sources.datasets import DatasetSource
from lightning_lance.sources.files import FilesSource
from lightning_lance.tokenization.configs import ByteTokenizer

TREE = [
    "a.py",
    "B.py",
    "b/c.rs",
    "b/d.py",
    "b-c/e.py",
    "sp ace/\u00fc.py",
    "deep/er/still/f.md",
    "deep/er/g",
    "b/.h/y.py",
    ".hidden.py",
    ".git/x.py",
    "__pycache__/z.py",
    "node_modules/m.js",
    "deep/node_modules/n.py",
    "__main__/o.py",
]
SHARDS = [
    "a-1.parquet",
    "a/0.parquet",
    "a/1.parquet",
    "a/2.json",
    "b/0.parquet",
    "b/x/0.parquet",
    "c.jsonl",
    "c.jsonl.gz",
    "d.ndjson.zst",
    ".h.parquet",
    ".h/0.parquet",
    "__s__/0.parquet",
    "README.md",
    "config.json",
    "other.json",
    "e.csv",
    "\u00e9t\u00e9 1.parquet",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fixed")
    for folder, names in (("tree", TREE), ("shards", SHARDS)):
        for i, name in enumerate(names):
            file = root / folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(f"{i} {name}\n".encode() * (i + 1))
    (root / "tree/large.txt").write_bytes(b"0123456789" * 500_000)
    return root


FILES: dict[str, dict[str, Any]] = {
    "python": {"patterns": ["**/*.py"]},
    "all": {"patterns": ["**/*"]},
    "all without exclude": {"patterns": ["**/*"], "exclude": []},
    "two": {"patterns": ["deep/**/*.md", "*.py"]},
    "overlap": {"patterns": ["*.py", "**/*.py", "a.*"]},
    "class": {"patterns": ["[ab]*/?.py", "[!a].py"]},
    "dot": {"patterns": ["./b/*.py"]},
    "up": {"patterns": ["b/../*.py"]},
    "hidden": {"patterns": [".*.py", "**/.h/*.py"]},
    "literal": {"patterns": ["a.py", "deep/er/g", ".hidden.py"]},
    "recursive": {"patterns": ["deep/**"]},
    "stars": {"patterns": ["d**/er/g"]},
    "languages": {"patterns": ["**/*"], "languages": ["Rust", "Python"]},
    "seed": {"patterns": ["**/*.py"], "shard_seed": 7},
    "none": {"patterns": ["**/*.py"], "shard_seed": None, "dedup": "exact"},
    "double": {"patterns": ["**/b/**/*.py"]},
    "above": {"patterns": ["*.py"], "root": "b"},
    "outside": {"patterns": ["../a.py", "d.py"], "root": "b"},
    "absolute": {"patterns": ["{root}/tree/b/*"]},
}
DATASETS: dict[str, dict[str, Any]] = {
    "parquet": {"path": "parquet", "data_files": ["shards/*.parquet"]},
    "deep": {"path": "parquet", "data_files": ["shards/**/*.parquet"]},
    "level": {"path": "parquet", "data_files": ["shards/*/*.parquet"], "shard_seed": 5},
    "order": {"path": "parquet", "data_files": ["shards/b/0.parquet", "shards/a/1.parquet", "shards/a/0.parquet"]},
    "one": {"path": "parquet", "data_files": ["shards/a/1.parquet"]},
    "hidden": {"path": "parquet", "data_files": ["shards/.h*", "shards/.h/*.parquet"]},
    "special": {"path": "parquet", "data_files": ["shards/__s__/*"]},
    "special glob": {"path": "parquet", "data_files": ["shards/__*/*"]},
    "class": {"path": "parquet", "data_files": ["shards/[!b]/[0-1].parquet", "shards/a-?.parquet"]},
    "absolute": {"path": "parquet", "data_files": ["{root}/shards/a*/*.parquet"]},
    "dot": {"path": "parquet", "data_files": ["./shards/a/*.parquet"]},
    "url": {"path": "parquet", "data_files": ["file://{root}/shards/a/*.parquet"]},
    "up": {"path": "parquet", "data_files": ["shards/b/../a/*.parquet"]},
    "lines": {"path": "json", "data_files": ["shards/*.jsonl*"]},
    "lines deep": {"path": "json", "data_files": ["shards/**/*json*"]},
    "named": {"path": "json", "data_files": ["shards/config.json", "shards/*.json"]},
    "csv": {"path": "csv", "data_files": ["shards/*.csv"]},
    "validation": {"path": "parquet", "data_files": ["shards/a/*.parquet"], "val_files": ["shards/b/*.parquet"]},
    "where": {
        "path": "parquet",
        "data_files": ["shards/a/*.parquet"],
        "where": {"x": [1]},
        "language_column": "l",
        "languages": ["b", "a"],
    },
    "columns": {
        "path": "parquet",
        "data_files": ["shards/a/*.parquet"],
        "columns": {"text": "t", "path": "p"},
        "extensions": {"C": [".c"]},
    },
}

FINGERPRINTS = {
    "files python": "85a4dcb2a19117fd94b024965a8f5a70",
    "files all": "7603a2c5798dd73a3383a95e7b50e9b0",
    "files all without exclude": "d61b6aa005a30ba04b5f154ff23db2a0",
    "files two": "251704daefa2ae6cc5eacdb096e3a25b",
    "files overlap": "85a4dcb2a19117fd94b024965a8f5a70",
    "files class": "f716356eb3c86706c21586ecfc1302c8",
    "files dot": "84f4e68238916120e8ebedf94431cb03",
    "files up": "eadd8d53dbd9c25a5929b76aecd7f499",
    "files hidden": "1de3e23b4a023f0b48d14a720ab6eb02",
    "files literal": "89865f39229dd9d35d8663235b3e191b",
    "files recursive": "1bd8d3009a86613fec41d42a47d17dd4",
    "files stars": "b4d109bd3d9a7fdc4908eed7b0714ba1",
    "files languages": "a434204af0e7ee2eb0ae6200c72236d4",
    "files seed": "e50101296380a9e7a9efeb77745cfad4",
    "files none": "d62a71241ab29aa31abc5f9d22d09a82",
    "files double": "84f4e68238916120e8ebedf94431cb03",
    "files above": "cba2d25aed5c871c45c3afcce8d5d4a6",
    "files outside": "acd9871aacf00a723ec3239b16616121",
    "files absolute": "b605093365e418df547e8824c1c0994c",
    "datasets parquet": "15fb7b8f4fc04758384be26e504e6513",
    "datasets deep": "5c6395304568c93e4ec592c3cf7671bd",
    "datasets level": "0295412a942fe576004160ddefb67ec2",
    "datasets order": "9ad07f8b338239c443067ab9745a68d3",
    "datasets one": "e247a324fd650513523b117935a08403",
    "datasets hidden": "6ae562b54269b7a76ca5fe830bce3d37",
    "datasets special": "36dceff3cd0f4a86b8895db057c91e09",
    "datasets special glob": "36dceff3cd0f4a86b8895db057c91e09",
    "datasets class": "626924af62fad3afaa6cb677a328498d",
    "datasets absolute": "2fb205d50157bedcbe1a8a3b17ddcc79",
    "datasets dot": "2fb205d50157bedcbe1a8a3b17ddcc79",
    "datasets url": "2fb205d50157bedcbe1a8a3b17ddcc79",
    "datasets up": "2fb205d50157bedcbe1a8a3b17ddcc79",
    "datasets lines": "2d1a8218ccf2ee0710c6b6e402243088",
    "datasets lines deep": "caeb5f142b08393bc73deeaafa761870",
    "datasets named": "a18254cc440d90f91741935dc52627c7",
    "datasets csv": "e0bb6ee637f287333fad74b13f7a1602",
    "datasets validation": "ba1eb87a2bada5bdb85863c646f3bd9e",
    "datasets where": "84f0330c2f9ec6c2f94d57245ee54bc5",
    "datasets columns": "3cac60e590e683a72114dd310a4ba196",
}


@pytest.mark.parametrize("name", sorted(FINGERPRINTS))
def test_the_fingerprint_of_fixed_files_stays(root: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.chdir(root)
    kind, _, case = name.partition(" ")
    options = {**(FILES if kind == "files" else DATASETS)[case]}
    for key in {"patterns", "data_files", "val_files"} & options.keys():
        options[key] = [pattern.replace("{root}", str(root)) for pattern in options[key]]
    source: Any
    if kind == "files":
        source = FilesSource(**{**options, "root": str(Path("tree", options.get("root", ".")))})
    else:
        source = DatasetSource(**options)
    assert make_plan(source, ByteTokenizer(), data_dir=root / "data").fingerprint == FINGERPRINTS[name]
