"""Word vectors: what is read, the loss beside its definition, and the binary beside plain Keras."""

import bz2
import json

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

import tfps
from models.word2vec import (
    __main__ as binary,
    corpus,
    export,
    model as network,
    similarity,
    wikipedia,
)
from models.word2vec.stretches import Stretches
from tests.models import in_process

PAGE = """{{Infobox | a = {{nested|x}} }}
'''Apollo''' is a [[Greek god|god]] of [[music]].<ref name="a" /> He<ref>not
{{this}}</ref> sings &amp; plays.
== Heading ==
[[File:Apollo.jpg|thumb|Apollo with a [[lyre]]]]
{| class="table"
| cell
|}
* See [http://example.org/x the page]<!-- hidden -->
"""
DUMP = f"""<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">
<page><redirect title="x"/><revision><text>#REDIRECT [[x]]</text></revision></page>
<page><revision><text>{PAGE.replace("&", "&amp;").replace("<", "&lt;")}</text></revision></page>
</mediawiki>"""


def test_markup_is_taken_away():
    found = [" ".join(p.split()) for p in wikipedia.paragraphs(bz2.compress(DUMP.encode()))]
    assert found == ["'''Apollo''' is a god of music. He sings & plays.", "* See [ the page]"]
    (line,) = corpus.lines_of(found[0])
    assert " ".join(line) == "apollo is a god of music he sings plays"


def test_words_are_numbered_by_their_counts():
    lines = corpus.lines_of("A b, a_c?\nb\nc' a 3 b\n\nd d")
    assert lines == [["a", "b", "a", "c"], ["c", "a", "b"], ["d", "d"]]
    made = corpus.Corpus.of(lines, 2)
    assert made.words == ["a", "b", "c", "d"]
    assert made.counts.tolist() == [3, 2, 2, 2]
    assert made.ids.tolist() == [0, 1, 0, 2, 2, 0, 1, 3, 3]
    assert made.lines.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2]
    other = made.encoded([["x", "d"], [], ["a", "x", "a"]])
    assert (other.ids.tolist(), other.lines.tolist()) == ([3, 0, 0], [0, 2, 2])
    assert other.counts is made.counts


