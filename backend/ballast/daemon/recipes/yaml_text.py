"""YAML as people write it: keys in their order, scripts as blocks."""

from __future__ import annotations

import yaml


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as a block."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent lists in mappings, as most people do."""
        return super().increase_indent(flow, indentless=False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def yaml_text(document: object, comment: str = "") -> str:
    """Return a document, perhaps under a comment of whole lines."""
    text: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True)
    return "".join(f"# {line}\n" for line in comment.splitlines()) + text
