"""Face recognition as a service, in the place of *Openface* in paper `coordinated` (V-A): finds faces, upright by 68
landmarks as Openface does, describes each by 128 numbers, and names the nearest of the faces that the session has
enrolled. Runs inside the container.
"""

from __future__ import annotations

from typing import Any

import dlib  # type: ignore[import-not-found]
import numpy as np  # type: ignore[import-not-found,unused-ignore]
from server import serve  # type: ignore[import-not-found]

MODELS = "/srv/models/"
SAME_PERSON = 0.6  # the distance below which dlib's authors take two faces for the same
UNKNOWN = "unknown"


class Faces:
    """The models are loaded once and then only read."""

    def __init__(self) -> None:
        self.find = dlib.get_frontal_face_detector()
        self.landmarks = dlib.shape_predictor(MODELS + "shape_predictor_68_face_landmarks.dat")
        self.describe = dlib.face_recognition_model_v1(MODELS + "dlib_face_recognition_resnet_model_v1.dat")

    def described(self, picture: Any) -> list[tuple[Any, Any]]:
        """Each face's box and its 128 numbers."""
        return [
            (box, np.array(self.describe.compute_face_descriptor(picture, self.landmarks(picture, box))))
            for box in self.find(picture, 0)
        ]

    def enrol(self, known: dict[str, Any], name: str, picture: Any) -> None:
        faces = self.described(picture)
        if len(faces) != 1 or not name:
            raise ValueError(f"enrolling needs a name and exactly one face, there are {len(faces)}")
        known[name] = faces[0][1]

    def work(self, known: dict[str, Any], picture: Any) -> list[dict[str, Any]]:
        found = []
        for box, numbers in self.described(picture):
            distances = {name: float(np.linalg.norm(numbers - other)) for name, other in known.items()}
            nearest = min(distances, key=distances.__getitem__, default=UNKNOWN)
            distance = distances.get(nearest, 1.0)
            found.append(
                {
                    "name": nearest if distance < SAME_PERSON else UNKNOWN,
                    "distance": round(distance, 3),
                    "box": [box.left(), box.top(), box.right(), box.bottom()],
                }
            )
        return found


if __name__ == "__main__":
    serve(Faces())
