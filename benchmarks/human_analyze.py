"""videos -> boxes and emotions of every frame by `@vladmandic/human`, which reads no video itself

python human_analyze.py ENVIRONMENT FOLDER VIDEO [VIDEO ...]
"""

import struct
import subprocess
import sys
from pathlib import Path

import av
import numpy as np


def main() -> None:
    """Decode each video, hand its frames to one process of Node, and write what that answers."""
    environment, folder, *videos = sys.argv[1:]
    script = Path(__file__).parent / "human" / "analyze.mjs"
    with (
        Path(folder, "faces.json").open("wb") as answers,
        subprocess.Popen(["node", script, environment], stdin=subprocess.PIPE, stdout=answers) as human,
    ):
        assert human.stdin is not None
        for number, path in enumerate(videos):
            with av.open(path) as container:
                container.streams.video[0].thread_type = "AUTO"
                for frame in container.decode(video=0):
                    human.stdin.write(struct.pack("<III", number, frame.width, frame.height))
                    human.stdin.write(np.ascontiguousarray(frame.to_ndarray(format="rgb24")).data)
        human.stdin.close()
    if human.returncode:
        raise SystemExit(human.returncode)


if __name__ == "__main__":
    main()
