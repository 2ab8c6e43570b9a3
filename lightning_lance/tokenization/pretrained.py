"""The files of a pre-trained tokenizer: its tokenizer.json, and how `transformers` would read it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from lightning_lance.errors import ConfigError
from lightning_lance.messages.escaping import logger
from lightning_lance.process.files import write_atomic
from lightning_lance.tokenization.tokenizer import Tokenizer
from lightning_lance.tokenization.tokenizer_json import (
    UNUSED,
    Fields,
    added_tokens,
    by_spelling,
    differences_in_texts,
    digest_of,
    numbered,
    spellings_of,
    split_merges,
)

_log = logger(__name__)

TOKENIZER = "tokenizer.json"
# Files beside it that name the EOS token.
CONFIG = "tokenizer_config.json"
SPECIAL_MAP = "special_tokens_map.json"
# Names the type of the model, if nothing else does.
MODEL_CONFIG = "config.json"
BESIDE = (CONFIG, SPECIAL_MAP, MODEL_CONFIG)
#: Name of a file beside tokenizer.json to its parsed content.
Beside = Mapping[str, Fields]

# At most so many added tokens are compared.
_FEW = 300

# Classes of transformers that read tokenizer.json unchanged.
_GENERIC = {"AutoTokenizer", "PreTrainedTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend", "PythonBackend"}


def read_beside(folder: Path) -> dict[str, Fields]:
    """Read the configurations beside a tokenizer.json. Missing ones are left out. ConfigError if one is not a JSON object."""
    beside: dict[str, Fields] = {}
    for name in BESIDE:
        file = folder / name
        if file.is_file():
            beside[name] = read_object(file)
    return beside


def read_object(file: Path) -> Fields:
    """Read a JSON object. ConfigError if the file holds anything else."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{str(file)!r} cannot be read as JSON ({error}): repair it, or remove it.") from error
    if not isinstance(found, dict):
        raise ConfigError(
            f"{str(file)!r} holds a {type(found).__name__}: expected a JSON object; repair it, or remove it."
        )
    return found


def named_eos(beside: Beside) -> str | None:
    """Return the EOS token in tokenizer_config.json, or else in special_tokens_map.json.

    generation_config.json is not read: a chat model often ends an answer with another token than a document.

    Raises:
        ConfigError: If it is not text.
    """
    for name in (CONFIG, SPECIAL_MAP):
        eos = beside.get(name, {}).get("eos_token")
        token = eos.get("content") if isinstance(eos, dict) else eos
        if token is not None and not isinstance(token, str):
            raise ConfigError(
                f"The eos_token of {name} is {eos!r}: expected text; repair it, or set tokenizer.eos_token."
            )
        if token:
            return token
    return None


def with_eos(spec: str, eos: str | None, beside: Beside) -> str:
    """Return a tokenizer.json with its EOS token, which some repositories add in tokenizer_config.json only."""
    added = by_spelling(_added_by_config(beside))
    # Most files contain it already, and need no parsing.
    if eos not in added or json.dumps(eos) in spec or json.dumps(eos, ensure_ascii=False) in spec:
        return spec
    try:
        fields = json.loads(spec)
        fields["added_tokens"] = [*added_tokens(fields), {**added[eos], "special": True}]
    except (ValueError, RecursionError, AttributeError, TypeError):
        return spec  # not a tokenizer.json; loading it raises an error
    return json.dumps(fields, ensure_ascii=False)


def _added_by_config(beside: Beside) -> list[Fields]:
    """Return the tokens that tokenizer_config.json adds, with their ids and all their options."""
    found = beside.get(CONFIG, {}).get("added_tokens_decoder")
    if not isinstance(found, dict):
        return []
    tokens: dict[int, Fields] = {}
    for number, token in found.items():
        if isinstance(token, dict) and isinstance(token.get("content"), str) and str(number).isdecimal():
            tokens[int(number)] = {
                "single_word": token.get("single_word", False),
                "lstrip": token.get("lstrip", False),
                "rstrip": token.get("rstrip", False),
                "normalized": token.get("normalized", False),
                "special": token.get("special", False),
                "content": token["content"],
                "id": int(number),
            }
    return list(tokens.values())


