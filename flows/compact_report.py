"""what a compaction did -> the sentence that people read of it"""

from ferflow.compaction import Compacted
from ferflow.storage import Results, absolute, place, reach


def results_at(text: str) -> Results | None:
    """The results that a person names; None if there are none yet.

    Raises:
        ConfigError: the bucket cannot be reached.
    """
    root = absolute(place(text))
    reach(root)
    results = Results(root)
    return results if results.table("videos").is_dir() else None


def describe_compacted(named: str, results: Results | None, compacted: Compacted | None) -> str:
    """What was done, in a sentence or two.

    Args:
        named: the results as a person named them.
        results: the results; None if there are none yet.
        compacted: what was done to them; None if another process is at it.
    """
    if results is None:
        return f"There are no results in {named} yet, so there is nothing to merge."
    if compacted is None:
        return f"Another process is merging the files in {named}, so there is nothing to do here."
    left = f" Left as they are: {len(compacted.left)}, see the log." if compacted.left else ""
    if not compacted.small_files:
        return f"Nothing to merge in {named}: past days are merged already.{left}"
    days = "a day" if compacted.days == 1 else f"{compacted.days} days"
    files = "file" if compacted.big_files == 1 else "files"
    return f"{compacted.small_files:,} small files of {days} are {compacted.big_files:,} big {files} now.{left}"
