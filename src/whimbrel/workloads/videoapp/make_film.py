"""Makes the film; see `whimbrel.workloads.layers` for how scripts are run.

The view from a train: hills go by, the near ones faster, and a clock counts the film's own seconds, so that one sees
where it is and that it goes on. Pieces of some seconds are encoded beside each other and joined by copying.
"""

from __future__ import annotations

import json
import math
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imageio_ffmpeg  # type: ignore[import-not-found]

PIECE_S = 20
FRAMES_PER_S = 25
WIDTH, HEIGHT = 1280, 720
AT_ONCE = 2
# Neither the encoder's version nor the time of encoding goes into the file.
EXACT = ("-fflags", "+bitexact", "-flags:v", "+bitexact", "-flags:a", "+bitexact", "-map_metadata", "-1")
SKY = (0xBC, 0xD9, 0xDD), (0xF3, 0xE3, 0xC3)
HILLS = (
    ((0x7F, 0xA8, 0xA4), 330, 60, 3, 40),
    ((0x2F, 0x7D, 0x70), 450, 70, 2, 110),
    ((0x0B, 0x3B, 0x36), 590, 45, 5, 320),
)
"""Of each row: its colour, its height on the picture, how high and how many its hills are, and pixels per second."""
SUN = (960, 190, 62, (0xE2, 0xA2, 0x4A))

# A digit's seven bars: top, upper left, upper right, middle, lower left, lower right, bottom.
BARS = (119, 36, 93, 109, 46, 107, 123, 37, 127, 111)
DIGIT_W, DIGIT_H, THICK = 54, 96, 12
CLOCK_W, CLOCK_H = 314, 128
CLOCK_AT = "x=40:y=40"


def ffmpeg(*options: str) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *options], check=True)


def sky(path: Path) -> None:
    """A PPM (Netpbm): paler towards the horizon, and the sun."""
    x0, y0, radius, gold = SUN
    rows = []
    for y in range(HEIGHT):
        part = min(1.0, y / 450)
        row = bytearray(bytes(round(a + (b - a) * part) for a, b in zip(*SKY, strict=True)) * WIDTH)
        if abs(y - y0) < radius:
            half = round(math.sqrt(radius**2 - (y - y0) ** 2))
            row[3 * (x0 - half) : 3 * (x0 + half)] = bytes(gold) * (2 * half)
        rows.append(bytes(row))
    path.write_bytes(b"P6 %d %d 255\n" % (WIDTH, HEIGHT) + b"".join(rows))


def hills(path: Path, color: tuple[int, int, int], top: int, high: int, many: int) -> None:
    """A PAM with alpha, twice as wide as the picture and the same in both halves: it goes by for ever."""
    line = [
        top + round(high * (math.sin(2 * math.pi * many * x / WIDTH) + 0.5 * math.sin(6 * math.pi * many * x / WIDTH)))
        for x in range(WIDTH)
    ]
    inside, outside = bytes((*color, 255)), bytes(4)
    first = highest(top, high)
    rows = [b"".join(inside if y >= edge else outside for edge in line) * 2 for y in range(first, HEIGHT)]
    head = b"P7\nWIDTH %d\nHEIGHT %d\nDEPTH 4\nMAXVAL 255\nTUPLTYPE RGB_ALPHA\nENDHDR\n" % (2 * WIDTH, HEIGHT - first)
    path.write_bytes(head + b"".join(rows))


def highest(top: int, high: int) -> int:
    """The first line of a row of hills: an even one, because two lines share a colour."""
    return (top - round(1.5 * high)) // 2 * 2


def clock(path: Path, from_s: int, seconds: int) -> None:
    """A picture of grey levels for each second, one after the other: minutes and seconds in bars, light on dark."""
    path.write_bytes(b"".join(_face(from_s + second) for second in range(seconds)))