def fetched(model: str, revision: str, local_only: bool = False) -> dict[str, str] | None:
    """Download tokenizer.json and the files beside it from one commit on the Hub.

    Without a network, the files in the cache of `huggingface_hub` are used.

    Args:
        model: Name of the repository.
        revision: Branch, tag or commit.
        local_only: Whether to use the cache only.

    Returns:
        Name to text; empty if the repository has no tokenizer.json; None if that is unknown.

    Raises:
        OSError: If the model or revision does not exist or cannot be accessed.
        ValueError: If the name is invalid.
    """
    from huggingface_hub import _CACHED_NO_EXIST as NOT_THERE
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        file = Path(hf_hub_download(model, TOKENIZER, revision=revision, local_files_only=local_only))
    except LocalEntryNotFoundError:
        if try_to_load_from_cache(model, TOKENIZER, revision=revision) is NOT_THERE:
            return {}
        return None
    except EntryNotFoundError:
        return {}
    files = {TOKENIZER: file.read_text(encoding="utf-8")}
    for name in BESIDE:
        with suppress(EntryNotFoundError):
            beside = hf_hub_download(model, name, revision=file.parent.name, local_files_only=local_only)
            files[name] = Path(beside).read_text(encoding="utf-8")
    return files


def in_cache(model: str, revision: str) -> Path | None:
    """Return the path of a repository's tokenizer.json in the cache of `huggingface_hub`, None if it is not cached."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(model, TOKENIZER, revision=revision)
    except (OSError, ValueError):
        return None
    if isinstance(found, str):
        return Path(found)
    return None


def is_cached(model: str) -> bool:
    """Return whether the cache of `huggingface_hub`, which `transformers` reads too, has any file of a repository."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=model, repo_type="model"), "snapshots").is_dir()


class Reading(NamedTuple):
    """How `transformers` reads a repository that has a tokenizer.json.

    Attributes:
        digest: Digest of its tokenizer; None if it differs from tokenizer.json, or is unknown.
        differs: The parts that differ from tokenizer.json.
        by: The class of transformers, or the file, that makes the difference.
    """

    digest: str | None
    differs: list[str]
    by: str


def compared(loaded: Tokenizer, beside: Beside, folder: Path) -> Reading:
    """Compare a loaded tokenizer.json with the tokenizer that `transformers` would load.

    The result is stored in the folder, and returned from there the next time.
    """
    known = remembered(loaded.digest, beside, folder)
    if known is not None:
        return known
    kept = _answer_file(loaded.digest, beside, folder)
    found = as_transformers_reads(json.loads(loaded.to_json()), beside, loaded.eos_id)
    # If the result cannot be stored, it is computed again.
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(kept, json.dumps(found._asdict()))
    return found


def remembered(digest: str, beside: Beside, folder: Path) -> Reading | None:
    """Return the stored result of `compared` for the digest of a tokenizer, None if there is none."""
    with suppress(ConfigError, TypeError):
        return Reading(**read_object(_answer_file(digest, beside, folder)))
    return None


def _answer_file(digest: str, beside: Beside, folder: Path) -> Path:
    asked = json.dumps([digest, beside, version("transformers"), version("tokenizers")], sort_keys=True)
    return folder / "as-transformers-reads" / f"{xxhash.xxh3_64_hexdigest(asked.encode())}.json"


def as_transformers_reads(fields: Fields, beside: Beside, eos_id: int) -> Reading:
    """Compare a tokenizer.json with the tokenizer that `transformers` would load.

    Its model classes build the normalizer and the pre-tokenizer themselves, and ignore those in the file. So a class loads the
    file without most of its vocabulary, which is fast and needs no torch. A tokenizer that cannot be compared counts as equal.
    """
    name = _class_name(fields, beside)
    stub = _stub(fields, beside)
    try:
        made = _rewritten(stub) if name is None else _made_by(name, stub, beside)
    except Exception as error:  # three libraries raise many kinds
        _log.info("transformers cannot load this tokenizer as %s: %s", name, error)
        return Reading(None, [], str(name))
    made |= {"model": {**made["model"], **_contents(fields["model"])}, **UNUSED}
    made["added_tokens"] = _all_added(fields, beside, made["added_tokens"])
    given = {**stub, "model": {**fields["model"], **_contents(fields["model"])}}
    given["added_tokens"] = _all_added(fields, {}, stub["added_tokens"])
    differs = differences_in_texts(given, made)
    return Reading(None if differs else digest_of(made, eos_id), differs, name or CONFIG)


def _all_added(fields: Fields, beside: Beside, some: Sequence[Fields]) -> list[Fields]:
    """Return all added tokens of a whole tokenizer with their ids, and with the options of `some`, those of a stub."""
    added = by_spelling(added_tokens(fields))
    for token in _added_by_config(beside):
        added.setdefault(token["content"], token)
    numbers = [token["id"] for token in added.values()]
    following = max([*numbers, *_numbers(fields["model"])], default=-1) + 1
    for token in some:
        number = following
        if token["content"] in added:
            number = added[token["content"]]["id"]
        else:
            following += 1
        added[token["content"]] = {**token, "id": number}
    return sorted(added.values(), key=lambda token: int(token["id"]))


