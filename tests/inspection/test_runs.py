"""Looking at a run: any step as the model got it or will get it, what documents it has, and the steps of a document."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_lance import TokenStore, WindowLoader
from lightning_lance.errors import ConfigError, StoreError
from lightning_lance.inspection import find_steps, open_run, search, shares, show_step
from lightning_lance.inspection.runs import BEGINS, last_step
from lightning_lance.inspection.spikes import DocumentLoss, StepLosses, write_step
from lightning_lance.serving.fim import FillInTheMiddle
from lightning_lance.tokenization import ByteTokenizer
from tests.support.commands import Run
from tests.support.corpora import prepare
from tests.support.stores import ListSource, documents
from tests.support.training import SMALL, Recorder, make_data, make_trainer

SOURCE = ListSource(
    documents(*(f"def f{i}():\n    return {i}\n" * 3 for i in range(20)), language="Python", repo="one/a")
    + documents(*(f"fn f{i}() {{}}\n" * 5 for i in range(20)), language="Rust", repo="two/b")
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 20 steps of 8 windows, with its checkpoint after the 14th."""
    folder = tmp_path_factory.mktemp("run")
    data = make_data(folder, source=SOURCE, uri=str(folder / "x.lance"), mask_boundary_targets=True, val_fraction=0.0)
    trainer = make_trainer(folder, max_steps=14, limit_val_batches=0)
    trainer.fit(Recorder(), datamodule=data)
    (folder / "checkpoints").mkdir()
    trainer.save_checkpoint(folder / "checkpoints/last.ckpt")
    whole = Recorder()
    again = make_data(folder, source=SOURCE, uri=str(folder / "x.lance"), mask_boundary_targets=True, val_fraction=0.0)
    make_trainer(folder, max_steps=20, limit_val_batches=0).fit(whole, datamodule=again)
    torch.save(whole.seen["train"], folder / "seen.pt")
    return folder


def seen(folder: Path) -> list[list[list[int]]]:
    batches: list[list[list[int]]] = torch.load(folder / "seen.pt")
    return batches


def test_any_step_of_a_run_is_the_one_that_the_model_gets(folder: Path):
    loader = open_run(str(folder))
    [store] = loader.stores.values()
    assert loader.step == 14
    for step in (0, 5, 14, 19):
        windows = show_step(loader, step)
        for window, ids in zip(windows, seen(folder)[step], strict=True):
            text = "".join(document.text for document in window.documents)
            expected = store.decode(ids).replace(store.commit.eos_token, "<eos>")
            assert text[: len(expected)] == expected
            # Each document by its own text.
            for document in window.documents:
                assert ("def" in document.text or "return" in document.text) <= (document.about["repo"] == "one/a")
    assert last_step(str(folder)) == 14


def test_what_is_not_trained_on_is_marked(folder: Path):
    loader = open_run(str(folder))
    batch = loader.windows(3).batch
    for window, targets in zip(show_step(loader, 3), batch["targets"].tolist(), strict=True):
        trained = []
        for document in window.documents:
            for piece in document.pieces:
                trained += [piece.trained] * (1 if piece.kind == "eos" else len(piece.text))
        assert trained == [False, *(target >= 0 for target in targets)]
        # The first token of a document is not, and its end is.
        for document in window.documents[1:]:
            assert not document.pieces[0].trained
            assert len(document.pieces[0].text) == 1


def test_rearranged_documents_are_shown_with_their_sentinels(folder: Path):
    store = TokenStore.open(folder / "x.lance")
    loader = WindowLoader(store, 32, 4, fim=FillInTheMiddle(1, 2, 3, seed=0, fim_rate=1.0))
    kinds = {
        piece.text for window in show_step(loader, 0) for document in window.documents for piece in document.pieces
    }
    assert {"<prefix>", "<middle>", "<suffix>", "<eos>"} <= kinds
    for window in show_step(loader, 0):
        assert window.documents[-1].end == 33
        assert [document.end for document in window.documents[:-1]] == [
            document.begin for document in window.documents[1:]
        ]


