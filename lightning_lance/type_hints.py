"""Checks of arguments against type annotations, with messages that name the argument.

`type_mismatch` reads the annotations of any constructor, for values of a configuration. `check_arguments` checks arguments
against the annotations of this package, which are exact.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import os
import types
from collections.abc import Callable, Iterable, KeysView, Mapping, Sequence, Set, ValuesView
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from lightning_lance.errors import LARGEST, ConfigError, described
from lightning_lance.messages.formatting import did_you_mean, nearest
from lightning_lance.messages.moved_names import moved_option
from lightning_lance.messages.redaction import is_secret_name

# By annotation, the accepted types, and their name. A bool is a number in Python. A number may be meant as text: the command
# line parses a commit hash of digits only as one.
_KINDS: dict[Any, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str, int, float), "text"),
    Sequence: ((list, tuple), "a list, such as [{value}]"),
    Mapping: ((Mapping,), "a mapping, such as {{NAME: {value}}}"),
    type(None): ((type(None),), "null"),
}
_Options = TypeVar("_Options")
_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")
_SAME = {list: Sequence, tuple: Sequence, Iterable: Sequence, dict: Mapping}


def type_mismatch(target: Callable[..., Any], name: str, value: Any) -> str | None:
    """Return what an argument takes, in words, if its annotation clearly excludes `value`.

    Args:
        target: A class or function.
        name: Name of its argument.
        value: A plain value of a configuration.

    Returns:
        Such as `a whole number or null`; None if the value may be right.
    """
    try:
        annotation = _hints(target)[name]
        default = inspect.signature(target).parameters[name].default
    # There is no such argument, or its annotation cannot be evaluated.
    except (KeyError, NameError, TypeError, AttributeError, SyntaxError, ValueError):
        return None
    if value is None and default is None:  # often not in the annotation
        return None
    parts = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    words: dict[Any, str] = {}
    for part in parts:
        kind = get_origin(part) or part
        kind = _SAME.get(kind, kind)
        if kind not in _KINDS:
            return None
        accepted, name_of_kind = _KINDS[kind]
        if isinstance(value, accepted):
            return None
        words[kind] = name_of_kind
    # 1e3 is parsed as a float.
    if int in words and isinstance(value, float) and value.is_integer():
        return None
    return " or ".join(words.values()).format(value=value)


def check_arguments(target: Callable[..., Any], given: Mapping[str, Any], prefix: str = "") -> None:
    """Check arguments against the annotations of a class or function of this package.

    Whole numbers may be written as floats (1e6), and be numpy's; lists may be tuples and sets. Arguments that are annotated
    with a protocol or Any are not checked.

    Args:
        target: The class or function.
        given: Arguments by name. Names that the target does not have are not checked.
        prefix: Prefix of their names in the message, such as `source.`.

    Raises:
        ConfigError: Naming the first argument of another type.
    """
    hints = _hints(target)
    for name, value in given.items():
        if name not in hints or _fits(value, hints[name]):
            continue
        shown = described(value)
        if is_secret_name(name) or name == "storage_options":
            shown = f"of type {type(value).__name__}"
        if isinstance(value, str) and _takes_list(hints[name]):
            raise ConfigError(f"{prefix}{name} is the string {shown}: write a list, [{value[:100]}].")
        expected = _in_words(hints[name])
        if is_number(value) and abs(value) > LARGEST:
            expected += f", up to {LARGEST:,}"
        raise ConfigError(f"{prefix}{name} is {shown}: expected {expected}{_hint(value)}.")


def options_of(kind: type[_Options], name: str, given: Any) -> _Options:
    """Return a group of options, which may be given as a mapping.

    Args:
        kind: The dataclass of the group.
        name: Name of the argument.
        given: An object of `kind`, a mapping of its fields, or None for the defaults.

    Raises:
        ConfigError: If it is anything else, has an unknown field, or a value cannot be used.
    """
    if isinstance(given, kind):
        return given
    fields = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type] # a dataclass, see above
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(f"{name} is {described(given)}: expected a mapping of {', '.join(fields)}.")
    for key in given or {}:
        if key not in fields:
            near = moved_option(str(key)) or nearest(str(key), fields)
            hint = did_you_mean(near)
            raise ConfigError(f"{name} has the key {key!r}: {hint}expected some of {', '.join(fields)}.")
    return kind(**(given or {}))


def refusing(
    moved: Callable[[str], str | None] | None = None,
) -> Callable[[Callable[_Given, _Result]], Callable[_Given, _Result]]:
    """Return a decorator for arguments that a function does not have: its error names the new place, or the argument meant.

    Python's own error only calls them unexpected.

    Args:
        moved: One of the functions of `moved_names`; None if nothing has moved.
    """

    def decorator(function: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
        parameters = dict(inspect.signature(function).parameters)
        parameters.pop("self", None)
        known = [*parameters]
        called = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def checked(*args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
            for name in kwargs:
                if name in known:
                    continue
                sentence = None if moved is None else moved(name)
                near = nearest(name, known)
                if sentence is None and near is not None:
                    sentence = f"{called} has no {name}: did you mean {near}?"
                if sentence is not None:
                    raise ConfigError(sentence)
            return function(*args, **kwargs)

        return checked

    return decorator


def _takes_list(kind: Any) -> bool:
    return any(map(_is_list, (kind, *get_args(kind))))


def _is_list(kind: Any) -> bool:
    return get_origin(kind) is Sequence


@cache
def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    return get_type_hints(target.__init__ if inspect.isclass(target) else target)


def _fits(value: Any, kind: Any) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in inner)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if kind in _SIMPLE:
        return _SIMPLE[kind](value)
    if origin is Sequence:
        listed = isinstance(value, (Sequence, Set, KeysView, ValuesView)) and not isinstance(value, (str, bytes))
        return listed and _all_fit(value, inner[0])
    if origin is Mapping:
        return isinstance(value, Mapping) and _all_fit(value.keys(), inner[0]) and _all_fit(value.values(), inner[1])
    if kind is None:
        return value is None
    return not _is_plain_class(kind) or isinstance(value, kind)


def _all_fit(values: Iterable[Any], kind: Any) -> bool:
    return all(_fits(value, kind) for value in values)


def _is_bool(value: Any) -> bool:
    import numpy as np  # in functions: the command line checks its keys without numpy

    return isinstance(value, (bool, np.bool_))


def _is_whole(value: Any) -> bool:
    return is_number(value) and bool(value % 1 == 0) and bool(abs(value) <= LARGEST)


def _is_float(value: Any) -> bool:
    return is_number(value) and bool(abs(value) <= LARGEST or value == math.inf)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def is_number(value: Any) -> bool:
    """Return whether a value is a number, of Python or numpy; a bool is not."""
    import numpy as np

    # numpy's float64 is a float. Its bool and its complex numbers are neither integers nor floats.
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


_SIMPLE: Mapping[Any, Callable[[Any], bool]] = {bool: _is_bool, int: _is_whole, float: _is_float, str: _is_text}


def _is_plain_class(kind: Any) -> bool:
    return inspect.isclass(kind) and not getattr(kind, "_is_protocol", False)


def _in_words(kind: Any) -> str:
    """Return what an annotation takes, in words."""
    origin = get_origin(kind)
    inner = get_args(kind)
    if origin in (Union, types.UnionType):
        parts = dict.fromkeys(map(_in_words, inner))
        return " or ".join(parts)
    if origin is Literal:
        return f"one of {', '.join(inner)}"
    if origin is Sequence:
        return f"a list, each item {_in_words(inner[0])}"
    if origin is Mapping:
        return f"a mapping of names, each value {_in_words(inner[1])}"
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        Path: "a path",
        type(None): "null",
        Any: "anything",
    }
    return words.get(kind) or f"an object of {getattr(kind, '__name__', kind)}"


def _hint(value: Any) -> str:
    if isinstance(value, type):
        return f"; make an object of it, as in {value.__name__}(...)"
    if isinstance(value, partial) or getattr(value, "__name__", None) == "<lambda>":
        return "; call it"
    if inspect.isroutine(value):
        # A class method is called with its class.
        name = value.__name__ if "<locals>" in value.__qualname__ else value.__qualname__
        return f"; call it, as in {name}(...)"
    return ""


def as_text(value: Any) -> Any:
    """Return a path as text, and a number too, since the command line parses names of digits as numbers; others as they are."""
    if isinstance(value, Path):
        return os.fspath(value)
    import numpy as np

    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return str(value)
    return value


# Cures for objects of other libraries, given in place of a tokenizer or a source.
_SAVED_TOKENIZER = {
    "tokenizers": "save it, as in tokenizer.save('tokenizer.json'), and use TokenizerFile('tokenizer.json')",
    "transformers": (
        "save it, as in tokenizer.save_pretrained('folder'), and use TokenizerFile('folder'), or use "
        "PretrainedTokenizer(name) for one of the Hub"
    ),
}
_SAVED_DOCUMENTS = (
    "save it, as in dataset.to_parquet('x.parquet'), and use DatasetSource.parquet(['x.parquet']), or use "
    "DatasetSource.hub(name) for one of the Hub"
)
_SOURCES = "expected an object such as DatasetSource.parquet([...]), DatasetSource.hub(name) or FilesSource([...])"
_TOKENIZERS = (
    "expected an object such as PretrainedTokenizer('gpt2'), TokenizerFile('tokenizer.json') or TrainedBPE(8192)"
)
_SOURCE_METHODS = ("open", "identity", "wanted", "has_validation")
_TOKENIZER_METHODS = ("load",)


def check_source(value: Any) -> None:
    """Check that a value can be a source.

    Raises:
        ConfigError: Naming its type, and what to write instead.
    """
    if _is_object_with(value, _SOURCE_METHODS):
        return
    if isinstance(value, (str, Path)):
        cure = "pass files as a list to DatasetSource.parquet, .jsonl or FilesSource, or a name to DatasetSource.hub"
    elif "datasets" in _libraries(value):
        cure = _SAVED_DOCUMENTS
    elif _is_object_with(value, ("streams", "commit")):
        cure = "a store needs no source; serve it by LanceDataModule(store.uri, ...)"
    elif _is_object_with(value, _TOKENIZER_METHODS):
        cure = "the source comes first, then the tokenizer"
    else:
        cure = _SOURCES + _hint_for(value, _SOURCE_METHODS)
    raise _of_wrong_kind("source", value, cure)


def check_tokenizer(value: Any) -> None:
    """Check that a value can be a choice of a tokenizer.

    Raises:
        ConfigError: Naming its type, and what to write instead.
    """
    if _is_object_with(value, _TOKENIZER_METHODS):
        return
    check_no_loaded_tokenizer("tokenizer", value)
    if isinstance(value, (str, Path)):
        shown = _shown(value)
        cure = f"use PretrainedTokenizer({shown}) for a model, or TokenizerFile({shown}) for a tokenizer.json"
        # As on the command line.
        by_name = {"bytes": "ByteTokenizer()", "bpe": "TrainedBPE(8192)"}.get(str(value).lower())
        if by_name is not None:
            cure = f"use {by_name}"
    elif _is_object_with(value, _SOURCE_METHODS):
        cure = "the source comes first, then the tokenizer"
    else:
        cure = _TOKENIZERS + _hint_for(value, _TOKENIZER_METHODS)
    raise _of_wrong_kind("tokenizer", value, cure)


def not_a_corpus(name: str, value: Any) -> ConfigError:
    """Return the error for a value that is given in place of a corpus or the place of a store."""
    if _is_object_with(value, _SOURCE_METHODS):
        cure = "make a corpus of it, as in Corpus(source, tokenizer)"
    elif _is_object_with(value, ("streams", "commit")):
        cure = "serve a store by its place, store.uri"
    elif "lance" in _libraries(value) and not inspect.isclass(value):
        cure = "serve a store by its place, dataset.uri"
    elif "datasets" in _libraries(value):
        cure = f"{_SAVED_DOCUMENTS}, in a Corpus(source, tokenizer)"
    elif isinstance(value, (list, tuple, set)):
        cure = "give several by name, as in {'code': corpus, 'prose': 'prose.lance'}"
    else:
        cure = f"expected a Corpus, the place of a store, or a mapping of names to these{_hint_for(value, None)}"
    return _of_wrong_kind(name, value, cure)


def check_no_loaded_tokenizer(name: str, value: Any) -> None:
    """Check that a value is not an object or class of a tokenizer library, which has no stable fingerprint.

    Raises:
        ConfigError: Naming how to save it.
    """
    found = _libraries(value) & _SAVED_TOKENIZER.keys()
    if not found:
        return
    if inspect.isclass(value):
        raise _of_wrong_kind(name, value, "use PretrainedTokenizer(name), or TokenizerFile(path) for a tokenizer.json")
    # `transformers` wraps objects of `tokenizers`, so its cure is the one for both.
    cure = _SAVED_TOKENIZER["transformers" if "transformers" in found else "tokenizers"]
    raise _of_wrong_kind(name, value, cure)


def not_a_store(name: str, value: Any) -> ConfigError:
    """Return the error for a value that is given in place of an open token store."""
    if isinstance(value, (str, Path)):
        cure = f"open it first, as in TokenStore.open({_shown(value)})"
    elif "lance" in _libraries(value) and not inspect.isclass(value):
        cure = "open it as a token store, as in TokenStore.open(dataset.uri)"
    elif isinstance(value, type) and value.__name__ == "TokenStore":
        cure = "open a store, as in TokenStore.open(uri)"
    elif _is_object_with(value, _SOURCE_METHODS):
        cure = "build a store of it first, as in Corpus(source, tokenizer).prepare()"
    elif _is_object_with(value, ("prepare", "fingerprint")):
        cure = "open its store first, as in corpus.prepare()"
    else:
        cure = f"expected a TokenStore, as TokenStore.open(uri) and corpus.prepare() return it{_hint_for(value, ())}"
    return _of_wrong_kind(name, value, cure)


def not_opened(value: Any) -> ConfigError:
    """Return the error for a token store that is made by its constructor."""
    shown = _shown(value) if isinstance(value, (str, Path)) else "uri"
    return ConfigError(f"TokenStore(...) opens nothing: use TokenStore.open({shown}).")


def not_a_place(name: str, value: Any) -> ConfigError:
    """Return the error for a value that is given in place of the path or URL of a token store."""
    if _is_object_with(value, ("streams", "commit")):
        cure = "it is open already"
    elif "lance" in _libraries(value) and not inspect.isclass(value):
        cure = "give its place, dataset.uri"
    else:
        cure = f"expected a place, such as data/mine.lance{_hint_for(value, None)}"
    return _of_wrong_kind(name, value, cure)


def _is_object_with(value: Any, methods: Sequence[str]) -> bool:
    is_object = not isinstance(value, (type, types.ModuleType)) and not inspect.isroutine(value)
    return is_object and _has_all(value, methods)


def _has_all(value: Any, methods: Sequence[str]) -> bool:
    return all(hasattr(value, method) for method in methods)


def _libraries(value: Any) -> set[str]:
    """Return the top packages of the classes of an object, or of a class."""
    kind = value if inspect.isclass(value) else type(value)
    libraries: set[str] = set()
    for base in kind.__mro__:
        if isinstance(base.__module__, str):
            libraries.add(base.__module__.partition(".")[0])
    return libraries


def _hint_for(value: Any, methods: Sequence[str] | None) -> str:
    """Return how to make an object of a class or function; nothing for a class whose objects are not accepted."""
    if isinstance(value, type) and (not methods or not _has_all(value, methods)):
        return ""
    return _hint(value)


def _of_wrong_kind(name: str, value: Any, cure: str) -> ConfigError:
    # Some libraries' objects are dicts, which would be shown whole.
    library = _libraries(value) - {"builtins", "abc", "typing", "collections"}
    plain = inspect.isclass(value) or inspect.isroutine(value) or not library
    shown = f"of type {type(value).__module__.partition('.')[0]}.{type(value).__name__}"
    if plain or isinstance(value, Path):
        shown = described(value)
    return ConfigError(f"{name} is {shown}: {cure}.")


def _shown(value: str | Path) -> str:
    """Return a path or name as a Python literal, without its secrets."""
    return described(os.fspath(value))