def _numbers(model: Mapping[str, Any]) -> Iterable[int]:
    vocabulary = model.get("vocab") or {}
    if isinstance(vocabulary, dict):
        return vocabulary.values()
    return range(len(vocabulary))


def _contents(model: Mapping[str, Any]) -> Fields:
    """Return vocabulary and merges as `tokenizers` writes them."""
    if model["type"] != "BPE":
        return {"vocab": model["vocab"]}
    return {"vocab": model["vocab"], "merges": split_merges(model)}


def _stub(fields: Fields, beside: Beside) -> Fields:
    """Return a tokenizer with few added tokens, and a BPE with single characters only, which loads at once."""
    named = json.dumps([beside.get(CONFIG, {}), beside.get(SPECIAL_MAP, {})], ensure_ascii=False)
    added = []
    for token in sorted(added_tokens(fields), key=lambda token: int(token["id"])):
        if token["special"] or json.dumps(token["content"], ensure_ascii=False) in named:
            added.append(token)
    added = added[:_FEW]
    model = fields["model"]
    if model["type"] != "BPE":
        return {**fields, "added_tokens": added}
    kept = {*spellings_of(added), model.get("unk_token")}
    pieces: list[str] = []
    for piece in model["vocab"]:
        if len(piece) == 1 or piece in kept or piece.startswith("<0x"):
            pieces.append(piece)
    pieces.sort(key=lambda piece: int(model["vocab"][piece]))
    # Ids stay in order and become dense, since tokenizers warns about holes.
    vocabulary = numbered(pieces)
    numbers = dict(vocabulary)
    renumbered: list[Fields] = []
    for token in added:
        number = numbers.setdefault(token["content"], len(numbers))
        renumbered.append({**token, "id": number})
    return {**fields, "added_tokens": renumbered, "model": {**model, "vocab": vocabulary, "merges": []}}


def _rewritten(fields: Fields) -> Fields:
    """Return a tokenizer in the form that `tokenizers` writes."""
    import tokenizers

    return dict(json.loads(tokenizers.Tokenizer.from_str(json.dumps(fields)).to_str()))


def _class_name(fields: Fields, beside: Beside) -> str | None:
    """Return the class of transformers that reads a repository, None if it reads tokenizer.json unchanged."""
    name = beside.get(CONFIG, {}).get("tokenizer_class") or beside.get(MODEL_CONFIG, {}).get("tokenizer_class")
    if name is None:
        return _class_of_model(beside.get(MODEL_CONFIG, {}).get("model_type"))
    plain = str(name).removesuffix("Fast")
    # Many repositories name this class for a byte-level tokenizer, like that of Llama 3; transformers looks for that too.
    if plain == "LlamaTokenizer" and '"ByteLevel"' in json.dumps(fields.get("pre_tokenizer")):
        return None
    if {str(name), plain} & _GENERIC:
        return None
    return plain


def _class_of_model(model_type: Any) -> str | None:
    """Return the tokenizer class of a model type, which transformers has in a module of that name."""
    if not isinstance(model_type, str) or not model_type.isidentifier():
        return None
    name = f"transformers.models.{model_type}.tokenization_{model_type}"
    try:
        if find_spec(name) is None:
            return None
        return _own_tokenizer(name)
    except Exception:  # an unknown model type, or a missing dependency
        return None


def _own_tokenizer(module: str) -> str | None:
    """Return the first tokenizer class that a module defines itself, None if it has none."""
    for value in vars(import_module(module)).values():
        is_own = isinstance(value, type) and value.__module__ == module
        if is_own and value.__name__.endswith("Tokenizer"):
            return str(value.__name__)
    return None


def _made_by(name: str, fields: Fields, beside: Beside) -> Fields:
    """Return the tokenizer.json that a class of transformers makes from a stub and the files beside it."""
    import transformers

    if not hasattr(transformers, name):
        # A class in the repository itself: AutoTokenizer reads tokenizer.json unchanged.
        return _rewritten(fields)
    with tempfile.TemporaryDirectory(prefix="lightning-lance-") as folder:
        # The configuration has options of the class. Its ids are those of the whole vocabulary, so they are removed.
        config = dict(beside.get(CONFIG, {}))
        config.pop("added_tokens_decoder", None)
        for file, content in {**beside, TOKENIZER: fields, CONFIG: config}.items():
            Path(folder, file).write_text(json.dumps(content), encoding="utf-8")
        loaded = getattr(transformers, name).from_pretrained(folder, local_files_only=True)
        return dict(json.loads(loaded.backend_tokenizer.to_str()))