def test_documents_and_text_of_several_steps(folder: Path):
    loader = open_run(str(folder))
    rows = shares(loader, range(2, 6), range(1), "repo")
    assert sum(row.tokens for row in rows) == 4 * 8 * 33
    assert {row.value for row in rows} == {"one/a", "two/b"}
    assert [row.tokens for row in rows] == sorted((row.tokens for row in rows), reverse=True)
    found = [*search(loader, r"fn f\d+", range(2, 4), range(1))]
    assert found
    for one in found:
        assert one.about["language"] == "Rust"
        assert re.fullmatch(r"fn f\d+", one.match)
    with pytest.raises(ConfigError, match=r"search is '\(': expected a regular expression"):
        next(search(loader, "(", range(1), range(1)))
    with pytest.raises(ConfigError, match="by is 'stars': expected one of id, language, repo"):
        shares(loader, range(1), range(1), "stars")


def test_the_steps_of_a_document(folder: Path):
    loader = open_run(str(folder))
    everything = find_steps(loader, {"language": "Rust"}, 20)
    assert len(everything.documents) == 20
    document = everything.documents[7]
    one = find_steps(loader, {"id": document["id"]}, 20)
    assert one.documents == [document]
    for sighting in one.sightings:
        assert sighting.step is not None
        assert sighting.state == ("served" if sighting.step < 14 else "ahead")
        window = show_step(loader, sighting.step, sighting.rank)[sighting.window]
        [shown] = [part for part in window.documents if part.about["id"] == document["id"]]
        assert (shown.begin, shown.end) == (sighting.begin, sighting.end)
    steps = [
        step
        for step in range(20)
        for window in show_step(loader, step)
        for part in window.documents
        if part.about["id"] == document["id"]
    ]
    assert [sighting.step for sighting in one.sightings] == steps


def test_places_that_are_no_run_are_told(folder: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="There is no run at "):
        open_run(str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="There is no checkpoint in the folder "):
        open_run(str(tmp_path))
    with pytest.raises(ConfigError, match="There is no 'seed' to look at a run with"):
        open_run(str(folder), seed=5)
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    del checkpoint["lightning_lance"]
    torch.save(checkpoint, tmp_path / "older.ckpt")
    with pytest.raises(ConfigError, match="does not say how its batches were made: give batch_size"):
        open_run(str(tmp_path / "older.ckpt"))
    assert (
        open_run(str(tmp_path / "older.ckpt"), batch_size=8).windows(3).tokens.tolist()
        == open_run(str(folder)).windows(3).tokens.tolist()
    )
    assert last_step(str(tmp_path / "older.ckpt")) is None
    # A store, before there is a run.
    loader = open_run(str(folder / "x.lance"), context_length=32, batch_size=8)
    assert loader.windows(0).tokens[:, :-1].tolist() == seen(folder)[0]


@pytest.mark.parametrize("noted", [5, None, {"max_steps": "ab", "accumulate_grad_batches": 2}], ids=str)
def test_a_checkpoint_with_odd_notes_of_its_run_is_told(folder: Path, tmp_path: Path, noted: Any):
    checkpoint = torch.load(folder / "checkpoints/last.ckpt") | {"lightning_lance": noted}
    torch.save(checkpoint, tmp_path / "odd.ckpt")
    with pytest.raises(ConfigError, match="does not say how its batches were made: give batch_size"):
        open_run(str(tmp_path / "odd.ckpt"))
    assert last_step(str(tmp_path / "odd.ckpt")) is None


def test_steps_beyond_all_numbers_are_told(folder: Path):
    with pytest.raises(ConfigError, match="expected a number of a batch, at most"):
        show_step(open_run(str(folder)), 10**20)
    with pytest.raises(ConfigError, match="expected a number of a batch, at most"):
        find_steps(open_run(str(folder)), {"id": "0:3"}, 10**20)