def _face(second: int) -> bytes:
    picture = bytearray(b"\x18" * (CLOCK_W * CLOCK_H))

    def box(x: int, y: int, width: int, height: int) -> None:
        for row in range(y, y + height):
            picture[row * CLOCK_W + x : row * CLOCK_W + x + width] = b"\xf4" * width

    y, half = (CLOCK_H - DIGIT_H) // 2, DIGIT_H // 2
    x = 18
    for place, figure in enumerate(f"{second // 60:02d}{second % 60:02d}"):
        if place == 2:
            for dot in (half - 22, half + 12):
                box(x, y + dot, 10, 10)
            x += 20
        wide, tall = DIGIT_W - 2 * THICK, half - THICK - THICK // 2
        right, upper, lower = DIGIT_W - THICK, THICK, half + THICK // 2
        parts = (
            (THICK, 0, wide, THICK), (0, upper, THICK, tall), (right, upper, THICK, tall),
            (THICK, half - THICK // 2, wide, THICK), (0, lower, THICK, tall), (right, lower, THICK, tall),
            (THICK, DIGIT_H - THICK, wide, THICK),
        )  # fmt: skip
        for bit, (dx, dy, width, height) in enumerate(parts):
            if BARS[int(figure)] >> bit & 1:
                box(x + dx, y + dy, width, height)
        x += DIGIT_W + 14
    return bytes(picture)


def piece(number: int, seconds: int, video_kbps: int, audio_kbps: int) -> None:
    from_s = number * seconds
    clock(Path(f"clock-{number}.raw"), from_s, seconds)
    # Each picture is read and turned into the film's colours once, and then repeated: that is most of the work.
    again = f"loop=loop=-1:size=1,setpts=N/{FRAMES_PER_S}/TB,fps={FRAMES_PER_S}"
    inputs, chain, below = ["-i", "sky.ppm"], [f"[0]format=yuv420p,{again}[row0]"], "row0"
    for row, (_, top, high, _, speed) in enumerate(HILLS, 1):
        inputs += ["-i", f"hills-{row}.pam"]
        chain.append(f"[{row}]format=yuva420p,{again}[hills{row}]")
        by = f"-mod((t+{from_s})*{speed},{WIDTH})"
        chain.append(f"[{below}][hills{row}]overlay=x='{by}':y={highest(top, high)}[row{row}]")
        below = f"row{row}"
    grey = f"-f rawvideo -pix_fmt gray -s {CLOCK_W}x{CLOCK_H} -r 1"
    inputs += [*grey.split(), "-i", f"clock-{number}.raw"]
    inputs += ["-f", "lavfi", "-i", "sine=frequency=196:beep_factor=2,volume=0.2"]
    chain.append(f"[{below}][{len(HILLS) + 1}]overlay={CLOCK_AT}:eof_action=repeat[film]")
    ffmpeg(
        *inputs, "-filter_complex", ";".join(chain), "-map", "[film]", "-map", f"{len(HILLS) + 2}:a",
        *("-t", str(seconds), "-c:v", "libx264", "-preset", "ultrafast", "-profile:v", "main", "-pix_fmt", "yuv420p"),
        # on one thread, because with several x264 gives other bytes each time; padded to a constant rate
        *("-g", str(2 * FRAMES_PER_S), "-b:v", f"{video_kbps}k", "-minrate", f"{video_kbps}k"),
        *("-maxrate", f"{video_kbps}k", "-bufsize", f"{video_kbps}k", "-x264-params", "nal-hrd=cbr:threads=1"),
        *("-c:a", "aac", "-b:a", f"{audio_kbps}k", *EXACT, f"piece-{number}.mp4"),
    )  # fmt: skip


def main() -> None:
    options = json.loads(Path("options.json").read_text())
    seconds, video_kbps, audio_kbps = (int(options[name]) for name in ("seconds", "video_kbps", "audio_kbps"))
    piece_s = min(PIECE_S, seconds)
    count = seconds // piece_s
    sky(Path("sky.ppm"))
    for row, (color, top, high, many, _) in enumerate(HILLS, 1):
        hills(Path(f"hills-{row}.pam"), color, top, high, many)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda number: piece(number, piece_s, video_kbps, audio_kbps), range(count)))
    Path("pieces.txt").write_text("".join(f"file piece-{number}.mp4\n" for number in range(count)))
    film = Path("image/srv/film.mp4")
    film.parent.mkdir(parents=True)
    ffmpeg("-f", "concat", "-i", "pieces.txt", "-c", "copy", "-movflags", "+faststart", *EXACT, str(film))
    about = {"seconds": count * piece_s, "bytes": film.stat().st_size}
    Path("image/srv/film.json").write_text(json.dumps(about))


if __name__ == "__main__":
    main()
