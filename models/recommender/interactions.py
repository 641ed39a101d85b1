"""Who liked what: tables of users and items as arrays that a model takes."""

import dataclasses
import hashlib
import re

import numpy as np

import tfps
from models import tables
from models.tables import Table

SIDES = ("user", "item")


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which columns of a table describe a user or an item.

    Attributes:
      ids: columns of categories, each with an embedding; of user_id and item_id at least.
      numbers: side ("user", "item") -> columns of numbers.
    """

    ids: list[str]
    numbers: dict[str, list[str]]

    @classmethod
    def of(cls, table: Table) -> "Columns":
        """Finds the columns by their names, which begin with user_ or item_.

        Raises:
          DataError: user_id or item_id is missing.
        """
        for name in ("user_id", "item_id"):
            if name not in table:
                raise tfps.DataError(f"--data has no column {name}; it has {', '.join(table)}")
        named = [n for n in table if n.startswith(("user_", "item_"))]
        ids = [n for n in named if n.endswith("_id") or not tables.are_numbers(table[n])]
        rest = [n for n in named if n not in ids]
        return cls(ids, {side: [n for n in rest if n.startswith(side)] for side in SIDES})

    def inputs(self, table: Table, flag: str = "data") -> dict[str, np.ndarray]:
        """The inputs of a model.

        Args:
          table: has all columns.
          flag: the flag that named the table, for errors.

        Returns:
          Column of ids -> int64 [rows]; "user_numbers" and "item_numbers", where there are any,
          -> float32 [rows, columns].

        Raises:
          DataError: a column is missing, or a value of a column of numbers is no number.
        """
        found = {}
        for name in self.ids:
            if name not in table:
                raise tfps.DataError(f"--{flag} has no column {name}; it has {', '.join(table)}")
            found[name] = keys(table[name])
        for side, names in self.numbers.items():
            if names:
                columns = [tables.numbers(table, name, flag) for name in names]
                found[f"{side}_numbers"] = np.stack(columns, 1)
        return found


def keys(column: np.ndarray) -> np.ndarray:
    """Makes int64 keys of a column; a value has the same key whatever else is in the column.

    Whole numbers of less than 64 bits are their own keys, however they are written; all other
    values have a hash of their text.
    """
    values, places = np.unique(column, return_inverse=True)
    return np.array([_key(str(value)) for value in values], np.int64)[places]


def _key(text: str) -> int:
    for parse in (int, float):
        try:
            number = parse(text)
            if number == int(number) and -(2**63) <= number < 2**63:
                return int(number)
        except (ValueError, OverflowError):
            pass
    return int.from_bytes(
        hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True
    )


def liked(table: Table, label: str, least: float) -> np.ndarray:
    """1 where the rating is at least `least`, or else 0; float32 [rows].

    Raises:
      DataError: the column of ratings is missing or has other values than numbers, or all or none
        are liked.
    """
    found = (tables.numbers(table, label) >= least).astype(np.float32)
    if found.min() == found.max():
        raise tfps.DataError(
            f"--data: {'all' if found[0] else 'no'} rows have a {label} of {least:g} or more; "
            "choose another --liked_from"
        )
    return found


def movielens() -> Table:
    """The 100,000 ratings of MovieLens-100k, with what is known of users and films.

    Raises:
      ConfigError: pyarrow is not installed.
      DataError: the package is missing or broken.
    """
    ratings, users, films = (
        tables.read_widedeep(f"MovieLens100k_{name}", "recommender")
        for name in ("data", "users", "items")
    )
    of_user = _rows(users["user_id"], ratings["user_id"])
    of_film = _rows(films["movie_id"], ratings["movie_id"])
    released = [re.search(r"\d{4}$", str(date)) for date in films["release_date"]]
    years = np.array([float(found[0]) if found else 1990.0 for found in released])
    genres = list(films)[list(films).index("unknown") :]
    return {
        "user_id": ratings["user_id"],
        "item_id": ratings["movie_id"],
        "rating": ratings["rating"],
        "user_age": users["age"][of_user],
        "user_gender": users["gender"][of_user],
        "user_occupation": users["occupation"][of_user],
        "item_year": years[of_film],
        **{f"item_{genre.lower()}": films[genre][of_film] for genre in genres},
    }


def _rows(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The rows in which the wanted ids are, all of which are there."""
    order = np.argsort(ids)
    return order[np.searchsorted(ids[order], wanted)]