def test_the_commands(folder: Path, run: Run):
    code, out, _ = run("show", folder, "step=5", "window=2")
    assert code == 0
    assert out.startswith(f"step 5 of {folder}, rank 0 of 1 (served): 8 windows of 32 + 1 tokens\n\nwindow 2, token ")
    assert " · one/a · Python" in out or " · two/b · Rust" in out
    code, out, _ = run("show", folder, "format=json")
    shown = json.loads(out)
    assert (code, shown["step"], len(shown["windows"])) == (0, 14, 8)
    code, out, _ = run("show", folder, "step=2:6", "by=repo")
    assert out.split()[:5] == ["REPO", "DOCUMENTS", "WINDOWS", "TOKENS", "SHARE"]
    code, out, _ = run("show", folder, "step=2:4", "search=fn f1")
    assert code == 0
    assert out.splitlines()[-1].endswith(" in steps 2 to 3.")
    code, out, _ = run("where", folder, "document=0:3", "until=20")
    assert code == 0
    assert out.startswith("id=0:3: 1 document, ")
    code, out, _ = run("where", folder, "repo=one/a", "format=json")
    assert len(json.loads(out)["documents"]) == 20
    # In other sizes, the steps are none that the run has served.
    code, out, _ = run("show", folder, "step=5", "batch_size=3", "world_size=2")
    assert code == 0
    assert f"step 5 of {folder}, rank 0 of 2 (past, but the run had batch_size=8, world_size=1): 3 windows " in out
    assert "(served)" in run("show", folder, "step=5", "batch_size=8", "world_size=1")[1]
    assert "(to come)" in run("show", folder, "step=14", "batch_size=8")[1]
    # A store has no sizes of its own.
    keys = ("context_length=32", "batch_size=2", "seed=3", "until=4")
    code, out, _ = run("where", folder / "x.lance", "language=Python", *keys, "format=json")
    loader = open_run(str(folder / "x.lance"), context_length=32, batch_size=2, seed=3)
    expected = find_steps(loader, {"language": "Python"}, 4).sightings
    assert (code, json.loads(out)["sightings"]) == (0, [sighting._asdict() for sighting in expected])
    assert expected


def test_the_documents_of_a_spike_are_ranked(folder: Path, tmp_path: Path, run: Run):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").write_bytes((folder / "checkpoints/last.ckpt").read_bytes())
    windows = show_step(open_run(str(tmp_path)), 7)
    parts = [(window.number, part) for window in windows for part in window.documents]
    losses = [
        DocumentLoss(number, part.begin, part.end, 50.0 if place == 3 else 1.0, part.end - part.begin)
        for place, (number, part) in enumerate(parts)
    ]
    write_step(tmp_path, StepLosses(7, 0, 7, 3.5, 1.0, True, losses))
    _, out, _ = run("show", tmp_path, "step=7")
    first = out.splitlines()[4]
    assert first.split()[0] == f"{50 / (49 + len(losses)):.1%}"
    assert first.endswith(" · ".join(parts[3][1].about[name] for name in ("id", "repo", "language")))
    shown = json.loads(run("show", tmp_path, "step=7", "format=json")[1])
    assert shown["by_loss"][0]["about"] == parts[3][1].about
    assert "share of the loss" not in run("show", tmp_path, "step=6")[1]
    # They are of the batches of the run, and of no others.
    assert "share of the loss" not in run("show", tmp_path, "step=7", "batch_size=4")[1]
    code, _, err = run("show", tmp_path, "step=7", "batch_size=4", f"losses={tmp_path}")
    assert code == 1
    assert "losses are of the run's batches, which had batch_size=8: show them in these sizes." in err
    # A loss that is no number is all of it.
    write_step(
        tmp_path, StepLosses(7, 0, 7, float("nan"), 1.0, True, [losses[1]._replace(loss=float("nan")), *losses[2:]])
    )
    assert " 100.0%" in run("show", tmp_path, "step=7")[1].replace("\n", " ")
    shown = json.loads(run("show", tmp_path, "step=7", "format=json")[1], parse_constant=pytest.fail)
    assert shown["by_loss"][0]["loss"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["step=x"], "got step=x, expected show "),
        (["step=4:4"], "step is 4:4: expected the second step to be larger"),
        (["step=4:9"], "step is 4:9: expected one step; by=COLUMN"),
        (["window=8"], "window is 8: expected one of the 8 windows of the batch, from 0."),
        (["rank=1"], "rank is 1 of 1"),
        (["color=red"], "got color=red, expected show "),
        (["uri.code=x.lance"], "The checkpoint has no store 'code'"),
        (["context_length=64"], "There is no 'context_length' to look at a run with: expected batch_size, "),
    ],
    ids=str,
)
def test_what_cannot_be_shown_is_a_sentence(folder: Path, run: Run, arguments: list[str], message: str):
    code, _, err = run("show", folder, *arguments)
    assert code == 1
    assert err.count("\n") == 1
    assert message in err


