"""Everything that can go wrong and be foreseen, as one tree.

    FerflowError
    ├── VideoError      this file is at fault: record it, go on with the next
    │   └── SourceError it could not be got at, or did not keep still: say so, try again with the next run
    ├── DataError       the labelled data is at fault: nothing can be trained on it
    │   └── NothingToLearnError none of what is new can be learned: wait for more
    ├── ModelError      the installation is at fault: stop
    ├── ConfigError     a setting or an argument is at fault: stop
    ├── StoppedError    nothing is at fault: somebody stopped the work
    └── PieceError      nothing is lost: this video is to be analysed in one go

A message is one sentence or two for a person who is not an engineer: which file or setting, what is wrong
with it, what to do.
"""


class FerflowError(Exception):
    """Base of every error that ferflow raises on purpose."""


class VideoError(FerflowError):
    """One video cannot be analysed; the others can."""


class SourceError(VideoError):
    """A file is gone, cannot be read now, or changed while it was read: nothing is known of what is in it."""


class DataError(FerflowError):
    """Labelled images that cannot be trained on as they are."""


class NothingToLearnError(DataError):
    """New labelled images, but none to learn from: all are held out, or known already."""


class ModelError(FerflowError):
    """A model file is missing, damaged or does not fit this version of ferflow."""


class ConfigError(FerflowError):
    """A setting, a configuration file or an argument has no meaning."""


class StoppedError(FerflowError):
    """Somebody stopped the work; what was finished is kept."""


class PieceError(FerflowError):
    """A piece of a video would not show what the whole shows: the video is to be analysed in one go."""


class Stopped(BaseException):
    """Ends a stage between two frames. Not an Exception: nobody takes it for a fault and tries again."""


class Overtaken(Stopped):
    """Another run has taken over this video, because this process was not seen for long; the others go on."""
