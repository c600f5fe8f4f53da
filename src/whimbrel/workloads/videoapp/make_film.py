"""Makes the film; see `whimbrel.workloads.layers` for how scripts are run.

Slow colours, in a piece of some seconds that is repeated by copying the encoded stream.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import imageio_ffmpeg  # type: ignore[import-not-found]

PIECE_S = 20
FRAMES_PER_S = 25
SIZE = "1280x720"
# Neither the encoder's version nor the time of encoding goes into the file.
EXACT = ("-fflags", "+bitexact", "-flags:v", "+bitexact", "-flags:a", "+bitexact", "-map_metadata", "-1")
PICTURE = (
    f"gradients=size={SIZE}:rate={FRAMES_PER_S}:c0=0x0b3b36:c1=0x1f7a6d:c2=0xe2a24a:c3=0x24446b:n=4:seed=4:speed=0.02"
)


def ffmpeg(*options: str) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *options], check=True)


def main() -> None:
    options = json.loads(Path("options.json").read_text())
    seconds, video_kbps, audio_kbps = (int(options[name]) for name in ("seconds", "video_kbps", "audio_kbps"))
    piece_s = min(PIECE_S, seconds)
    ffmpeg(
        *("-f", "lavfi", "-i", PICTURE, "-f", "lavfi", "-i", "sine=frequency=196:beep_factor=2,volume=0.2"),
        *("-t", str(piece_s), "-c:v", "libx264", "-preset", "ultrafast", "-profile:v", "main", "-pix_fmt", "yuv420p"),
        # on one thread, because with several x264 gives other bytes each time; padded to a constant rate
        *("-g", str(2 * FRAMES_PER_S), "-b:v", f"{video_kbps}k", "-minrate", f"{video_kbps}k"),
        *("-maxrate", f"{video_kbps}k", "-bufsize", f"{video_kbps}k", "-x264-params", "nal-hrd=cbr:threads=1"),
        *("-c:a", "aac", "-b:a", f"{audio_kbps}k", *EXACT, "piece.mp4"),
    )
    Path("pieces.txt").write_text("file piece.mp4\n" * (seconds // piece_s))
    film = Path("image/srv/film.mp4")
    film.parent.mkdir(parents=True)
    ffmpeg("-f", "concat", "-i", "pieces.txt", "-c", "copy", "-movflags", "+faststart", *EXACT, str(film))
    about = {"seconds": seconds // piece_s * piece_s, "bytes": film.stat().st_size}
    Path("image/srv/film.json").write_text(json.dumps(about))


if __name__ == "__main__":
    main()
