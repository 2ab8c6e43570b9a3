"""How fast a corpus becomes a token store, beside the bare tokenizer and the Lance tutorial's pipeline. See README.md."""

import argparse
import hashlib
import json
import logging
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from report import bar, environment, publish
from storing import commit_rows

OURS, BARE, TUTORIAL = "lightning-lance prepare", "gigatoken alone, texts in memory", "Lance tutorial's pipeline"
OURS_JSON, OURS_ONE, BARE_ONE = f"{OURS}, jsonl.zst", f"{OURS}, one core", f"{BARE}, one core"
BARE_FILES, BARE_JSON = (
    "gigatoken alone, from the wanted rows in Parquet",
    "gigatoken alone, from the wanted rows in jsonl.zst",
)
OURS_SLOW, BARE_SLOW = f"{OURS}, by tokenizers", "tokenizers alone, texts in memory"
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("content", "repo_name", "path", "license")] + [("size", pa.int64())]
)
COLUMNS = {"text": "content", "repo": "repo_name", "path": "path", "license": "license"}
# Rows per row group, as in github-code, and per batch of the bare tokenizer, as in ours.
ROWS = 1000
SHARDS = 4
# One file in so many is not Python, if there are enough of them.
OTHERS = 5
OTHER_ENDINGS = (".h", ".hpp", ".pyi", ".cpp", ".js", ".html", ".md", ".txt", ".json", ".c")
# What the tutorial's pipeline, which is slow, and the `tokenizers` library get of it.
SAMPLES = {"sample": 2_500_000, "few": 20_000_000}
# Rounds of contenders that take long, or that only explain.
FEW_ROUNDS = 2


def collect(num_bytes):
    """Take real files of the running Python, mixed: Python up to `num_bytes`, and others that a filter has to leave out."""
    roots = {Path(sysconfig.get_paths()[name]) for name in ("purelib", "platlib", "stdlib")}
    # Where NumPy is, all else is too, even if this environment borrows it from another.
    roots.add(Path(np.__file__).parents[1])
    found = {".py": {}, "other": {}}
    for root in sorted(roots):
        for folder, _, names in os.walk(root):
            for name in names:
                kind = ".py" if name.endswith(".py") else "other"
                if kind == ".py" or name.endswith(OTHER_ENDINGS):
                    file = Path(folder, name)
                    found[kind][str(file.relative_to(root))] = file
    rows, size, others = [], 0, iter(_mixed(found["other"]))
    for path, file in _mixed(found[".py"]):
        row = _row(path, file)
        if row is None:
            continue
        rows.append(row)
        size += row["size"]
        if len(rows) % OTHERS == 0 and (other := next(others, None)) and (row := _row(*other)):
            rows.append(row)
        if size > num_bytes:
            break
    return rows, size


def _mixed(files):
    return sorted(files.items(), key=lambda item: hashlib.sha1(item[0].encode()).digest())


def _row(path, file):
    try:
        # Long files are data, not code.
        if file.stat().st_size > 1_000_000:
            return None
        content = file.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return None
    if content.startswith("\ufeff"):
        return None  # ours takes a byte order mark off, others encode it
    names = [content, Path(path).parts[0], path, "mit", len(content.encode())]
    return dict(zip(SCHEMA.names, names, strict=True))


