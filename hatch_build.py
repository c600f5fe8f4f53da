"""What a package holds besides copies: the compiled parts. For an editable install `scripts/setup` makes them where
their sources lie.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).parent / "scripts"))

from provision import compiled


class CompiledParts(BuildHookInterface[Any]):
    """Any Python will do, but only this kind of machine."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        for name in compiled.SOURCES:
            source = Path(self.root) / name
            compiled.build(source)
            library = compiled.library_of(source).relative_to(self.root)
            build_data["artifacts"].append(f"/{library}")
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")
