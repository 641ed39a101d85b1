"""Tables that models read, and what they write."""

import csv
import io

import numpy as np
import pytest

import tfps
from models import inference, tables
from models.text_classification import examples
from tests.models import in_process


def read(tmp_path, content, name="x.csv"):
    (tmp_path / name).write_bytes(content.encode())
    return tables.read_csv(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("x.csv", 'a,b\n007,"x, ""y"""\n10000001,p"q\n', [["007", "10000001"], ['x, "y"', 'p"q']]),
        ("x.csv", '\ufeffa,b\r\n\r\n1,"x\ny"\r\n', [["1"], ["x\ny"]]),
        ("x.tsv", 'a\tb\n1\t"x\n2\ty,"z"\n', [["1", "2"], ['"x', 'y,"z"']]),
    ],
)
def test_values_are_as_they_are_in_the_file(tmp_path, name, content, rows):
    table = read(tmp_path, content, name)
    assert list(table) == ["a", "b"]
    assert [column.tolist() for column in table.values()] == rows


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('a,b\n1,x\n2,"y\n3,z\n', "the row that begins in line 3, unexpected end of data; quote"),
        ('a,b\n1,"x\n2,y\n3,"z"\n', "the row that begins in line 2, ',' expected after '\"'"),
        ("a,b,a\n1,2,3\n", "it has two columns 'a'; give each"),
        ('a,b\n"1\n2",x\n3\n', "line 4 has 1 values, but there are 2 columns; quote"),
    ],
)
def test_no_row_is_lost_silently(tmp_path, content, said):
    with pytest.raises(tfps.DataError) as e:
        read(tmp_path, content)
    assert said in str(e.value)


def test_numbers_are_made_of_texts(tmp_path):
    table = read(tmp_path, "a,b,c\n1e3,x,1e300\n-0.5,2,1\n")
    np.testing.assert_array_equal(tables.numbers(table, "a"), np.float32([1000, -0.5]))
    assert [tables.are_numbers(column) for column in table.values()] == [True, False, True]
    with pytest.raises(tfps.DataError, match="column c is 1e300 in row 2"):
        tables.numbers(table, "c")
    typed = {"stars": np.array([5.0, 0.25, np.nan])}
    assert tables.texts(typed, "stars").tolist() == ["5", "0.25", ""]


def test_texts_that_look_like_numbers_stay_apart(tmp_path):
    table = read(tmp_path, "text,label\n007,10000001\n7, 10000002 \n7.0,10000001\n")
    made = examples.Examples.of(table, ["text"], "label")
    assert made.texts.tolist() == ["007", "7", "7.0"]
    assert made.names == ["10000001", "10000002"] and made.classes.tolist() == [0, 1, 0]


def test_a_long_text_costs_its_own_length(tmp_path):
    """Columns of NumPy's own type of text have the longest one's width in each row."""
    table = read(tmp_path, f"text,label\n{'a' * 100_000},x\n" + "b,y\n" * 1000)
    made = examples.Examples.of(table, ["text"], "label")
    assert table["text"].nbytes == made.texts.nbytes == 1001 * 8


def test_answers_are_written_in_full_and_quoted(capsys):
    columns = [np.array(["a,b", 'c"d'], object), np.float32([1234567.8, 0.1])]
    with in_process.given():
        inference.write_csv(["x,y", "predicted z"], columns)
    found = capsys.readouterr().out
    rows = list(csv.reader(io.StringIO(found), strict=True))
    assert rows == [["x,y", "predicted z"], ["a,b", "1234567.8"], ['c"d', "0.1"]]
