"""A program that fails while it measures leaves a model that can be used."""

import json

import pytest

from models.linear import __main__ as linear
from models.recommender import __main__ as recommender
from models.text_classification import __main__ as text_classification
from models.word2vec import __main__ as word2vec
from tests.models import in_process

ROWS = {
    linear: ["a,b", *(f"{i},{2 * i}" for i in range(20))],
    recommender: ["user_id,item_id,rating", *(f"{i % 4},{i % 3},{1 + i % 5}" for i in range(30))],
    text_classification: ["text,label", *(f"word{i % 2} w,{i % 2}" for i in range(20))],
    word2vec: ["one two three four"] * 30,
}


@pytest.mark.parametrize("binary", ROWS, ids=lambda binary: binary.__name__.split(".")[1])
def test_the_model_answers(binary, capsys, tmp_path, monkeypatch):
    data, save = tmp_path / "data.csv", f"--save={tmp_path}/m.keras"
    data.write_text("\n".join([*ROWS[binary], ""]))

    def fail(*args):
        raise MemoryError

    args = [f"--data={data}", save, f"--log_dir={tmp_path}/board", "--strategy=keras"]
    own = ["--length=4", "--sample=0"] if binary is word2vec else []
    with monkeypatch.context() as m:
        m.setattr(binary.program, "outputs", fail)
        m.setattr(word2vec.export, "save", fail)
        with pytest.raises(MemoryError):
            in_process.run(binary, capsys, *args, *own, "--epochs=1", "--batch_size=4")
    capsys.readouterr()
    assert "held_out" not in json.loads((tmp_path / "m.json").read_text())
    if binary is word2vec:
        data.write_text("one")
    code, out, err = in_process.run(binary, capsys, save, f"--predict={data}")
    assert code == 0, err
    assert len(out.splitlines()) == (4 if binary is word2vec else len(ROWS[binary]))