def write_corpus(rows, folder):
    """Write the corpus, also thrice under other names, as JSON Lines, without unwanted rows, and samples. Returns the globs."""
    for name in ("once", "thrice", "json", "wanted", "wanted_json", *SAMPLES):
        (folder / name).mkdir()
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    per_shard = -(-len(table) // SHARDS)
    for i in range(SHARDS):
        some = rows[i * per_shard : (i + 1) * per_shard]
        shard = _write_shard(some, folder / "once", folder / "json", i)
        for copy in "abc":
            (folder / "thrice" / f"train-{copy}-{i:05}.parquet").hardlink_to(shard)
        wanted = [row for row in some if row["path"].endswith(".py") and row["content"].strip()]
        _write_shard(wanted, folder / "wanted", folder / "wanted_json", i)
    sizes = np.cumsum(np.asarray(table.column("size")))
    for name, num_bytes in SAMPLES.items():
        sample = table.slice(0, int(np.searchsorted(sizes, num_bytes)))
        pq.write_table(sample, folder / name / "train.parquet", row_group_size=ROWS)
    parquet = {name: str(folder / name / "*.parquet") for name in ("once", "thrice", "wanted", *SAMPLES)}
    return {**parquet, **{name: str(folder / name / "*.jsonl.zst") for name in ("json", "wanted_json")}}


def _write_shard(rows, parquet, lines, i):
    file = parquet / f"train-{i:05}.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), file, row_group_size=ROWS)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with pa.output_stream(str(lines / f"train-{i:05}.jsonl.zst"), compression="zstd") as stream:
        stream.write(text.encode())
    return file


def texts_of(pattern):
    """Read the texts that a build should keep: those of Python files, without the empty and the blank ones. In batches."""
    texts = []
    for file in sorted(Path(pattern).parent.glob("*.parquet")):
        table = pq.read_table(file, columns=["content", "path"])
        kept = [path.endswith(".py") for path in table.column("path").to_pylist()]
        column = table.filter(pa.array(kept)).column("content").cast(pa.large_string())
        has_text = pa.compute.greater(pa.compute.binary_length(pa.compute.utf8_trim_whitespace(column)), 0)
        texts += [column.filter(has_text)]
    whole = pa.chunked_array([chunk for column in texts for chunk in column.chunks]).combine_chunks()
    return [pa.concat_arrays([whole.slice(low, ROWS)]) for low in range(0, len(whole), ROWS)]


class Loaded:
    """A tokenizer choice that was loaded before the clock started."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def load(self, source, folder):
        return self.tokenizer


def source_of(files):
    """Describe the corpus as a source."""
    from lightning_lance.documents.languages import code_extensions
    from lightning_lance.sources.datasets import DatasetSource

    return DatasetSource(
        "parquet" if files.endswith(".parquet") else "json",
        COLUMNS,
        data_files=[files],
        languages=["Python"],
        extensions=code_extensions(),
        shard_seed=None,
        name="bench",
    )


def ours(pattern, tokenizer_file, engine="auto"):
    """Get ready to prepare stores."""
    from lightning_lance import Corpus
    from lightning_lance.tokenization.configs import ByteTokenizer
    from lightning_lance.tokenization.tokenizer import Tokenizer

    spec = Path(tokenizer_file).read_text(encoding="utf-8")
    # Warm-up: what libraries import and set up at the first use.
    folder = Path(pattern).parents[1]
    with tempfile.TemporaryDirectory(dir=folder) as place:
        sample = source_of(str(folder / "sample" / "*.parquet"))
        Corpus(sample, ByteTokenizer(), f"{place}/warm.lance", max_documents=10, val_fraction=0.0).prepare()

    def once(uri):
        choice = Loaded(Tokenizer(spec, engine=engine))
        before, begin = peak_memory(), clocks()
        store = Corpus(source_of(pattern), choice, uri, val_fraction=0.0).prepare()
        seconds, cpu_seconds = clocks(begin)
        return {
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "tokens": store.num_tokens(),
            "bytes": store.commit.text_bytes,
            "documents": store.commit.documents,
            "peak_before": before,
            "engine": choice.tokenizer.engine,
        }

    return once


def bare(pattern, tokenizer_file):
    """Get ready to encode the same texts, from memory, in batches of the same size, and to do nothing else."""
    import awkward as ak
    import gigatoken

    spec, texts = plain_spec(tokenizer_file), texts_of(pattern)
    batches = [ak.from_arrow(batch) for batch in texts]

    def once(file):
        tokenizer = gigatoken.Tokenizer.from_json(spec)
        begin = clocks()
        encoded = [tokenizer.encode_batch(batch) for batch in batches]
        seconds, cpu_seconds = clocks(begin)
        lengths = np.concatenate([np.diff(part.layout.offsets.data) for part in encoded])
        ids = np.concatenate([np.asarray(ak.flatten(part)) for part in encoded])
        with Path(file).open("wb") as stream:
            np.savez(stream, lengths=lengths, ids=ids)
        return {
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "tokens": len(ids) + len(lengths),
            "bytes": sum(map(bytes_of, texts)),
            "documents": len(lengths),
            "digest": digest(lengths, ids),
        }

    return once


def bare_files(pattern, tokenizer_file):
    """Get ready to let gigatoken read files itself, whole: it knows no filter, so of files without other rows."""
    import awkward as ak
    import gigatoken

    spec, files = plain_spec(tokenizer_file), sorted(map(str, Path(pattern).parent.glob(Path(pattern).name)))
    is_parquet = pattern.endswith(".parquet")
    source = (
        gigatoken.ParquetFileSource(files, column="content")
        if is_parquet
        else gigatoken.JsonlFileSource(files, field="content")
    )
    size = sum(map(bytes_of, texts_of(str(Path(pattern).parents[1] / "wanted" / "*.parquet"))))

    def once(file):
        tokenizer = gigatoken.Tokenizer.from_json(spec)
        begin = clocks()
        encoded = tokenizer.encode_files(source)
        seconds, cpu_seconds = clocks(begin)
        lengths, ids = np.diff(encoded.layout.offsets.data), np.asarray(ak.flatten(encoded))
        return {
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "tokens": len(ids) + len(lengths),
            "bytes": size,
            "documents": len(lengths),
            "digest": digest(lengths, ids),
        }

    return once


def plain_spec(tokenizer_file):
    """Give the tokenizer as gigatoken loads it: as in ours, a text that spells a special token is text, nothing is added."""
    fields = json.loads(Path(tokenizer_file).read_text(encoding="utf-8"))
    plain = [token for token in fields["added_tokens"] if not token["special"]]
    fields.update(added_tokens=plain, post_processor=None, truncation=None, padding=None)
    return json.dumps(fields)


def digest(lengths, ids):
    import xxhash

    return xxhash.xxh3_64_hexdigest(lengths.astype(np.int64).tobytes() + ids.astype(np.uint32).tobytes())


def slow(pattern, tokenizer_file):
    """Get ready to prepare stores by the `tokenizers` library."""
    return ours(pattern, tokenizer_file, "tokenizers")


def bare_slow(pattern, tokenizer_file):
    """Get ready to encode the same texts by the `tokenizers` library, from memory."""
    import tokenizers

    batches = [batch.to_pylist() for batch in texts_of(pattern)]

    def once(file):
        tokenizer = tokenizers.Tokenizer.from_file(tokenizer_file)
        tokenizer.encode_special_tokens = True
        tokenizer.post_processor = None
        begin = clocks()
        count = 0
        for batch in batches:
            count += sum(len(row.ids) + 1 for row in tokenizer.encode_batch_fast(batch, add_special_tokens=False))
        seconds, cpu_seconds = clocks(begin)
        return {
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "tokens": count,
            "bytes": sum(len(text.encode()) for batch in batches for text in batch),
            "documents": sum(map(len, batches)),
        }

    return once


def stages(pattern, tokenizer_file):
    """Do each part of a build by itself, one after the other, and tell the processor time of each."""
    from lightning_lance.build.packing import Packer
    from lightning_lance.build.pipeline import encoded_batches
    from lightning_lance.documents.splits import splits_of
    from lightning_lance.format.metadata import CommitMetadata
    from lightning_lance.tokenization.tokenizer import Tokenizer, token_dtype

    spec = Path(tokenizer_file).read_text(encoding="utf-8")

    class Held:
        """A source whose documents are in memory already."""

        shards, num_bytes = ("all",), None

        def __init__(self, batches):
            self._batches = batches

        def read(self, shard, row):
            yield from self._batches

    def once(uri):
        tokenizer, times, source = Tokenizer(spec), {}, source_of(pattern)
        begin = clocks()
        opened = source.open()
        batches = [batch for shard in range(len(opened.shards)) for batch in opened.read(shard, 0)]
        times["read"], begin = clocks(begin)[1], clocks()
        made = [batch for _, batch in encoded_batches(Held(batches), tokenizer, 0, 0) if batch is not None]
        times["tokenize"], begin = clocks(begin)[1], clocks()
        packer, rows = Packer(tokenizer.eos_id, token_dtype(tokenizer.vocab_size), source.metadata), []
        for batch in made:
            ids = pa.repeat(pa.scalar("0:0"), len(batch.documents))
            documents = batch.documents.drop_columns(["row"]).append_column("id", ids)
            splits = splits_of(documents, 0.0)
            rows += packer.add(batch.encoded.ids, batch.encoded.offsets, splits, documents.drop_columns(["text"]))
        rows += packer.flush()
        times["pack"], begin = clocks(begin)[1], clocks()
        commit_rows(
            uri, rows, packer.schema, CommitMetadata("", {}, {}, "", "", tokenizer.eos_id, tokenizer.vocab_size)
        )
        times["write"] = clocks(begin)[1]
        return {"stages": times, "bytes": int(sum(batch.sizes[batch.wanted].sum() for batch in made))}

    return once


def tutorial(pattern, tokenizer_file):
    """Get ready to run the tutorial's pipeline."""
    import datasets
    import lance
    from peers import lance_tutorial
    from transformers import PreTrainedTokenizerFast

    datasets.disable_progress_bars()
    texts = texts_of(pattern)

    def once(uri):
        # As in ours, a text that spells a special token is text.
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=tokenizer_file, split_special_tokens=True)
        begin = clocks()
        lance_tutorial.prepare(
            pattern, uri, tokenizer, lambda row: row["path"].endswith(".py") and bool(row["content"].strip())
        )
        seconds, cpu_seconds = clocks(begin)
        return {
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "tokens": lance.dataset(uri).count_rows(),
            "bytes": sum(map(bytes_of, texts)),
            "documents": sum(map(len, texts)),
        }

    return once


