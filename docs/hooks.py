# SPDX-License-Identifier: Apache-2.0
"""Files of the repository that pages show and that live outside of docs/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
SHOWN = ("benchmarks/roofline.svg",)


def on_files(files: Files, config: Any) -> Files:
    """Let each be a file of the site, at its path in the repository."""
    for path in SHOWN:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Pages name them by the path that also works where the repository is read without the site."""
    for path in SHOWN:
        markdown = markdown.replace(f"(../{path})", f"({path})")
    return markdown
