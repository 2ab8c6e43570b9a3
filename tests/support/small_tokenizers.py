"""Small tokenizers with the files, pipelines and configurations that repositories on the Hub have; nothing is trained."""

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

EOS = "<|endoftext|>"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
MERGES = ["t h", "th e", "i n", "\u0120 the", "\u0120 \u0120"]


def byte_characters() -> list[str]:
    """Return the characters as which byte-level tokenizers write the bytes 0 to 255."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    written = {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}
    return [written[byte] for byte in range(256)]


def token(number: int, content: str, **flags: bool) -> dict[str, Any]:
    """Return an entry of added_tokens; special unless told otherwise."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": content, **plain, **flags}


def tokenizer_json(special: list[str], **fields: Any) -> dict[str, Any]:
    """Return a byte-level BPE with some merges; fields of the model are given as `model`."""
    pieces = [*byte_characters(), *(merge.replace(" ", "") for merge in MERGES)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    plain = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    made: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [token(len(pieces) + place, content) for place, content in enumerate(special)],
        "normalizer": None,
        "pre_tokenizer": plain,
        "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False},
        "decoder": {**plain, "add_prefix_space": True},
        **fields,
    }
    made["model"] = {
        "dropout": None,
        "unk_token": None,
        **fields.get("model", {}),
        "vocab": vocabulary,
        "merges": MERGES,
    }
    return made


def _split(regex: str, trim_offsets: bool) -> dict[str, Any]:
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": trim_offsets, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, level]}


_OLD = {"continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": False}
_NEW = {"type": "BPE", **_OLD, "byte_fallback": False, "ignore_merges": False}
_NONE = dict.fromkeys(("continuing_subword_prefix", "end_of_word_suffix"))


def repositories() -> dict[str, dict[str, Any]]:
    """Return family to file name to content."""
    gpt2 = tokenizer_json([EOS], model=_OLD)
    gpt2["added_tokens"][0]["normalized"] = True
    neox = tokenizer_json([EOS, "<|padding|>"], normalizer={"type": "NFC"}, model={"type": "BPE", **_OLD, **_NONE})
    neox["decoder"]["add_prefix_space"] = False
    llama3 = tokenizer_json(
        ["<|end_of_text|>"], pre_tokenizer=_split(LLAMA3, True), model={**_NEW, **_NONE, "ignore_merges": True}
    )
    llama3["decoder"]["use_regex"] = True
    decoder = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    qwen3 = tokenizer_json(
        [EOS], normalizer={"type": "NFC"}, pre_tokenizer=_split(QWEN, False), decoder=decoder, model=_NEW
    )
    named = {"eos_token": EOS, "add_prefix_space": False}
    return {
        "gpt2": {
            "tokenizer.json": gpt2,
            "tokenizer_config.json": {"model_max_length": 1024},
            "config.json": {"model_type": "gpt2"},
        },
        "neox": {"tokenizer.json": neox, "tokenizer_config.json": {**named, "tokenizer_class": "GPTNeoXTokenizer"}},
        "llama3": {
            "tokenizer.json": llama3,
            "tokenizer_config.json": {"eos_token": "<|end_of_text|>", "tokenizer_class": "PreTrainedTokenizerFast"},
        },
        "qwen3": {"tokenizer.json": qwen3, "tokenizer_config.json": {**named, "tokenizer_class": "Qwen2Tokenizer"}},
    }


def write_repository(folder: Path, files: dict[str, Any]) -> Path:
    """Write the files of a repository into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return folder


SPECIAL = ["<|endoftext|>", "<|im_start|>"]


TRAINING = [
    "def main(argument: int) -> None:\n    return 'x' * 17  # naïve café\n\n\nclass A(B):\n\tself.value = {'k': 1_000}\n",
    "Ein Überblick über die Größe. Это русский текст, 東京は日本の首都です。 العربية हिन्दी ภาษาไทย 한국어 🙂👩‍💻\r\n",
    "I'll say it's WE'VE don't 12345 3.14 <div class=\"a\">&amp;</div> https://example.org/?q=1 <|im_start| |>\n",
] * 4


def byte_level(
    split: str | None, normalizer: normalizers.Normalizer | None = None, spaces: int = 0, ignore_merges: bool = False
) -> str:
    """A byte-level BPE: with the regular expression of GPT-2, or one of its own, and tokens for runs of spaces."""
    model = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    if split is None:
        model.pre_tokenizer = level
    else:
        model.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), level])
    if normalizer is not None:
        model.normalizer = normalizer
    model.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(TRAINING, trainer)
    model.add_tokens([AddedToken(" " * n, normalized=True) for n in range(2, spaces)])
    return model.to_str()


def sentence_piece() -> str:
    """A BPE over characters, with bytes for those that it does not know and no words, as in Llama 2."""
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False)
    model.train_from_iterator(TRAINING, trainer)
    fields = json.loads(model.to_str())
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces = [*first, *(piece for piece in fields["model"]["vocab"] if piece not in first)]
    fields["model"] |= {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"}
    fields["model"]["vocab"] = {piece: i for i, piece in enumerate(pieces)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    fields["added_tokens"] = [{"id": i, "content": content, **flags} for i, content in enumerate(first[1:3], 1)]
    fields["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "\u2581"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        ],
    }
    fields["pre_tokenizer"] = None
    return json.dumps(fields)


def unigram() -> str:
    model = tokenizers.Tokenizer(models.Unigram())
    model.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=["[UNK]"], unk_token="[UNK]", show_progress=False)
    model.train_from_iterator(TRAINING, trainer)
    model.add_special_tokens(["[EOS]"])
    return model.to_str()
