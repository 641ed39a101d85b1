"""Texts with their classes, out of tables."""

import dataclasses

import numpy as np

import tfps
from models import tables
from models.tables import Table

# Of the reviews that `make data-text_classification` downloads.
REVIEWS = "WomensClothingE-CommerceReviews"
REVIEW_TEXT = ["Title", "Review Text"]
REVIEW_LABEL = "Rating"


@dataclasses.dataclass(frozen=True)
class Examples:
    """Texts of two classes or more.

    Attributes:
      texts: [n], of type object.
      classes: int32 [n], each an index of `names`.
      names: of the classes, in order.
    """

    texts: np.ndarray
    classes: np.ndarray
    names: list[str]

    @classmethod
    def of(cls, table: Table, columns: list[str], label: str) -> "Examples":
        """Takes texts and classes out of a table; rows without a text are left out.

        Args:
          table: has the columns.
          columns: which together are the text.
          label: the column of classes.

        Raises:
          DataError: a column is missing, or there are fewer than two classes.
        """
        texts = joined(table, columns)
        names = np.array([name.strip() for name in tables.texts(table, label)], object)
        known = texts != ""
        found, classes = np.unique(names[known], return_inverse=True)
        if len(found) < 2:
            raise tfps.DataError(
                f"--data has {len(found)} classes in the column {label}; give texts of two classes "
                "or more, or name another column by --class_column"
            )
        return cls(texts[known], classes.astype(np.int32), found.tolist())


def joined(table: Table, columns: list[str], flag: str = "data") -> np.ndarray:
    """The text of each row: its columns one after another; [rows], of type object.

    Raises:
      DataError: a column is missing; `flag` named the table.
    """
    parts = [tables.texts(table, name, flag) for name in columns]
    return np.array([" ".join(row).strip() for row in zip(*parts, strict=True)], object)


def reviews() -> Table:
    """23,486 reviews of women's clothing, with 1 to 5 stars in the column Rating.

    Raises:
      ConfigError: pyarrow is not installed.
      DataError: the package is missing or broken.
    """
    return tables.read_widedeep(REVIEWS, "text_classification")