def test_documents_that_are_in_no_step_are_told(folder: Path, run: Run):
    assert (
        "no document of the train split has repo=zero: documents of the other" in run("where", folder, "repo=zero")[2]
    )
    near = run("where", folder, "repo=one/A", "language=python")[2]
    assert near == (
        "error: no document of the train split has repo=one/A language=python: did you mean repo=one/a language=Python?\n"
    )
    assert "Documents of this store have no 'stars'" in run("where", folder, "stars=5")[2]
    assert "got no key=value, expected where " in run("where", folder)[2]


def test_a_run_on_several_ranks_is_looked_at_by_rank(folder: Path, run: Run):
    code, out, _ = run(
        "show", folder / "x.lance", "step=1", "batch_size=2", "world_size=2", "context_length=32", "rank=1"
    )
    assert code == 0
    assert "rank 1 of 2 (to come): 2 windows" in out


def test_without_a_tokenizer_ids_are_shown_unless_a_file_is_given(tmp_path: Path, run: Run):
    store = prepare(SOURCE, ByteTokenizer(), str(tmp_path / "x.lance"), val_fraction=0.0)
    kept = tmp_path / "x.tokenizer.json"
    kept.rename(tmp_path / "elsewhere.json")
    keys = ("context_length=32", "batch_size=2", "window=0")
    out = run("show", store.uri, *keys)[1]
    assert " 101 " in out
    assert f"Ids are shown, and no text: There is no tokenizer.json at '{kept}': restore " in out
    assert out.count("give it as tokenizer=FILE.\n") == 1
    out = run("show", store.uri, *keys, f"tokenizer={tmp_path / 'elsewhere.json'}")[1]
    assert "return" in out or "fn f" in out
    assert "There is no tokenizer" in run("show", store.uri, *keys, "tokenizer=nothing.json")[2]


def test_foreign_text_cannot_control_the_terminal(tmp_path: Path, run: Run):
    hostile: Any = "\x1b[31mred\x1b[0m \u202e right \x07 [bold]markup[/bold]"
    store = prepare(
        ListSource(documents(*[hostile * 3] * 9, repo="\x1b]0;title\x07")),
        ByteTokenizer(),
        data_dir=tmp_path,
        val_fraction=0.0,
    )
    code, out, _ = run("show", store.uri, "context_length=64", "batch_size=2", "window=0")
    assert code == 0
    assert not {"\x1b", "\x07", "\u202e"} & {*out}
    assert "[bold]markup[/bold]" in out


def test_steps_of_an_epoch_that_went_on_in_other_sizes_are_those_that_were_served(tmp_path: Path):
    def fit(size: int, steps: int, last: str | None = None) -> list[Any]:
        data = make_data(tmp_path, source=SMALL, batch_size=size, val_fraction=0.0)
        model = Recorder()
        trainer = make_trainer(tmp_path, max_steps=steps, max_epochs=-1, limit_val_batches=0)
        trainer.fit(model, datamodule=data, ckpt_path=last and str(tmp_path / last))
        trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return model.seen["train"]

    fit(8, 3)
    seen = fit(5, 26, "3.ckpt")
    begun = open_run(str(tmp_path / "26.ckpt"))
    # 24 windows are four batches of 5, and 4 windows.
    steps = [*range(4, 4 + (begun.num_windows - 24) // 5), *range(len(begun), begun.step)]
    assert steps[-2] >= len(begun)
    assert len(steps) == len(seen)
    assert [begun.windows(step).batch["input_ids"].tolist() for step in steps] == seen
    # What nothing resumes from is known to the runs that follow, and noted where it is needed.
    fit(5, 28, "26.ckpt")
    later = open_run(str(tmp_path / "28.ckpt"))
    assert [later.windows(step).batch["input_ids"].tolist() for step in steps] == seen
    noted = [torch.load(tmp_path / name, weights_only=True).get(BEGINS) for name in ("3.ckpt", "26.ckpt", "28.ckpt")]
    assert noted == [None, [[0, 24]], [[0, 24]]]
    for wrong in ("x", [[0]], [[0, -1]], [5]):
        with pytest.raises(StoreError, match=r"^The begins of batches .*: expected pairs of an epoch and a position"):
            later.take_begins(wrong)
