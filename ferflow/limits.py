"""a video's picture size and its number of frames -> nothing, or a sentence that refuses it before it costs anything"""

from dataclasses import dataclass
from pathlib import Path

from ferflow.errors import VideoError


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a video may claim. A file of a few kilobytes can claim a picture that fills all memory."""

    max_megapixels: float = 64.0
    """Million pixels of a picture; one of 8K has 33."""
    max_frames: int = 5_000_000
    """A day at 50 a second has 4.3 million."""

    @property
    def max_pixels(self) -> int:
        """Pixels of a picture."""
        return round(self.max_megapixels * 1e6)

    def check_picture(self, path: Path, width: int, height: int) -> None:
        """Make sure that a picture can be decoded.

        Raises:
            VideoError: it is too large.
        """
        if width * height > self.max_pixels:
            raise VideoError(
                f"{path}: its picture of {width} x {height} is larger than {self.max_megapixels:g} million pixels, "
                "which is refused. If it really is one, raise max_megapixels and analyse it again with --force."
            )

    def check_frames(self, path: Path, count: int, *, size_bytes: int | None = None) -> None:
        """Make sure that there are not too many frames.

        Args:
            path: the video.
            count: frames that it claims, or that were met so far.
            size_bytes: the file's length; no frame takes less than one byte. None where they were really met.

        Raises:
            VideoError: there are.
        """
        if size_bytes is not None and count > size_bytes:
            raise VideoError(
                f"{path}: it claims {count:,} frames in {size_bytes:,} bytes, which cannot be; the file is damaged."
            )
        if count > self.max_frames:
            raise VideoError(
                f"{path}: it has more than {self.max_frames:,} frames, which is refused. If it really is that long, "
                "raise max_frames and analyse it again with --force, or cut it."
            )


DEFAULT_LIMITS = Limits()
"""What holds where nobody says otherwise."""
