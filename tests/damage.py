"""a real clip and a seed -> a damaged one: what disks, cables, recorders and strangers do to a file"""

import random
import struct
from pathlib import Path


def damage(clip: bytes, other: bytes, rng: random.Random) -> bytes:
    """One of the ways in which a file goes bad, or two of them."""
    content = bytearray(clip)
    for way in rng.sample([_flip, _cut, _splice, _swap_header, _blank, _claim], k=rng.choice((1, 1, 2))):
        content = way(content, other, rng)
    return bytes(content)


def _flip(content: bytearray, other: bytes, rng: random.Random) -> bytearray:
    """Single bits, here and there or close together, also in the header."""
    start, end = rng.choice(((0, len(content)), (0, min(2000, len(content))), (len(content) // 2, len(content))))
    for _ in range(rng.choice((1, 5, 50, 500))):
        content[rng.randrange(start, end)] ^= 1 << rng.randrange(8)
    return content


def _cut(content: bytearray, other: bytes, rng: random.Random) -> bytearray:
    """The end, the beginning or the middle is missing."""
    start, end = sorted(rng.randrange(len(content)) for _ in range(2))
    return rng.choice(
        (content[: max(end, 1)], content[min(start, len(content) - 1) :], content[:start] + content[end:])
    )


def _splice(content: bytearray, other: bytes, rng: random.Random) -> bytearray:
    """A piece of another file stands where its own should."""
    length = rng.randrange(1, max(len(other) // 2, 2))
    begin, at = rng.randrange(len(other)), rng.randrange(len(content))
    return content[:at] + other[begin : begin + length] + content[at + rng.choice((0, length)) :]


def _swap_header(content: bytearray, other: bytes, rng: random.Random) -> bytearray:
    """It begins as another file, perhaps of another format, does."""
    length = rng.choice((16, 64, 500, 4000))
    return bytearray(other[:length]) + content[length:]


def _blank(content: bytearray, other: bytes, rng: random.Random) -> bytearray:
    """A block of zeros or ones, as a disk reserves it."""
    at, length = rng.randrange(len(content)), rng.choice((8, 512, 4096))
    content[at : at + length] = rng.choice((b"\0", b"\xff")) * len(content[at : at + length])
    return content


def _claim(content: bytearray, other: bytes, rng: random.Random) -> bytearray:
    """A number in the header is far too large, or none."""
    at = rng.randrange(min(3000, max(len(content) - 4, 1)))
    number = rng.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 16_000, 1_000_000))
    content[at : at + 4] = struct.pack(rng.choice((">I", "<I")), number)
    return content


def write_damaged(clips: list[Path], count: int, folder: Path, *, seed: int) -> set[Path]:
    """So many damaged files of some clips in a folder, the same for the same seed and clips; gives the clips drawn."""
    rng = random.Random(seed)
    contents = [clip.read_bytes() for clip in clips]
    folder.mkdir()
    drawn = set()
    for number in range(count):
        index = rng.randrange(len(clips))
        content = damage(contents[index], rng.choice(contents), rng) or b"\0"
        (folder / f"{number:03d}{clips[index].suffix}").write_bytes(content)
        drawn.add(clips[index])
    return drawn
