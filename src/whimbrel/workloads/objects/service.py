"""Object detection as a service, in the place of *Yolo* in paper `coordinated` (V-A): a network of the same kind
(PicoDet: one pass over the picture, boxes and classes at four scales) finds the parts of a document's page. Runs inside
the container.

Output of the network, for each scale: scores (cells x classes), and for each cell the distances to the four edges of
its box, each as a distribution over 0…7 strides whose mean is the distance (Li et al., Generalized Focal Loss, 2020).
"""

from __future__ import annotations

from typing import Any

import numpy as np  # type: ignore[import-not-found,unused-ignore]
import onnxruntime  # type: ignore[import-not-found]
from PIL import Image  # type: ignore[import-not-found,unused-ignore]
from server import serve  # type: ignore[import-not-found]

MODEL = "/srv/models/layout_cdla.onnx"
HEIGHT, WIDTH = 416, 320
STRIDES = (8, 16, 32, 64)
MEAN, DEVIATION = (  # of the network's lessons, by colour; for values of 0 to 255
    np.array(values, np.float32).reshape(3, 1, 1) * 255 for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
)
SURE = 0.5  # the least score of what is reported
SAME = 0.5  # boxes that overlap more than this are one object


class Pages:
    """The network is loaded once."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # a node's cores are for all its services
        options.enable_cpu_mem_arena = False  # which would keep what a picture took for the next one
        self.session = onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name
        self.labels = self.session.get_modelmeta().custom_metadata_map["character"].split("\n")
        self.seen = np.empty((1, 3, HEIGHT, WIDTH), np.float32)  # in place: each step in memory of its own was 8 MB

    def enrol(self, known: dict[str, Any], name: str, picture: Any) -> None:
        raise ValueError("there is nothing to enrol")

    def work(self, known: dict[str, Any], picture: Any) -> list[dict[str, Any]]:
        """The objects on the page, the surest first; boxes are left, top, right, bottom in pixels."""
        height, width = picture.shape[:2]
        if (height, width) != (HEIGHT, WIDTH):
            picture = np.asarray(Image.fromarray(picture).resize((WIDTH, HEIGHT)))
        np.subtract(picture.transpose(2, 0, 1), MEAN, out=self.seen[0])
        self.seen /= DEVIATION
        outputs = self.session.run(None, {self.input: self.seen})
        scale = np.array([width / WIDTH, height / HEIGHT] * 2)
        return [
            {
                "name": self.labels[label],
                "score": round(score, 3),
                "box": [round(float(edge), 1) for edge in box * scale],
            }
            for score, label, box in distinct(candidates(outputs))
        ]


def candidates(outputs: list[Any]) -> list[tuple[float, int, Any]]:
    """(score, class, box) of every cell that is sure."""
    found = []
    scales = len(STRIDES)
    for stride, scores, edges in zip(STRIDES, outputs[:scales], outputs[scales:], strict=True):
        columns = -(-WIDTH // stride)
        for cell in np.flatnonzero(scores[0].max(1) > SURE):
            row, column = divmod(int(cell), columns)
            x, y = (column + 0.5) * stride, (row + 0.5) * stride
            left, top, right, bottom = distances(edges[0][cell]) * stride
            label = int(scores[0][cell].argmax())
            found.append((float(scores[0][cell, label]), label, np.array([x - left, y - top, x + right, y + bottom])))
    return found


def distances(logits: Any) -> Any:
    """The means of four distributions, in strides."""
    weights = logits.reshape(4, -1)
    weights = np.exp(weights - weights.max(1, keepdims=True))
    return (weights * np.arange(weights.shape[1])).sum(1) / weights.sum(1)


def distinct(found: list[tuple[float, int, Any]]) -> list[tuple[float, int, Any]]:
    """Of boxes that overlap the surest."""
    kept: list[tuple[float, int, Any]] = []
    for item in sorted(found, key=lambda item: -item[0]):
        if all(overlap(item[2], other[2]) < SAME for other in kept):
            kept.append(item)
    return kept


def overlap(one: Any, other: Any) -> float:
    """Intersection over union."""
    across = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    down = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return float(across * down / (sum(areas) - across * down))


if __name__ == "__main__":
    serve(Pages())
