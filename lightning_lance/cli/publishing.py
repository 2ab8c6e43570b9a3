"""The commands that publish token stores: card and push."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_lance.cli.arguments import ending_in_a_sentence, expect, is_pair, is_set, read_arguments, wants_json
from lightning_lance.cli.tables import say_json
from lightning_lance.messages.escaping import say
from lightning_lance.messages.formatting import format_bytes, pluralize

# A command imports what it needs once its arguments are right: Lance and numpy take long.


def card_command(arguments: Sequence[str]) -> None:
    """Run `lightning-lance card`."""
    uri, pairs, options = read_arguments("card", arguments, ("out", "repo", "format"))
    as_json = wants_json("card", pairs)
    from lightning_lance.inspection.card import CARD, write_card

    with ending_in_a_sentence("run it again."):
        files = write_card(uri, pairs.get("out", CARD), options, pairs.get("repo"))
    if as_json:
        say_json({"uri": uri, "files": list(map(str, files))})
    else:
        for file in files:
            say(f"{file}: written.")


def push_command(arguments: Sequence[str]) -> None:
    """Run `lightning-lance push`."""
    # The repository is the second word that is no pair.
    places = []
    for number, word in enumerate(arguments):
        if not word.startswith("-") and not is_pair(word):
            places.append(number)
    repo = ""
    rest = [*arguments]
    if len(places) > 1:
        repo = rest.pop(places[1])
    uri, pairs, options = read_arguments("push", rest, ("private", "rules", "format"))
    if not repo:
        expect("push", "no owner/name")
    if options:
        expect("push", f"{next(iter(options))}=...")
    as_json = wants_json("push", pairs)
    private = is_set("push", pairs, "private")
    rules = is_set("push", pairs, "rules")
    from lightning_lance.inspection.publish import push_store

    with ending_in_a_sentence(
        "run it again: what is uploaded is not uploaded again, and the store appears there as a whole."
    ):
        done = push_store(uri, repo, private=private, rules=rules)
    if as_json:
        say_json({"uri": uri, **done._asdict()})
        return
    say(f"{uri}: {pluralize(done.files, 'file')}, {format_bytes(done.bytes)}, pushed to {done.repo}.")
    for name in done.kept:
        say(f"The {name} of the repository is left as it is, since no card has written it.")
    say(f"Train from it: lightning-lance train data.corpus={done.place}")
