"""How fast JSON Lines become stored tokens, beside others that store the same: those that `make peers` installs."""

import argparse
import importlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash
from bench_prepare import collect, peak_memory, train
from report import bar, environment, publish

from lightning_lance.tokenization.unicode_tables import KNOWN
from tests.support.paths import ROOT

PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
OURS, PEERS = "ours", ("megatron", "trove", "lit_data")
EOS = "<|endoftext|>"
FILES = 4
# Who takes so many times as long as ours gets one round.
SLOW = 10


def write_corpus(rows, folder, tokenizer):
    """Write Python files as JSON Lines. Returns the files, and the bytes of the texts."""
    fields = json.loads(tokenizer.read_text(encoding="utf-8"))
    # Not all of them defuse such a text.
    special = [token["content"] for token in fields["added_tokens"] if token["special"]]
    texts = [row["content"] for row in rows if row["path"].endswith(".py") and row["content"]]
    texts = [text for text in texts if not any(spelling in text for spelling in special)]
    # Nor do they see characters of newer versions of Unicode alike: ours leaves such texts to `tokenizers`.
    newer = KNOWN.find(pa.array(texts, pa.large_string()))
    texts = [
        text
        for text, apart in zip(texts, newer if newer is not None else [False] * len(texts), strict=True)
        if not apart
    ]
    files = [folder / f"train-{i}.jsonl" for i in range(FILES)]
    for i, file in enumerate(files):
        with file.open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts[i::FILES])
    return [str(file) for file in files], sum(len(text.encode()) for text in texts)


def contend(module, files, folder, tokenizer):
    """Build once, in a process of its own, and tell how long it took, imports not counted."""
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr
    peer = importlib.import_module(f"peers.builds.{module}")
    folder.mkdir()
    # What libraries import and set up at the first use.
    with tempfile.TemporaryDirectory() as warm:
        few = Path(warm, "corpus", "few.jsonl")
        few.parent.mkdir()
        few.write_text(json.dumps({"text": "few words"}) + "\n", encoding="utf-8")
        peer.build([str(few)], Path(warm), tokenizer, EOS)
    begin = time.perf_counter()
    peer.build(files, folder, tokenizer, EOS)
    told = {"name": peer.NAME, "seconds": time.perf_counter() - begin, "peak": peak_memory()}
    eos = next(
        token["id"]
        for token in json.loads(Path(tokenizer).read_text(encoding="utf-8"))["added_tokens"]
        if token["content"] == EOS
    )
    stored = np.asarray(peer.tokens(folder)).astype(np.uint32)
    documents = np.split(stored, np.flatnonzero(stored == eos) + 1)
    hashes = sorted(xxhash.xxh3_64_intdigest(document.tobytes()) for document in documents)
    told |= {"tokens": len(stored), "digest": xxhash.xxh3_64_hexdigest(np.asarray(hashes, np.uint64).tobytes())}
    print(json.dumps(told), file=answers, flush=True)


def once(module, files, folder, tokenizer):
    """Let one build; None if it cannot take part."""
    python = sys.executable if module == OURS else str(PEERS_PYTHON)
    command = [python, __file__, "--contend", module, str(folder), str(tokenizer), *files]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return None, (done.stderr.strip().splitlines() or ["no message"])[-1]
    return json.loads(done.stdout), None


def is_slow(measured, module):
    """Whether one round is enough to see who is faster."""
    return min(told["seconds"] for told in measured[module]) > SLOW * min(told["seconds"] for told in measured[OURS])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json with <|endoftext|> (default: trains one)")
    parser.add_argument("--megabytes", type=int, default=100, help="text in the corpus (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the best counts (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to build (default: a temporary folder)")
    parser.add_argument("--contend", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contend:
        module, folder, tokenizer, *files = options.contend
        contend(module, files, Path(folder), tokenizer)
        return
    if not PEERS_PYTHON.is_file():
        parser.error(f"There is no {PEERS_PYTHON}: run 'make peers' first.")
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench_prepare_peers-") as folder:
        os.environ.update(HF_HOME=folder, HF_HUB_OFFLINE="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1", TMPDIR=folder)
        run(Path(folder), options)


def run(folder, options):
    began = time.perf_counter()
    rows, _ = collect(options.megabytes * 1_000_000)
    tokenizer = options.tokenizer
    if tokenizer is None:
        tokenizer = folder / "trained.json"
        train(rows, tokenizer)
    (folder / "corpus").mkdir()
    files, size = write_corpus(rows, folder / "corpus", tokenizer)
    measured, missing = {}, {}
    for i in range(options.rounds):
        for module in (OURS, *PEERS):
            if module in missing or (i and is_slow(measured, module)):
                continue
            told, why = once(module, files, folder / f"{module}-{i}", tokenizer)
            if told is None:
                missing[module] = why
            else:
                measured.setdefault(module, []).append(told)
    expected = measured[OURS][0]
    for module, results in measured.items():
        if any((told["tokens"], told["digest"]) != (expected["tokens"], expected["digest"]) for told in results):
            raise AssertionError(f"{module} stored other documents than ours.")
    best = {module: min(told["seconds"] for told in results) for module, results in measured.items()}
    table = [
        [
            measured[module][0]["name"],
            f"{size / seconds / 1e6:,.1f}",
            f"{expected['tokens'] / seconds / 1e6:,.1f}",
            f"{seconds / best[OURS]:,.2f}",
            f"{max(told['peak'] for told in measured[module]) / 1e9:.2f}",
        ]
        for module, seconds in sorted(best.items(), key=lambda item: item[1])
    ]
    table += [[f"{module}: skipped, {why}", None, None, None, None] for module, why in missing.items()]
    bars = [
        bar(f"ours / {measured[module][0]['name']}, at least 1", best[module] / best[OURS], 1)
        for module in PEERS
        if module in best
    ]
    named = options.tokenizer.resolve().parent.name if options.tokenizer else "BPE of 8,192 ids, trained on the corpus"
    notes = [
        f"{size / 1e6:,.0f} MB of Python text in {FILES} files of JSON Lines, {expected['tokens'] / 1e6:,.1f} M tokens, "
        f"tokenizer: {named}. All stored the same documents, each with EOS after it.",
        f"The best of {options.rounds} rounds (one, of who takes {SLOW} times as long), a fresh process each; a build of a few "
        "words came before. What "
        "the workers that a peer starts have to import is counted. Peak: of that process, without its workers.",
        "Megatron's holds all texts and all tokens of a file in memory, and has no cursor, budget, split or provenance.",
        f"The whole run took {time.perf_counter() - began:.0f} s.",
    ]
    data = {
        "environment": environment(["lightning-lance", "gigatoken", "tokenizers", "datasets", "pyarrow", "pylance"]),
        "results": measured,
        "skipped": missing,
    }
    header = ["JSON Lines to stored tokens", "MB/s", "M tokens/s", "ours is x times", "peak GB"]
    publish("bench_prepare_peers", "Preparing, beside others", header, table, bars, notes, data)


if __name__ == "__main__":
    main()
