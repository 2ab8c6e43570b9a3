"""Programming languages and the file names that tell them, for sources that store a path but no language."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from glob import has_magic

import pyarrow as pa
import pyarrow.compute as pc

from lightning_lance.errors import ConfigError
from lightning_lance.messages.formatting import nearest

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


# The language of a path that no extension of the map matches.
OTHER = "Other"

# The last dot with what follows, or the whole file name where it has no dot.
_TAIL = r"(?P<tail>\.[^./\\]+|[^./\\]+)$"


def check_languages(wanted: Sequence[str], known: Sequence[str], where: str) -> None:
    """Check that a source or a store has some languages.

    Args:
        wanted: Languages that the user asked for; empty means all of them.
        known: Languages that are there.
        where: Where they are, in words, for the message.

    Raises:
        ConfigError: If one of `wanted` is not `known`; names the nearest ones and all there are.
    """
    if isinstance(wanted, str):
        raise ConfigError(f"languages is the string {wanted!r}: write a list, [{wanted}].")
    for language in wanted:
        if language not in known:
            near = nearest(language, known) if isinstance(language, str) else None
            hint = f"did you mean {near!r}? " if near else ""
            raise ConfigError(
                f"{where} has no language {language!r}: {hint}there are {', '.join(sorted(known)) or 'none'}."
            )


def check_extensions(extensions: Mapping[str, Sequence[str]]) -> None:
    """Check that no two languages claim one extension.

    Raises:
        ConfigError: Naming both.
    """
    owner: dict[str, str] = {}
    for language, tails in extensions.items():
        for tail in tails:
            if owner.setdefault(tail, language) != language:
                raise ConfigError(
                    f"Both {owner[tail]!r} and {language!r} have the extension {tail!r}: give it to one of them."
                )


def language_of_path(paths: pa.ChunkedArray | pa.Array, extensions: Mapping[str, Sequence[str]]) -> pa.Array:
    """Return the language of each path by its extension (or whole file name), `Other` where the map has none.

    Args:
        paths: Strings, such as `src/main.rs`; null counts as `Other`.
        extensions: Language to its extensions, such as `{"Rust": [".rs"]}`.

    Returns:
        One string per path.
    """
    if isinstance(paths, pa.ChunkedArray):
        paths = paths.combine_chunks()
    tails = pc.struct_field(pc.extract_regex(paths.cast(pa.string()), _TAIL), "tail")
    pairs = [(tail, language) for language, tails_ in extensions.items() for tail in tails_]
    index = pc.index_in(tails, value_set=pa.array([tail for tail, _ in pairs], pa.string()))
    return pc.fill_null(pa.array([language for _, language in pairs], pa.string()).take(index), OTHER)


def path_tails(languages: Sequence[str], extensions: Mapping[str, Sequence[str]]) -> list[str]:
    """Return how the paths of some languages may end, for the row filter that is pushed down into the reader.

    A few paths of others end so too (`GNUMakefile` ends with `Makefile`); `language_of_path` is exact.
    """
    return sorted({tail for language in languages for tail in extensions[language]})


# What a part of a template is made of: the placeholder, wildcards, sets of characters, and characters that mean themselves.
_TOKEN = re.compile(r"\{language\}|\*+|\?|\[(?P<not>!?)(?P<set>\]?[^\]]*)\]|.", re.DOTALL)


def language_pattern(parts: Sequence[str]) -> re.Pattern[str]:
    """Make the regular expression of a template, from its parts between slashes; its group `language` is the placeholder."""
    made = []
    for place, part in enumerate(parts):
        last = place == len(parts) - 1
        if part == "**":
            made.append(".+" if last else "(?:.+/)?")
        else:
            made.append(_part_pattern(part, "(?P<language>" not in "".join(made)) + ("" if last else "/"))
    return re.compile("".join(made), re.DOTALL)


def _part_pattern(part: str, first: bool) -> str:
    made = ""
    for token in _TOKEN.finditer(part):
        text = token[0]
        if text == "{language}":
            made += "(?P<language>[^/]+)" if first else "(?P=language)"
            first = False
        elif text.startswith("*"):
            made += "[^/]*"
        elif text == "?":
            made += "[^/]"
        elif token["set"]:
            # As a set, or as it is written.
            inside = token["set"].replace("\\", r"\\").replace("[", r"\[").replace("]", r"\]").replace("^", r"\^")
            made += f"(?:[{'^' if token['not'] else ''}{inside}]|{re.escape(text)})"
        else:
            made += re.escape(text)
    return made


def folder_language(shard: str, templates: Sequence[str]) -> str:
    """Return the language of a shard from the place of `{language}` in the template that its URL matches.

    Args:
        shard: URL of a shard, such as `hf://datasets/a/b@1f/data/python/train-0.parquet`.
        templates: What found it, such as `hf://datasets/a/b/data/{language}/*.parquet`.

    Raises:
        ConfigError: If the URL matches none of them.
    """
    for template in templates:
        parts = template.split("/")
        begin = next(i for i, part in enumerate(parts) if "{language}" in part or has_magic(part))
        # Of what stands before the wildcards only the folder next to them is compared: a resolved path also has an absolute
        # folder, or a revision.
        folder = parts[begin - 1].split("@")[0] if begin else ""
        rest = language_pattern(parts[begin:]).pattern
        before = rf"{re.escape(folder)}(?:@[^/]+)?/" if folder else ""
        if match := re.search(rf"(?:^|/){before}{rest}$", shard, re.DOTALL):
            return match["language"]
    raise no_language(shard, templates)


def no_language(shard: str, templates: Sequence[str]) -> ConfigError:
    """Return the error about a shard whose language no template tells."""
    return ConfigError(
        f"Shard {shard!r} does not match {', '.join(templates)}: put {{language}} in place of one whole folder."
    )
