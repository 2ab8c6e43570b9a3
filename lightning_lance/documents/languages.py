"""Programming languages by file name, for sources that store a path but no language."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from glob import has_magic
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lightning_lance.documents.arrow import as_single_chunk
from lightning_lance.errors import ConfigError
from lightning_lance.messages.formatting import suggestion

# The languages of codeparrot/github-code, as its dataset card lists them. An entry is an extension, or a whole file name.
CODE_EXTENSIONS: dict[str, list[str]] = {
    "Assembly": [".asm"],
    "Batchfile": [".bat", ".cmd"],
    "C": [".c", ".h"],
    "C#": [".cs"],
    "C++": [".cpp", ".hpp", ".c++", ".h++", ".cc", ".hh", ".C", ".H"],
    "CMake": [".cmake"],
    "CSS": [".css"],
    "Dockerfile": [".dockerfile", "Dockerfile"],
    "FORTRAN": [".f90", ".f", ".f03", ".f08", ".f77", ".f95", ".for", ".fpp"],
    "GO": [".go"],
    "Haskell": [".hs"],
    "HTML": [".html"],
    "Java": [".java"],
    "JavaScript": [".js"],
    "Julia": [".jl"],
    "Lua": [".lua"],
    "Makefile": ["Makefile"],
    "Markdown": [".md", ".markdown"],
    "PHP": [".php", ".php3", ".php4", ".php5", ".phps", ".phpt"],
    "Perl": [".pl", ".pm", ".pod", ".perl"],
    "PowerShell": [".ps1", ".psd1", ".psm1"],
    "Python": [".py"],
    "Ruby": [".rb"],
    "Rust": [".rs"],
    "SQL": [".sql"],
    "Scala": [".scala"],
    "Shell": [".sh", ".bash", ".command", ".zsh"],
    "TeX": [".tex"],
    "TypeScript": [".ts", ".tsx"],
    "Visual Basic": [".vb"],
}


def code_extensions(**changes: Sequence[str]) -> dict[str, Sequence[str]]:
    """Return the extensions of the languages of github-code, with changes: `code_extensions(Zig=[".zig"])`."""
    return {**CODE_EXTENSIONS, **changes}


# The language of a path that matches no extension.
OTHER = "Other"

# The extension, or the whole file name if it has none.
_TAIL = r"(?P<tail>\.[^./\\]+|[^./\\]+)$"


def check_languages(wanted: Sequence[str], known: Sequence[str], where: str) -> None:
    """Check that a source or a store has the wanted languages.

    Args:
        wanted: Languages in the settings; empty means all.
        known: Languages of the source or store.
        where: Subject of the message, such as `Source 'x'`.

    Raises:
        ConfigError: If one of `wanted` is not in `known`; names the nearest one, and all.
    """
    for language in wanted:
        if language not in known:
            raise ConfigError(
                f"{where} has no language {language!r}{suggestion(language, known)}: it has "
                f"{', '.join(sorted(known)) or 'none'}."
            )


def language_list(given: Any) -> Any:
    """Return the option `languages`, with a list of one in place of a single name. Other values are returned as they are.

    Raises:
        ConfigError: If several names are in one string.
    """
    if not isinstance(given, str):
        return given
    if "," in given:
        raise ConfigError(f"languages is the string {given!r}: write a list, [{given}].")
    return [given]


def checked_aliases(given: Mapping[Any, Any]) -> dict[str, list[str]]:
    """Return the languages of a mapping, each with all names that the source has for it, its own among them.

    Args:
        given: Language to its names in the source, such as `{"Python": ["PY", "python"]}`.

    Raises:
        ConfigError: If a name is not text, or belongs to two languages.
    """
    owners: dict[str, str] = {}
    aliases: dict[str, list[str]] = {}
    for language, names in given.items():
        if names is None:
            names = []
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, Iterable) or isinstance(names, (bytes, Mapping)):
            raise ConfigError(f"languages.{language} is {names!r}: expected a list of names, such as [PY, python].")
        for name in (language, *names):
            if not isinstance(name, str) or not name:
                raise ConfigError(f"languages has the name {name!r}: expected text, such as {{Python: [PY, python]}}.")
            if owners.setdefault(name, language) != language:
                raise ConfigError(
                    f"languages has the name {name!r} for {owners[name]!r} and for {language!r}: remove it from one of them."
                )
        aliases[language] = sorted({language, *names})
    return dict(sorted(aliases.items()))


def renamed(languages: pa.Array, aliases: Mapping[str, Sequence[str]]) -> pa.Array:
    """Return languages by the names of the user; those without one stay as they are.

    Args:
        languages: (n,) strings.
        aliases: As `checked_aliases` returns them.
    """
    if not aliases:
        return languages
    return pc.coalesce(_languages_with(languages, aliases), languages)


def _languages_with(words: pa.Array, names: Mapping[str, Sequence[str]]) -> pa.Array:
    """Return the language that has each word among its names, null where none has."""
    owners: dict[str, str] = {}
    for language, its_names in names.items():
        owners.update(dict.fromkeys(its_names, language))
    place = pc.index_in(words, value_set=pa.array([*owners], pa.string()))
    return pa.array([*owners.values()], pa.string()).take(place)


def check_extensions(extensions: Mapping[str, Sequence[str]]) -> None:
    """Raise ConfigError if two languages have the same extension."""
    owner: dict[str, str] = {}
    for language, tails in extensions.items():
        for tail in tails:
            if owner.setdefault(tail, language) != language:
                raise ConfigError(
                    f"Both {owner[tail]!r} and {language!r} have the extension {tail!r}: remove it from one of them."
                )


def language_of_path(paths: pa.ChunkedArray | pa.Array, extensions: Mapping[str, Sequence[str]]) -> pa.Array:
    """Return the language of each path by its extension or whole file name, `Other` if no language has it.

    Args:
        paths: (n,) strings, such as `src/main.rs`; null counts as `Other`.
        extensions: Language to its extensions, such as `{"Rust": [".rs"]}`.

    Returns:
        (n,) strings.
    """
    tails = pc.struct_field(pc.extract_regex(as_single_chunk(paths).cast(pa.string()), _TAIL), "tail")
    return pc.fill_null(_languages_with(tails, extensions), OTHER)


def path_tails(languages: Sequence[str], extensions: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the endings of paths of some languages, for the row filter of the reader.

    A few paths of other languages pass it too (`GNUMakefile` ends with `Makefile`); `language_of_path` is exact.
    """
    tails: set[str] = set()
    for language in languages:
        tails.update(extensions[language])
    return sorted(tails)


