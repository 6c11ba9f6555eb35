"""table of crowd votes -> each image's shares."""

import csv
from pathlib import Path

import numpy as np

from ferflow.emotions import EMOTIONS
from ferflow.errors import DataError

CROWD_COLUMNS = (
    *("votes_anger", "votes_disgust", "votes_fear", "votes_happiness", "votes_neutral", "votes_sadness"),
    *("votes_surprise", "votes_contempt", "votes_unknown", "votes_not_a_face"),
)
"""What ten people could say of each FER2013 image (FER+, MIT): the seven emotions first, in the order of EMOTIONS."""

_OUR_COLUMNS = CROWD_COLUMNS[: len(EMOTIONS)]


def read_votes(table: Path) -> dict[str, np.ndarray]:
    """Read the votes on each path as shares, float32 (7,) in the order of EMOTIONS; without paths nobody voted on.

    Raises:
        DataError: a column is missing or a vote is no number.
    """
    votes = {}
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        lacking = {"path", *_OUR_COLUMNS} - set(reader.fieldnames or ())
        if lacking:
            raise DataError(f"{table}: it lacks the columns {', '.join(sorted(lacking))}. Add them or move it away.")
        for number, row in enumerate(reader, start=2):
            try:
                counts = np.array([float(row[column] or 0) for column in _OUR_COLUMNS], np.float32)
            except (TypeError, ValueError) as error:
                raise DataError(f"{table}: line {number} has a vote that is not a number. Correct it.") from error
            if counts.sum() > 0:
                votes[row["path"]] = counts / counts.sum()
    return votes