STAGES = "stages"
CONTENDERS = {
    OURS: ours,
    OURS_JSON: ours,
    BARE: bare,
    BARE_FILES: bare_files,
    BARE_JSON: bare_files,
    OURS_ONE: ours,
    BARE_ONE: bare,
    OURS_SLOW: slow,
    BARE_SLOW: bare_slow,
    TUTORIAL: tutorial,
    STAGES: stages,
}
# What each gets of the corpus.
PARTS = dict.fromkeys(CONTENDERS, "once") | {
    OURS_JSON: "json",
    BARE_FILES: "wanted",
    BARE_JSON: "wanted_json",
    OURS_SLOW: "few",
    BARE_SLOW: "few",
    TUTORIAL: "sample",
}
ONE_CORE = (OURS_ONE, BARE_ONE)
ALL_ROUNDS = (OURS, OURS_JSON, BARE, BARE_FILES, BARE_JSON)


def bytes_of(texts):
    return pa.compute.sum(pa.compute.binary_length(texts)).as_py()


def clocks(since=(0.0, 0.0)):
    """Read the clock, and the processor time of this process on all cores, which a busy machine moves less."""
    return time.perf_counter() - since[0], time.process_time() - since[1]


def peak_memory():
    """Tell the peak of the resident set in bytes. Not by getrusage: a new process inherits its parent's peak there."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def contend(name, pattern, tokenizer_file):
    """Be one contender, in a process of its own: for each line that comes, a place, run once and tell what came out."""
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    if name in ONE_CORE and hasattr(os, "sched_setaffinity"):
        # Before anything is imported that starts as many threads as there are cores.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    # What libraries print is no answer.
    answers, sys.stdout = sys.stdout, sys.stderr
    once = CONTENDERS[name](pattern, tokenizer_file)
    for place in sys.stdin:
        print(json.dumps({**once(place.rstrip("\n")), "peak": peak_memory()}), file=answers, flush=True)


def start(name, pattern, tokenizer):
    """Start a contender. Not by multiprocessing: in its processes gigatoken uses one core only."""
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    if name in ONE_CORE:
        quiet |= {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "LANCE_CPU_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, __file__, "--contend", name, pattern, str(tokenizer)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **quiet},
        text=True,
    )


def once(process, place):
    """Let a contender run once, and wait for what it tells."""
    print(place, file=process.stdin, flush=True)
    told = process.stdout.readline()
    if not told:
        raise RuntimeError(f"The contender {process.args[3]!r} failed: see above.")
    return json.loads(told)


def check(uri, json_uri, ids_file, tutorial_uri, pattern):
    """Compare the results, token by token.

    Of the bare tokenizer, all but the documents with characters of newer versions of Unicode: ours leaves them to `tokenizers`.

    Raises:
        AssertionError: If they differ.
    """
    import lance

    from lightning_lance import TokenStore

    store = TokenStore.open(uri)
    with np.load(ids_file) as bare:
        # EOS after every document.
        lengths = bare["lengths"]
        expected = np.insert(bare["ids"], np.cumsum(lengths), store.commit.eos_id)
    stored = store.read(np.zeros(1, np.int64), store.num_tokens())[0]
    json_store = TokenStore.open(json_uri)
    if not np.array_equal(stored, json_store.read(np.zeros(1, np.int64), json_store.num_tokens())[0]):
        raise AssertionError("The store of the JSON Lines has other tokens than that of the Parquet files.")
    same = np.concatenate([_comparable(texts) for texts in texts_of(pattern)])
    ends = np.flatnonzero(stored == store.commit.eos_id)
    ours = stored[np.repeat(same, np.diff(ends, prepend=-1))]
    expected = expected[np.repeat(same, lengths + 1)]
    if not np.array_equal(ours, expected):
        raise AssertionError(
            f"Our store has {len(stored):,} tokens, the bare tokenizer gave {len(expected):,}, not the same."
        )
    theirs = np.asarray(lance.dataset(tutorial_uri).to_table().column("input_ids"))
    text = stored[stored != store.commit.eos_id][: len(theirs)]
    if not np.array_equal(theirs, text):
        raise AssertionError("The tutorial's pipeline stored other tokens than ours.")


def _comparable(texts):
    from lightning_lance.tokenization.unicode_tables import KNOWN

    apart = KNOWN.find(texts)
    return np.ones(len(texts), bool) if apart is None else ~apart


def train(rows, file):
    """Train a tokenizer on part of the corpus, for those who give none."""
    from lightning_lance.tokenization.tokenizer import train_bpe

    texts = [row["content"] for row in rows[:600] if row["path"].endswith(".py")]
    file.write_text(train_bpe(texts, 8192).to_json(), encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--tokenizer", type=Path, help="a tokenizer.json, such as GPT-NeoX's (default: trains a BPE of 8192)"
    )
    parser.add_argument("--megabytes", type=int, default=100, help="Python text in the corpus (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=6, help="rounds, of which the best counts (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to build (default: a temporary folder)")
    parser.add_argument("--contend", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contend:
        contend(*options.contend)
        return
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench_prepare-") as folder:
        os.environ["HF_HOME"] = folder
        run(Path(folder), options)


def run(folder, options):
    began = time.perf_counter()
    rows, _ = collect(options.megabytes * 1_000_000)
    corpus = write_corpus(rows, folder)
    tokenizer = options.tokenizer
    if tokenizer is None:
        tokenizer = folder / "trained.json"
        train(rows, tokenizer)
    num_rows = len(rows)
    del rows
    started = {name: start(name, corpus[part], tokenizer) for name, part in PARTS.items()}
    measured = {name: [] for name in started}
    for i in range(options.rounds):
        for name, process in started.items():
            if name in ALL_ROUNDS or i < FEW_ROUNDS:
                measured[name].append(once(process, folder / f"{name}-{i}"))
    for process in started.values():
        process.communicate()
    process = start(OURS, corpus["thrice"], tokenizer)
    thrice = once(process, folder / "thrice-0")
    process.communicate()
    uris = [str(folder / f"{name}-0") for name in (OURS, OURS_JSON, BARE, TUTORIAL)]
    check(*uris, corpus["once"])
    if len({told["digest"] for name in (BARE, BARE_FILES, BARE_JSON) for told in measured[name]}) > 1:
        raise AssertionError("gigatoken gave other ids for the files than for the texts in memory.")
    tell(measured, thrice, num_rows, options, time.perf_counter() - began)


def tell(measured, thrice, num_rows, options, seconds):
    def speed(result):
        return result["bytes"] / result["seconds"]

    parts = measured.pop(STAGES)
    best = {name: max(results, key=speed) for name, results in measured.items()}
    ours = best[OURS]

    def row(name, result, peak):
        ratio = speed(ours) / speed(result)
        per_second = [f"{speed(result) / 1e6:,.1f}", f"{result['tokens'] / result['seconds'] / 1e6:,.1f}"]
        cost = f"{result['cpu_seconds'] / result['bytes'] * 1e9:,.0f}"
        cores = f"{result['cpu_seconds'] / result['seconds']:.1f}"
        return [name, f"{result['bytes'] / 1e6:,.0f}", *per_second, f"{ratio:,.2f}", cost, cores, f"{peak / 1e9:.2f}"]

    # Of the first round: later ones begin with what the ones before have left.
    peaks = {name: results[0]["peak"] for name, results in measured.items()}
    rows = [row(name, result, peaks[name]) for name, result in best.items()]
    rows.insert(1, row(f"{OURS}, corpus thrice", thrice, thrice["peak"]))
    before = measured[OURS][0]["peak_before"]
    growth = thrice["peak"] / peaks[OURS]
    bars = [
        bar("ours / the Lance tutorial's pipeline, at least 60", speed(ours) / speed(best[TUTORIAL]), 60),
        bar("ours from Parquet / the bare tokenizer, at least 0.8", speed(ours) / speed(best[BARE]), 0.8),
        bar("ours from jsonl.zst / the bare tokenizer, at least 0.8", speed(best[OURS_JSON]) / speed(best[BARE]), 0.8),
        bar("ours / gigatoken alone, both from Parquet, at least 0.8", speed(ours) / speed(best[BARE_FILES]), 0.8),
        bar(
            "ours / gigatoken alone, both from jsonl.zst, at least 0.8",
            speed(best[OURS_JSON]) / speed(best[BARE_JSON]),
            0.8,
        ),
        bar("ours / the bare tokenizers library, at least 0.9", speed(best[OURS_SLOW]) / speed(best[BARE_SLOW]), 0.9),
        bar("1.5 GB / peak of ours, at least 1", 1.5e9 / thrice["peak"], 1),
        bar("peak of ours once / thrice the corpus, at least 0.8", 1 / growth, 0.8),
    ]
    name = options.tokenizer.resolve().parent.name if options.tokenizer else "BPE of 8,192 ids, trained on the corpus"
    gains = [speed(best[many]) / speed(best[one]) for many, one in ((OURS, OURS_ONE), (BARE, BARE_ONE))]
    cores = environment([])["cores"]
    costs = {stage: min(part["stages"][stage] / part["bytes"] * 1e9 for part in parts) for stage in parts[0]["stages"]}
    told = ", ".join(f"{stage} {cost:.1f}" for stage, cost in costs.items())
    notes = [
        f"Where the time goes, each part by itself, in core-s/GB: {told}. Tokenizing includes the looks for what is remarkable "
        "about documents, and for what has to go to the other engine.",
        f"From one core to {cores}: ours {gains[0]:.2f} times as fast, the bare tokenizer {gains[1]:.2f} times.",
        f"{ours['documents']:,} Python files of this machine's Python ({ours['bytes'] / 1e6:,.0f} MB) among {num_rows:,} rows, "
        f"as {SHARDS} Parquet files in github-code's columns; tokenizer: {name}, {ours['tokens'] / 1e6:,.1f} M tokens, encoded "
        f"by {ours['engine']}.",
        f"MB of text per second, best of {options.rounds} interleaved rounds (of {FEW_ROUNDS} for one core and samples). "
        "Imports and loading the tokenizer are not in the time; the tokenizer's caches are cold. core-s/GB: processor time "
        "of all cores per GB of text; cores: how many of them it had on average.",
        "The stored tokens are those of the bare tokenizer with EOS after each document, in the same order; the tutorial's are "
        "the same, without EOS.",
        "gigatoken alone, from files: its encode_files, over all files at once, without unwanted rows, as it has no filter; "
        "all texts and ids are in memory, and nothing is written.",
        f"Peak: the largest resident set of the process (VmHWM), {before / 1e9:.2f} GB of ours before the build.",
        f"The whole run took {seconds:.0f} s.",
    ]
    data = {
        "environment": environment(
            ["lightning-lance", "gigatoken", "tokenizers", "datasets", "pyarrow", "pylance", "awkward", "numpy"]
        ),
        "tokenizer": name,
        "rows": num_rows,
        "results": {**measured, f"{OURS}, corpus thrice": [thrice]},
        "stages": parts,
    }
    header = ["text to stored tokens", "MB", "MB/s", "M tokens/s", "ours is x times", "core-s/GB", "cores", "peak GB"]
    publish("bench_prepare", "Preparing a store", header, rows, bars, notes, json.loads(json.dumps(data)))


if __name__ == "__main__":
    main()
