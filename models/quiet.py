"""what MediaPipe and LiteRT write to stderr -> what a person should see of it"""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

_CHATTER = re.compile(
    rb"(I\d{4} |INFO: |WARNING: All log messages before absl|W\d{4} .*inference_feedback_manager)",
)


@contextlib.contextmanager
def without_chatter() -> Iterator[None]:
    """Drop the known harmless lines that the libraries' C++ writes to stderr; pass on every other line afterwards."""
    sys.stderr.flush()
    try:
        real = os.dup(2)
    except OSError:  # no stderr to keep clean
        yield
        return
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(real, 2)
            os.close(real)
            caught.seek(0)
            for line in caught:
                if not _CHATTER.match(line):
                    os.write(2, line)
