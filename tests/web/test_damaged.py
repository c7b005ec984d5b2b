"""Pages over files that are cut off, garbled or gone: shown in part or refused with a reason, never a fault."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest

from web.served import a_job, a_map, classes_in, serving
from web.test_pages import micrographs_in

PAGES = (
    "/", "/status.json", "/job/j", "/job.json/j", "/classes/j", "/classes.json/j", "/scores.json/j", "/average/j?n=1",
    "/particles/j?n=2", "/map/j", "/slice/j/m.mrc?axis=y&at=3", "/micrographs/j", "/micrographs.json/j",
    "/new/class2d?from=j", "/new/select", "/files/j",
)  # fmt: skip
WORDS = (b"nan", b"-1", b"1e999", b'"', b"[]", b"9" * 20, b"", b"{}", b"null", b"<b>")


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Cut off, some bytes changed, one word another everywhere, or bytes behind it."""
    kind, found = chance.randrange(4), bytearray(content)
    if kind == 0:
        return content[: chance.randrange(len(content) + 1)]
    if kind == 1:
        for _ in range(chance.randrange(1, 30)):
            found[chance.randrange(len(found))] = chance.randrange(256)
        return bytes(found)
    if kind == 2 and content.isascii():
        return content.replace(chance.choice(content.split()), chance.choice(WORDS))
    return content + bytes(chance.randrange(256) for _ in range(50))


@pytest.mark.parametrize("seed", range(2))
def test_damaged_files_are_no_fault(tmp_path, monkeypatch, seed):
    monkeypatch.chdir(tmp_path)
    folder = a_job(tmp_path / "j", "class2d")
    classes_in(folder)
    a_map(folder / "m.mrc")
    micrographs_in(folder)
    said = {"job": "class2d", "state": "running", "host": "x", "pid": 9, "started": 1.0, "heartbeat": 1.0}
    (folder / "state.json").write_text(json.dumps(said))
    fsc = "data_fsc\nloop_\n_rlnAngstromResolution\n_rlnGoldStandardFsc\n999 1\n20 0.9\n10 0.1\n"
    (folder / "run_fsc.star").write_text(fsc)
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    chance, answers = random.Random(seed), Counter[int]()
    with serving(tmp_path) as served:
        for _ in range(50):
            name = chance.choice(list(files))
            (folder / name).write_bytes(damaged(files[name], chance))
            if chance.random() < 0.1:
                (folder / name).unlink()
            answers.update(served.get(page).status for page in PAGES)
            (folder / name).write_bytes(files[name])
        assert not [line for line in served.log if line.startswith("a fault")]
    assert set(answers) <= {200, 400, 404, 422} and answers[422] > 10 and answers[200] > 500, answers
