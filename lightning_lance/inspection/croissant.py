"""The facts of a store as Croissant, the JSON-LD of data sets for machine learning (version 1.1 of MLCommons)."""

from __future__ import annotations

from datetime import timezone
from typing import Any

from lightning_lance.documents.splits import SPLITS
from lightning_lance.inspection.facts import LicenseCount, StoreFacts
from lightning_lance.inspection.licenses import NOT_GIVEN, spdx_url

_VERSION = "http://mlcommons.org/croissant/1.1"
# The context of the specification, word for word.
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_TOKEN_TYPES = {"uint16": "cr:UInt16", "uint32": "cr:UInt32"}
# No media type is registered for Lance.
_LANCE = "https://lance.org/format/"
#: In the description, so that a card overwrites only what a card has written.
MARK = "Written by lightning-lance card."


def croissant_of(facts: StoreFacts, title: str, store: str, page: str | None = None) -> dict[str, Any]:
    """Return the facts of a store as JSON-LD.

    Args:
        facts: The facts.
        title: The name of the data set.
        store: The folder of the store, relative to the file that this is written into.
        page: The page of the data set, if it has one.
    """
    summary = facts.info.summary
    described: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": _VERSION,
        "name": title,
        "description": (
            f"A token store of lightning-lance: {summary.documents:,} documents, {summary.tokens:,} tokens. {MARK}"
        ),
        "identifier": facts.info.fingerprint,
        # Croissant takes semantic versions; the versions of a store only count.
        "version": f"{facts.version}.0.0",
        "size": f"{facts.bytes} B",
        "keywords": ["lightning-lance", "lance", "tokens", "language modeling"],
    }
    if facts.languages:
        described["inLanguage"] = facts.languages
    if facts.licenses is not None:
        licenses = dict.fromkeys(map(_license_link, facts.licenses))
        licenses.pop(NOT_GIVEN, None)
        if licenses:
            described["license"] = list(licenses)
    if summary.built is not None:
        described["dateModified"] = summary.built.astimezone(timezone.utc).strftime("%Y-%m-%d")
    if page is not None:
        described["url"] = page
    described["distribution"] = [_files(store)]
    described["recordSet"] = [_splits(), _streams(facts), *_licenses(facts), _blocks(facts)]
    return described


def _license_link(one: LicenseCount) -> str:
    """Return the page of a license; the name of one that SPDX does not know."""
    return spdx_url(one.name) or one.name


def _files(store: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": "data-files",
        "name": "data-files",
        "description": "The data files of the token store.",
        "encodingFormat": _LANCE,
        "includes": f"{store}/data/*.lance",
    }


def _field(name: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"@type": "cr:Field", "@id": name, "name": name.rpartition("/")[2], "dataType": kind, **more}


def _splits() -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": "splits",
        "name": "splits",
        "description": "The splits: each document is in one.",
        "dataType": "cr:Split",
        "key": {"@id": "splits/name"},
        "field": [_field("splits/name", "sc:Text")],
        "data": [{"splits/name": split} for split in SPLITS],
    }


def _streams(facts: StoreFacts) -> dict[str, Any]:
    data = []
    for split in SPLITS:
        for one in facts.info.languages:
            row: dict[str, Any] = {"streams/split": split, "streams/language": one.language}
            row |= {"streams/documents": one.split_documents[split], "streams/tokens": one.split_tokens[split]}
            data.append(row)
    return {
        "@type": "cr:RecordSet",
        "@id": "streams",
        "name": "streams",
        "description": "The documents and tokens of each split and language.",
        "field": [
            _field("streams/split", "sc:Text", references={"field": {"@id": "splits/name"}}),
            _field("streams/language", "sc:Text"),
            _field("streams/documents", "sc:Integer"),
            _field("streams/tokens", "sc:Integer"),
        ],
        # An empty list is none in Croissant.
        **({"data": data} if data else {}),
    }


def _licenses(facts: StoreFacts) -> list[dict[str, Any]]:
    if not facts.licenses:
        return []
    data = []
    for one in facts.licenses:
        for split, count in sorted(one.splits.items()):
            row: dict[str, Any] = {"licenses/license": one.name, "licenses/split": split}
            data.append(row | {"licenses/documents": count.documents, "licenses/tokens": count.tokens})
    return [
        {
            "@type": "cr:RecordSet",
            "@id": "licenses",
            "name": "licenses",
            "description": "The documents and tokens of each license, as the source gives it, and split.",
            "field": [
                _field("licenses/license", "sc:Text"),
                _field("licenses/split", "sc:Text", references={"field": {"@id": "splits/name"}}),
                _field("licenses/documents", "sc:Integer"),
                _field("licenses/tokens", "sc:Integer"),
            ],
            "data": data,
        }
    ]


def _blocks(facts: StoreFacts) -> dict[str, Any]:
    def column(name: str) -> dict[str, Any]:
        return {"fileSet": {"@id": "data-files"}, "extract": {"column": name}}

    return {
        "@type": "cr:RecordSet",
        "@id": "blocks",
        "name": "blocks",
        "description": (
            "The rows: each is a block of tokens of one split and language. The first num_tokens of a block count, and the "
            "blocks of a split and language follow each other in the order of the rows."
        ),
        "field": [
            _field(
                "blocks/tokens",
                _TOKEN_TYPES[facts.dtype],
                isArray=True,
                arrayShape=str(facts.block),
                source=column("tokens"),
            ),
            _field("blocks/num_tokens", "cr:Int32", source=column("num_tokens")),
            _field("blocks/split", "sc:Text", source=column("split"), references={"field": {"@id": "splits/name"}}),
            _field("blocks/language", "sc:Text", source=column("language")),
        ],
    }