def numbered(lines: int, length: int, words: int = 50) -> corpus.Corpus:
    """A text that counts: word i is i modulo `words`, in lines of `length` words."""
    ids = np.arange(lines * length, dtype=np.int32)
    counts = np.bincount(ids % words, minlength=words)
    return corpus.Corpus([str(i) for i in range(words)], counts, ids % words, ids // length)


def test_stretches_are_cut_out_of_the_text():
    made = Stretches(numbered(40, 30), window=3, sample=0, length=16, noise=6)
    assert made.count == 1200 // 16
    batches = list(made.shuffled(5, seed=1).take(30))
    for x, y in batches:
        words, places = x["words"].numpy(), x["places"].numpy()
        assert words.shape == (5, 16) and y.shape == (5,)
        np.testing.assert_array_equal(words[:, 1:], (words[:, :-1] + 1) % 50)
        steps = np.diff(places)
        assert set(np.unique(steps)) <= {1, 4}  # 4 from the end of a line to the next.
        assert ((steps == 4).sum(1) <= 1).all()
    first, second = (
        np.concatenate([x["places"][:, 0] for x, _ in b]) for b in (batches[:14], batches[14:28])
    )
    assert len(set(first)) == 70 and set(first) != set(second)
    for (x, _), (again, _) in zip(batches, made.shuffled(5, seed=1), strict=False):
        assert all((x[name] == again[name]).numpy().all() for name in x)


def test_frequent_words_are_thinned_out_and_noise_is_flattened():
    counts = np.array([8000, 500, 500, 1000])
    ids = np.random.default_rng(0).permutation(np.repeat(np.arange(4, dtype=np.int32), counts))
    text = corpus.Corpus(list("abcd"), counts, ids, np.zeros(len(ids), np.int32))
    made = Stretches(text, window=3, sample=0.1, length=10, noise=20)
    batches = [x for x, _ in made.shuffled(10, seed=0).take(made.count // 10)]
    found = np.bincount(np.concatenate([x["words"].numpy().ravel() for x in batches]))
    kept = np.sqrt(0.1 / 0.8) + 0.1 / 0.8
    np.testing.assert_allclose(found / found[1:].sum(), [4 * kept, 0.25, 0.25, 0.5], rtol=0.1)
    noise = np.bincount(np.concatenate([x["noise"].numpy().ravel() for x in batches]))
    np.testing.assert_allclose(noise / noise.sum(), counts**0.75 / (counts**0.75).sum(), rtol=0.1)


def test_the_loss_is_that_of_windows_of_random_size():
    """The mean over all sizes of the window, pair by pair, with all noise words of the stretch."""
    window, negatives, rng = 3, 4, np.random.default_rng(0)
    x = {
        "words": rng.integers(0, 20, [2, 9]).astype(np.int32),
        "places": np.array([[0, 1, 2, 3, 8, 9, 10, 11, 12], range(9)], np.int32),
        "noise": rng.integers(0, 20, [2, 5]).astype(np.int32),
    }
    made = network.build(20, 6, window, negatives, most_pairs=7.0)
    made.set_weights([rng.normal(size=w.shape) for w in made.get_weights()])
    centres, contexts = (
        made.get_layer(name).get_weights()[0] for name in (network.VECTORS, "contexts")
    )
    expected = np.zeros(2)
    for b in range(2):
        for size in range(1, window + 1):
            for i in range(9):
                scores = np.clip(contexts @ centres[x["words"][b, i]], -6, 6)
                against = negatives * np.logaddexp(0, scores[x["noise"][b]]).mean()
                for j in range(9):
                    if 0 < abs(x["places"][b, i] - x["places"][b, j]) <= size:
                        expected[b] += np.logaddexp(0, -scores[x["words"][b, j]]) + against
    np.testing.assert_allclose(made(x), expected / window / 9, rtol=1e-5)


def test_gradients_of_frequent_words_are_limited():
    """Gradients of a row are those without a limit, times the limit over the row's pairs."""
    window, negatives, rng = 2, 3, np.random.default_rng(0)
    x = {
        "words": np.array([[0, 1, 0, 2, 0], [3, 0, 4, 5, 0]], np.int32),
        "places": np.tile(np.arange(5, dtype=np.int32), [2, 1]),
        "noise": np.array([[1, 0], [6, 2]], np.int32),
    }
    weights = [rng.uniform(-1, 1, [8, 4]) for _ in range(2)]  # No score is clipped.

    def gradients(most):
        made = network.build(8, 4, window, negatives, most)
        made.set_weights(weights)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(made(x))
        tables = [made.get_layer(name).embeddings.value for name in (network.VECTORS, "contexts")]
        return [tf.convert_to_tensor(g).numpy() for g in tape.gradient(loss, tables)]

    # Windows of both sizes, so neighbours have weight 1, and words two places away a half.
    of_word = np.array([1.5, 2.5, 3.0, 2.5, 1.5])
    centres, contexts = np.zeros(8), np.zeros(8)
    for words, noise in zip(x["words"], x["noise"], strict=True):
        np.add.at(centres, words, of_word * (1 + negatives))
        np.add.at(contexts, words, of_word)
        np.add.at(contexts, noise, of_word.sum() * negatives / 2)
    for free, limited, pairs in zip(
        gradients(1e9), gradients(18.0), (centres, contexts), strict=True
    ):
        assert (pairs > 18).any() and (pairs < 18).any()
        share = np.minimum(1, 18 / np.maximum(pairs, 1e-6))
        np.testing.assert_allclose(limited, share[:, None] * free, rtol=1e-4, atol=1e-6)


def test_similarity_is_as_defined():
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(30)]
    rows = rng.normal(size=(30, 5))
    vectors = similarity.Vectors(words, 3 * rows)
    pairs = [(*rng.choice(words, 2), rng.integers(0, 5)) for _ in range(40)]
    text = "# remark\n" + "".join(f"{a.upper()}\t{b}\t{score}\n" for a, b, score in pairs)
    cosines = [vectors.unit[words.index(a)] @ vectors.unit[words.index(b)] for a, b, _ in pairs]
    expected = scipy.stats.spearmanr(cosines, [score for *_, score in pairs]).statistic
    found, count = similarity.correlation(
        vectors, similarity.pairs(text + "\nw1\tunknown\t3\r\n", "file")
    )
    assert (found, count) == (pytest.approx(expected), 40)
    assert np.isnan(similarity.correlation(vectors, [])[0])

    plane = {
        "man": [1, 0, 0],
        "woman": [1, 1, 0],
        "king": [1, 0, 1],
        "queen": [1, 1, 1],
        "x": [0, -1, 0],
    }
    vectors = similarity.Vectors(list(plane), np.array(list(plane.values())))
    questions = ": family\nMan woman king queen\nman woman king x\nman woman king unknown\n"
    assert similarity.analogies(vectors, questions) == (0.5, 2)
    (first, cosine), second = vectors.next_to("queen", 2)
    assert {first, second[0]} == {"woman", "king"} and cosine == pytest.approx(2 / 6**0.5)
    assert len(vectors.next_to("man", 9)) == 4


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of 300 lines, each with words of one of two subjects, and "the" in all of them."""
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(300):
        subject = rng.choice(["sun", "sea"])
        words = [f"{subject}{'abcdefgh'[i]}" for i in rng.integers(0, 8, 12)]
        lines.append(" ".join([*words, "the"]))
    path = tmp_path_factory.mktemp("word2vec") / "text.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("strategy", ["ps", "ps with a codec", "keras"])
def test_words_of_a_subject_come_together(connect, capsys, text, tmp_path, strategy):
    save = tmp_path / "m.keras"
    (tmp_path / "pairs.tsv").write_text(
        "suna\tsunb\t9\nsuna\tseab\t1\nseac\tseaa\t9\nsunc\tseac\t1\n"
    )
    args = [
        f"--data={text}", f"--save={save}", f"--log_dir={tmp_path}/board", "--epochs=20",
        "--batch_size=2", "--length=20", "--noise=8", "--vector_width=8", "--learning_rate=0.025",
        "--sample=0", f"--pairs={tmp_path}/pairs.tsv",
    ]  # fmt: skip
    if strategy == "keras":
        code, out, err = in_process.run(binary, capsys, "--strategy=keras", *args)
        assert code == 0, err
    else:
        codec = ["--push=int8", "--pull=bfloat16"] if strategy == "ps with a codec" else []
        in_process.train(binary, connect(workers=2), *args, *codec)
        out = capsys.readouterr().out
    assert "pairs: rank correlation" in out and "of 4 pairs" in out
    facts = json.loads((tmp_path / "m.json").read_text())
    assert facts["held_out"]["pairs"] > 0.7 and facts["held_out"]["words_per_second"] > 0
    saved = (tmp_path / "m.vec").read_text().splitlines()
    assert saved[0] == "17 8" and len(saved) == 18
    rows = np.array([line.split()[1:] for line in saved[1:]], np.float32)
    kept = keras.models.load_model(save, compile=False).get_layer(network.VECTORS)
    np.testing.assert_allclose(rows, kept.get_weights()[0], rtol=1e-4)
    assert "words.tsv" in (tmp_path / "board" / "projector_config.pbtxt").read_text()

    (tmp_path / "asked.txt").write_text("\ufeffsuna\nSeab")
    code, out, err = in_process.run(
        binary, capsys, f"--save={save}", f"--predict={tmp_path}/asked.txt", "--neighbours=3"
    )
    assert code == 0, err
    head, *found = [line.split("\t") for line in out.splitlines()]
    assert head == ["word", "neighbour", "cosine"] and len(found) == 6
    assert all(word[:3] == neighbour[:3] for word, neighbour, _ in found)


def test_vectors_are_in_the_text_format_of_word2vec(tmp_path):
    """A line with both sizes, then a word and its numbers in each line, with one space between."""
    rows = np.array([[0.5, -2, 1e-7], [1 / 3, 0, 123456.5]], np.float32)
    export.save(str(tmp_path / "m.vec"), ["a", "é"], rows)
    content = (tmp_path / "m.vec").read_bytes()
    assert content.decode("utf-8") == "2 3\na 0.5 -2 1e-07\né 0.333333 0 123456\n"


def test_gensim_reads_the_vectors(tmp_path):
    models = pytest.importorskip("gensim.models")
    rows = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    export.save(str(tmp_path / "m.vec"), ["a", "é", "of"], rows)
    read = models.KeyedVectors.load_word2vec_format(str(tmp_path / "m.vec"))
    np.testing.assert_allclose(read["é"], rows[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("content", "args", "said"),
    [
        (None, [], "has no file gensim-*; run make data-word2vec, or give"),
        ("a b\n", [], "has 1 rows; give at least 2"),
        ("a b\nc d\n", [], "has 0 words that occur 5 times or more"),
        ("a b\na b\na a\n", ["--min_count=1"], "too few for a stretch of --length=64"),
        ("a b\na b\n", ["--pairs={tmp}/none.tsv"], "--pairs: cannot read"),
        ("a b\na b\n", ["--pairs={tmp}/bad.tsv"], "line 3 is 'a b 2'; expected two words and a"),
        ("a b\na b\n", ["--predict={tmp}/none.txt"], "does not exist; train a model first"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line(tmp_path, capsys, monkeypatch, content, args, said):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    (tmp_path / "bad.tsv").write_text("\ufeff# remark\na\tb\t1\na b 2\n")
    data = [f"--packages={tmp_path}"]
    if content is not None:
        (tmp_path / "x.txt").write_text(content)
        data.append(f"--data={tmp_path}/x.txt")
    args = [a.format(tmp=tmp_path) for a in args]
    code, _, err = in_process.run(binary, capsys, f"--save={tmp_path}/m.keras", *data, *args)
    assert code in (tfps.exit_codes.FAILED, tfps.exit_codes.FLAGS)
    (line,) = err.strip().splitlines()
    assert line.startswith("error: ")
    assert said in line
