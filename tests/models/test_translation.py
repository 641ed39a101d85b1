"""Translation: what is read, tokens, the network, beam search, what is measured, and the binary."""

import io
import itertools
import json
import tarfile

import numpy as np
import pytest

import tfps
from models.gpt.tokenizers import WordPiece
from models.translation import (
    __main__ as binary,
    beam,
    model as network,
    pairs,
    retrieval,
    tokens as tokens_,
)
from models.translation.chrf import chrf
from models.translation.tokens import BEGIN, END
from tests.models import in_process

WORDS = {"one": "eins", "two": "zwei", "red": "rot", "big": "gross", "cat": "Katze", "dog": "Hund"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two files of lines of 2 or 3 words, of which each has its word, in the opposite order."""
    rng = np.random.default_rng(0)
    lines = {tuple(rng.choice(list(WORDS), rng.integers(2, 4))) for _ in range(700)}
    folder = tmp_path_factory.mktemp("translation")
    lines = sorted(lines)
    (folder / "x.en").write_text("".join(" ".join(line) + "\n" for line in lines))
    turned = (" ".join(WORDS[word] for word in reversed(line)) for line in lines)
    (folder / "x.de").write_text("".join(f"{line}\n" for line in turned))
    return folder / "x"


def package(path, language, pages):
    """A package's files, as `make data-translation` leaves them."""
    with tarfile.open(path / f"libreoffice-help-{language.lower()}.tar", "w") as archive:
        for name, content in pages.items():
            info = tarfile.TarInfo(f"./usr/share/libreoffice/help/{language}/text/{name}.html")
            info.size = len(content.encode())
            archive.addfile(info, io.BytesIO(content.encode()))


def test_paragraphs_have_no_markup_and_no_keys_of_other_systems():
    page = """<h1 id="hd_id1" dir="auto">Find &amp; Replace</h1><p>no id</p>
      <p id="par_id2" class="paragraph">Press <span id="s" class="switchinline"><span hidden="true"
       id="x"></span><span hidden="true" id="MACx" class="MAC"><span class="keycode">Command</span>
       </span><span hidden="true" id="defaultx"><span class="keycode">Ctrl</span></span></span>+F,
       <br>or not.</p><p id="par_id3"><img src="x"></p>"""
    assert pairs.paragraphs(page) == {
        "hd_id1": "Find & Replace",
        "par_id2": "Press Ctrl+F, or not.",
    }


def test_help_is_split_by_file(tmp_path):
    def page(language, i):
        own = f'<p id="par_id{i}">{language} {i}</p><p id="par_id77">same</p>'
        return f'{own}<h2 id="hd_id9">{language} everywhere</h2><p id="par_id{language}0">alone</p>'

    for language in ("en-US", "de"):
        pages = {f"swriter/{i}": page(language, i) for i in range(20)}
        package(tmp_path, language, {**pages, f"only_{language}": page(language, 99)})
    with in_process.given(f"--packages={tmp_path}"):
        read = pairs.read_help()
    assert len(read.held_out) == 2 and len(read.training) == 18 + 1
    found = {*read.training, *read.held_out}
    every = {(f"en-US {i}", f"de {i}") for i in range(20)}
    assert found == every | {("en-US everywhere", "de everywhere")}


def test_lines_are_read(corpus):
    read = pairs.read_lines(str(corpus), "en", "de")
    count = len(corpus.with_suffix(".en").read_text().splitlines())
    assert len(read.training) + len(read.held_out) == count
    assert len(read.held_out) == round(count / 10)
    assert not {s for s, _ in read.training} & {s for s, _ in read.held_out}
    source, target = read.training[0]
    assert [WORDS[word] for word in source.split()] == target.split()[::-1]


@pytest.mark.parametrize("content", ["a  b\n\nc\n", "\ufeffa b\n\nc", "a b\r\n\r\nc"])
def test_the_last_line_needs_no_end(tmp_path, content):
    (tmp_path / "x").write_bytes(content.encode())
    assert pairs.read_texts(str(tmp_path / "x"), "predict") == ["a b", "", "c"]


def test_tokens_become_text_again():
    texts = ["A cat, a dog.", "", "Ein Hund – eine Katze (3)"]
    made = tokens_.Tokens.learn([*texts, *texts], 80)
    encoded = made.encode(texts)
    assert [len(part) == 0 for part in encoded] == [False, True, False]
    marked = tokens_.with_marks(encoded[0])
    assert marked[0] == BEGIN and marked[-1] == END and marked.dtype == np.int32
    assert [made.decode(part) for part in (marked, *encoded[1:])] == texts
    assert max(int(part.max()) for part in encoded if len(part)) < made.vocabulary
    again = tokens_.Tokens(WordPiece(made.pieces.pieces))
    np.testing.assert_array_equal(again.encode(texts[:1])[0], encoded[0])


def test_the_sign_of_a_line_end_moves_no_line():
    texts = ["press ⏎ now", "⏎", "a cat"]
    made = tokens_.Tokens.learn([*texts, *texts], 80)
    assert [made.decode(part) for part in made.encode(texts)] == ["press now", "", "a cat"]


def test_long_texts_are_translated_in_parts(monkeypatch):
    """The search, which gives back what it is given here, has no more than the model takes."""
    texts = ["one two red big cat dog " * 4 + "one", "red", "", "abcdefgh" * 6]
    texts = [text.strip() for text in texts]
    made = tokens_.Tokens.learn([" ".join(sorted(WORDS)), "abcdefgh"] * 9, 80)
    assert max(map(len, made.encode(texts))) > 8
    model = network.build(made.vocabulary, 1, 8, 2, 9, 0.0)

    def translate(model, sources, beam, penalty):
        assert max(map(len, sources)) <= 8
        return sources

    monkeypatch.setattr(beam, "translate", translate)
    with in_process.given():
        found = binary._translated(model, made, texts)
    assert found[:3] == texts[:3]
    assert found[3].replace(" ", "") == texts[3]


def test_nothing_is_seen_of_padding_and_of_what_follows():
    model = network.build(11, 2, 16, 2, 9, 0.1)
    rng = np.random.default_rng(0)
    source, target = (rng.integers(1, 11, [2, n]).astype(np.int32) for n in (5, 6))
    expected = model({"source": source, "target": target}).numpy()
    padded = np.pad(source, ((0, 0), (0, 3)))
    found = model({"source": padded, "target": target})
    np.testing.assert_allclose(found, expected, atol=1e-5)
    found = model({"source": source, "target": target[:, :4]})
    np.testing.assert_allclose(found, expected[:, :4], atol=1e-5)
    assert network.longest_of(model) == 9
    encoder, decoder = network.halves(model)
    found = decoder([encoder(padded).numpy(), padded, target])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def chances(rng, words, length):
    """Log-probabilities of what follows each beginning, and the best sentence of all."""
    following, best = {}, (-np.inf, ())
    for n in range(length):
        for begun in itertools.product(range(END + 1, words), repeat=n):
            logits = rng.normal(size=words)
            logits[:END] = -np.inf
            following[begun] = logits - np.log(np.exp(logits).sum())
            total = sum(following[begun[:i]][begun[i]] for i in range(n)) + following[begun][END]
            best = max(best, (total / ((5 + n + 1) / 6) ** 0.6, begun))
    return following, best[1]


@pytest.mark.parametrize("seed", range(5))
def test_a_wide_beam_finds_the_best_sentence(seed):
    """All sentences of up to three words out of four, of which those that never end are none."""
    rng = np.random.default_rng(seed)
    both = [chances(rng, 7, 4) for _ in range(2)]

    def follow(begun):
        rows = []
        for i, row in enumerate(begun):
            words = [int(w) for w in row[1:] if w > END]
            following = both[i // 400][0]
            rows.append(following.get(tuple(words), np.full(7, -1e9)))
        return np.stack(rows)

    found = beam.search(follow, 2, 400, 4, 0.6)
    assert [tuple(words) for words in found] == [best for _, best in both]


def test_one_beginning_is_greedy():
    table = np.log(np.array([[1e-9, 1e-9, 0.2, 0.5, 0.3], [1e-9, 1e-9, 0.6, 0.3, 0.1]]))
    found = beam.search(lambda begun: table[[begun.shape[1] - 1]], 1, 1, 9, 0.6)
    assert [words.tolist() for words in found] == [[3]]
    endless = np.log(np.array([[1e-9, 1e-9, 1e-9, 0.5, 0.4]]))
    assert beam.search(lambda begun: endless, 1, 1, 3, 0.6)[0].tolist() == [3, 3, 3]


def test_chrf_is_that_of_sacrebleu():
    """The expected values are those of sacreBLEU 2.6.0, `CHRF().corpus_score`."""
    found = [
        "Die Katze sitzt auf der Matte.",
        "ab",
        "",
        "Klicken Sie auf OK, um fortzufahren",
    ]
    references = [
        "Die Katze saß auf einer Matte.",
        "abc d",
        "Hallo",
        "Zum Fortfahren klicken Sie auf OK.",
    ]
    assert chrf(found, references) == pytest.approx(55.7923646940513)
    each = [57.26000690131124, 47.169811320754704, 0.0, 60.82688585446696]
    assert [chrf([a], [b]) for a, b in zip(found, references, strict=True)] == pytest.approx(each)
    assert chrf(references, references) == pytest.approx(100)


def test_a_rare_token_decides_who_is_nearest():
    texts = [np.array([5, 5, 6]), np.array([5, 7]), np.array([5, 8]), np.array([9])]
    made = retrieval.Neighbours(texts, 11)
    assert [made.nearest(np.array(t)) for t in ([5, 7], [8, 5, 5, 5], [5, 6], [9, 10])] == [
        1,
        2,
        0,
        3,
    ]


def test_it_learns_on_servers_and_translates(connect, capsys, corpus, tmp_path):
    save, out = tmp_path / "m.keras", tmp_path / "found.tsv"
    in_process.train(
        binary, connect(workers=2), f"--data={corpus}", f"--save={save}", f"--log_dir={tmp_path}",
        "--pieces=80", "--blocks=1", "--residual_width=32", "--attention_heads=2",
        "--epochs=20", "--branch_dropout=0",
        "--learning_rate=0.01", "--batch_size=16", "--push=int8", "--measured=10",
    )  # fmt: skip
    assert "held out: chrF" in capsys.readouterr().out
    held_out = json.loads((tmp_path / "m.json").read_text())["held_out"]
    assert held_out["chrf"] > max(held_out["copied"], held_out["nearest"])
    new = tmp_path / "new.txt"
    new.write_text("two cat\n\nbig red dog\n")
    code, _, err = in_process.run(
        binary, capsys, f"--save={save}", f"--predict={new}", f"--out={out}"
    )
    assert code == 0, err
    head, *rows = out.read_text().splitlines()
    assert head == "source\ttranslation" and len(rows) == 3
    assert rows[1] == "\t"
    assert rows[2].split("\t") == ["big red dog", "Hund rot gross"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "has no file libreoffice-help-en-us.tar*; run make data-translation, or give"),
        (["--data={tmp}/none"], "none.en is no text in UTF-8 that can be read"),
        (["--data={tmp}/odd"], "the file .en has 2 lines, but .de has 1; line n of one must be"),
        (["--residual_width=130"], "=130 is not a multiple of --attention_heads=4"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line(tmp_path, capsys, monkeypatch, args, said):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    (tmp_path / "odd.en").write_text("one\ntwo\n")
    (tmp_path / "odd.de").write_text("eins\n")
    args = [f"--packages={tmp_path}", *(a.format(tmp=tmp_path) for a in args)]
    code, _, err = in_process.run(binary, capsys, f"--save={tmp_path}/m.keras", *args)
    assert code in (tfps.exit_codes.FAILED, tfps.exit_codes.FLAGS)
    (line,) = err.strip().splitlines()
    assert line.startswith("error: ")
    assert said in line
