"""table of crowd votes -> each image's shares."""

import csv
from pathlib import Path

import numpy as np

from ferflow.emotions import EMOTIONS
from ferflow.errors import DataError

# What ten people said of each FER2013 image (FER+, MIT); contempt, unknown and "not a face" are none of our classes.
_VOTE_COLUMNS = {
    "angry": "votes_anger",
    "disgust": "votes_disgust",
    "fear": "votes_fear",
    "happy": "votes_happiness",
    "neutral": "votes_neutral",
    "sad": "votes_sadness",
    "surprise": "votes_surprise",
}


def read_votes(table: Path) -> dict[str, np.ndarray]:
    """Read the votes on each path as shares, float32 (7,) in the order of EMOTIONS; without paths nobody voted on.

    Raises:
        DataError: a column is missing or a vote is no number.
    """
    votes = {}
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        lacking = {"path", *_VOTE_COLUMNS.values()} - set(reader.fieldnames or ())
        if lacking:
            raise DataError(f"{table}: it lacks the columns {', '.join(sorted(lacking))}. Add them or move it away.")
        for number, row in enumerate(reader, start=2):
            try:
                counts = np.array([float(row[_VOTE_COLUMNS[emotion]] or 0) for emotion in EMOTIONS], np.float32)
            except (TypeError, ValueError) as error:
                raise DataError(f"{table}: line {number} has a vote that is not a number. Correct it.") from error
            if counts.sum() > 0:
                votes[row["path"]] = counts / counts.sum()
    return votes
