"""The kernel's table of backlogs, as different versions write it."""

from __future__ import annotations

from pathlib import Path

from whimbrel.network.softnet import frames_waiting

OLD = "00b00c4d 000006d2 0000000f 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000\n"
NEW = (
    "0b00c4d7 000006d2 0000000f 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 {:08x} {:08x}\n"
)


def test_the_backlogs_of_all_processors(tmp_path: Path) -> None:
    table = tmp_path / "softnet_stat"
    table.write_text(NEW.format(0x1F, 0) + NEW.format(2, 1))
    assert frames_waiting(table) == 33
    table.write_text(OLD)
    assert frames_waiting(table) == 0, "a kernel that does not say"
    assert frames_waiting() >= 0
