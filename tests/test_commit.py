import json
from dataclasses import asdict

from lightning_lance.commit import Commit


def test_a_note_comes_back_from_json():
    note = Commit("f", {"source": {"languages": ["C"]}}, {"revision": "1f"}, "s", "<eos>", 0, 9, languages={"C": 3})
    assert Commit(**json.loads(json.dumps(asdict(note)))) == note
