"""pictures + words -> a Markdown page that carries the pictures in itself, for Prefect's artifacts"""

import base64
from collections.abc import Sequence
from pathlib import Path


def page_of(text: str, pictures: Sequence[Path]) -> str:
    """Put PNG files below a text; the page needs no file afterwards, so it is seen from any machine."""
    shown = [
        f"### {path.stem}\n\n![{path.stem}](data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()})"
        for path in pictures
    ]
    return "\n\n".join([text, *shown]) + "\n"
