"""Puts the models into the image and makes the phone's pictures out of photographs; see `whimbrel.workloads.layers`
for how scripts are run."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np  # type: ignore[import-not-found,unused-ignore]
from PIL import Image, ImageOps  # type: ignore[import-not-found,unused-ignore]

MODELS = ("shape_predictor_68_face_landmarks.dat", "dlib_face_recognition_resnet_model_v1.dat")
SIDE = 320  # pixels of each picture, both ways
LONGER_SIDE = 800  # pixels of a photograph before its face is cut out
# photograph -> whose face, its middle, and its width, all in pixels of the reduced photograph
PHOTOGRAPHS = {
    "obama.jpg": ("obama", 344, 184, 180),
    "obama2.jpg": ("obama", 204, 284, 180),
    "obama3.jpg": ("obama", 267, 152, 105),
    "biden.jpg": ("biden", 210, 141, 125),
}
ENROLLED = ("obama.jpg", "biden.jpg")


def face_of(photograph: Path, x: int, y: int, width: int, room: float) -> Any:
    """A square with the face in the middle, `room` times as much around it."""
    image = Image.open(photograph).convert("RGB")
    scale = LONGER_SIDE / max(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)))
    half = round(width * 1.45 * room)
    return image.crop((x - half, y - half, x + half, y + half)).resize((SIDE, SIDE))


def variants(face: Any) -> dict[str, Any]:
    """As a camera would see it another time."""
    return {
        "plain": face,
        "mirrored": ImageOps.mirror(face),
        "darker": face.point(lambda level: level * 0.7),
        "tilted": face.rotate(8),
    }


def main() -> None:
    models = Path("sources/face-recognition-models/face_recognition_models/models")
    for name in MODELS:
        target = Path("image/srv/models", name)
        target.parent.mkdir(parents=True, exist_ok=True)
        (models / name).rename(target)
    photographs = Path("sources/face-recognition/tests/test_images")
    pictures = []
    for file, (person, x, y, width) in PHOTOGRAPHS.items():
        for room in (1.0, 1.3):
            for kind, image in variants(face_of(photographs / file, x, y, width, room)).items():
                name = f"{Path(file).stem}-{kind}-{room}.jpg"
                image.save(Path("client", name), quality=90)
                decoded = np.asarray(Image.open(Path("client", name)).convert("RGB"))
                pictures.append({"file": name, "person": person, "crc": zlib.crc32(decoded.tobytes())})
    enrol = [{"file": f"{Path(file).stem}-plain-1.0.jpg", "name": PHOTOGRAPHS[file][0]} for file in ENROLLED]
    listed = {"enrol": enrol, "pictures": pictures, "picture_bytes": SIDE * SIDE * 3}
    Path("client/pictures.json").write_text(json.dumps(listed, indent=1))


if __name__ == "__main__":
    main()
