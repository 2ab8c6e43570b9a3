"""lightning-lance: one document whose lines are numbered, so that a window tells where it begins."""

from lightning_lance import Corpus, TokenStore, WindowLoader
from lightning_lance.sources.files import FilesSource
from lightning_lance.tokenization.configs import ByteTokenizer

NAME, PACKAGE = "lightning-lance", "lightning-lance"
# Batches are read ahead by a thread.
WORKERS = (0,)
FORKS, WRAPS = False, False
REMARKS = {}

CONTEXT_LENGTH = 16
# A line of eight bytes, eight tokens; any window has a whole one.
_LINE = "{:07x}\n"


def store(folder, count, per_file):
    # One context more than windows, for the phase; the last token is EOS.
    lines = "".join(map(_LINE.format, range((count + 1) * CONTEXT_LENGTH // 8)))
    (folder / "lines.txt").write_text(lines[:-1])
    source = FilesSource(["lines.txt"], root=str(folder))
    built = Corpus(source, ByteTokenizer(), str(folder / "store.lance"), val_fraction=0.0).prepare()
    if WindowLoader(built, CONTEXT_LENGTH, 1).num_windows != count:
        raise AssertionError("The store has another number of windows than was asked for.")


def _number(window):
    text = bytes(window.tolist())
    line = text.index(b"\n") + 1
    # The borders of the windows of an epoch move together, by less than a context.
    return (int(text[line : line + 7], 16) * 8 - line) // CONTEXT_LENGTH


def open_run(folder, batch_size, *, workers, seed, rank, world_size, states):
    opened = TokenStore.open(str(folder / "store.lance"))
    loader = WindowLoader(opened, CONTEXT_LENGTH, batch_size, seed=seed, rank=rank, world_size=world_size)
    if states:
        # Lightning stores the state of rank 0, for all.
        loader.load_state_dict(states[0])

    def epoch():
        for batch in loader:
            yield [_number(window) for window in batch["input_ids"]]

    return len(loader), epoch, loader.state_dict
