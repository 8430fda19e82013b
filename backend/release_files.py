"""Puts manual pages and shell completion into wheel and source archive, once they have been made.

`make release` makes them before it builds. An installation from a checkout does without: they are
made by the program, which has to be installed first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

WHERE = {
    "build/man": "share/man/man1",
    "build/completion/bash": "share/bash-completion/completions",
    "build/completion/zsh": "share/zsh/site-functions",
    "build/completion/fish": "share/fish/vendor_completions.d",
}
"""Where systems look for what is made in a directory of the source tree."""


class ReleaseFiles(BuildHookInterface[Any]):
    """Adds what is there."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files to what is built; hatchling calls this.

        Args:
            version: `standard`, or `editable` for an installation that follows its source.
            build_data: What is built.
        """
        if version == "editable":
            return
        is_wheel = self.target_name == "wheel"
        for source, target in WHERE.items():
            for file in sorted((Path(self.root) / source).glob("*")):
                if is_wheel:
                    build_data["shared_data"][str(file)] = f"{target}/{file.name}"
                else:
                    build_data["force_include"][str(file)] = f"{source}/{file.name}"