# Tokens in a part of a template: the placeholder, wildcards, sets of characters, and literal characters.
_TOKEN = re.compile(r"\{language\}|\*+|\?|\[(?P<not>!?)(?P<set>\]?[^\]]*)\]|.", re.DOTALL)


def language_pattern(parts: Sequence[str]) -> re.Pattern[str]:
    """Return the regular expression of a template, given its parts between slashes; the group `language` is the placeholder."""
    made = ""
    for part in parts[:-1]:
        if part == "**":
            made += "(?:.+/)?"
        else:
            made += _part_pattern(part, made) + "/"
    if parts[-1] == "**":
        made += ".+"
    else:
        made += _part_pattern(parts[-1], made)
    return re.compile(made, re.DOTALL)


def _part_pattern(part: str, before: str) -> str:
    made = ""
    for token in _TOKEN.finditer(part):
        text = token[0]
        if text == "{language}":
            is_first = "(?P<language>" not in before + made
            made += "(?P<language>[^/]+)" if is_first else "(?P=language)"
        elif text.startswith("*"):
            made += "[^/]*"
        elif text == "?":
            made += "[^/]"
        elif token["set"]:
            # Matches as a set, or literally.
            inside = re.sub(r"[\\\[\]^]", r"\\\g<0>", token["set"])
            negation = "^" if token["not"] else ""
            made += f"(?:[{negation}{inside}]|{re.escape(text)})"
        else:
            made += re.escape(text)
    return made


def folder_language(shard: str, templates: Sequence[str]) -> str:
    """Return the language of a shard, from the place of `{language}` in the template that its URL matches.

    Args:
        shard: URL of a shard, such as `hf://datasets/a/b@1f/data/python/train-0.parquet`.
        templates: Patterns of the source, such as `hf://datasets/a/b/data/{language}/*.parquet`.

    Raises:
        ConfigError: If the URL matches no template.
    """
    for template in templates:
        parts = template.split("/")
        begin = 0
        while not _is_pattern(parts[begin]):
            begin += 1
        # Before the wildcards, only the last folder is compared: a resolved URL has a revision, or an absolute path.
        folder = parts[begin - 1].split("@")[0] if begin else ""
        before = rf"{re.escape(folder)}(?:@[^/]+)?/" if folder else ""
        match = re.search(rf"(?:^|/){before}{language_pattern(parts[begin:]).pattern}$", shard, re.DOTALL)
        if match:
            return match["language"]
    raise no_language(shard, templates)


def _is_pattern(part: str) -> bool:
    """Return whether a part of a template has the placeholder or a wildcard."""
    return "{language}" in part or has_magic(part)


def no_language(shard: str, templates: Sequence[str]) -> ConfigError:
    """Return the error for a shard that matches no template."""
    return ConfigError(
        f"Shard {shard!r} does not match {', '.join(templates)}: put {{language}} in place of one whole folder."
    )
