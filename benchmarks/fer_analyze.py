"""videos -> their annotated copies and rows by the `fer` package, in one process: run by the Python of its environment

python fer_analyze.py FOLDER VIDEO [VIDEO ...]
"""

import sys
from pathlib import Path

from fer.classes import Video
from fer.fer import FER


def main() -> None:
    """Analyse as its documentation shows, with its defaults but for what would cost it more: no pictures of frames."""
    folder, *videos = sys.argv[1:]
    detector = FER()
    for path in videos:
        faces = Video(path, outdir=folder).analyze(detector, display=False, save_frames=False, zip_images=False)
        Path(folder, f"{Path(path).stem}.txt").write_text(str(faces), encoding="utf-8")


if __name__ == "__main__":
    main()
