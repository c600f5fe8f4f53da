"""Makes the video and the list of its blocks' digests; see `whimbrel.workloads.layers` for how scripts are run.

A test picture with noise, so that the encoder really needs its bit rate, in a piece of some seconds that is repeated
by copying the encoded stream: seconds of work instead of minutes.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import imageio_ffmpeg  # type: ignore[import-not-found]

PIECE_S = 17  # 442 = 26 * 17
FRAMES_PER_S = 25
BLOCK_BYTES = 1024
DIGEST_BYTES = 8
# Neither the encoder's version nor the time of encoding goes into the file.
EXACT = ("-fflags", "+bitexact", "-flags:v", "+bitexact", "-flags:a", "+bitexact", "-map_metadata", "-1")


def ffmpeg(*options: str) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *options], check=True)


def encode_piece(path: Path, seconds: int, video_kbps: int, audio_kbps: int) -> None:
    picture = f"testsrc2=size=1280x720:rate={FRAMES_PER_S},noise=alls=12:allf=t:all_seed=1"
    rate = f"{video_kbps}k"
    ffmpeg(
        *("-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", "anoisesrc=color=pink:amplitude=0.3:seed=1"),
        *("-t", str(seconds), "-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p"),
        # the same bit rate throughout, with padding where the picture does not need it; on one thread, because
        # with several and a constant bit rate x264 gives other bytes each time
        *("-g", str(2 * FRAMES_PER_S), "-b:v", rate, "-minrate", rate, "-maxrate", rate, "-bufsize", rate),
        *("-x264-params", "nal-hrd=cbr:threads=1", "-c:a", "aac", "-b:a", f"{audio_kbps}k"),
        *EXACT,
        str(path),
    )


def main() -> None:
    options = json.loads(Path("options.json").read_text())
    seconds = int(options["seconds"])
    piece_s = min(PIECE_S, seconds)
    encode_piece(Path("piece.mp4"), piece_s, int(options["video_kbps"]), int(options["audio_kbps"]))
    Path("pieces.txt").write_text("file piece.mp4\n" * (seconds // piece_s))
    video = Path("image/srv/www/video.mp4")
    video.parent.mkdir(parents=True)
    ffmpeg("-f", "concat", "-i", "pieces.txt", "-c", "copy", "-movflags", "+faststart", *EXACT, str(video))
    digests = bytearray()
    with video.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digests += hashlib.blake2b(block, digest_size=DIGEST_BYTES).digest()
    Path("client/blocks.bin").write_bytes(digests)
    about = {"bytes": video.stat().st_size, "seconds": seconds // piece_s * piece_s, "block_bytes": BLOCK_BYTES,
             "digest_bytes": DIGEST_BYTES}  # fmt: skip
    Path("client/video.json").write_text(json.dumps(about))


if __name__ == "__main__":
    main()
