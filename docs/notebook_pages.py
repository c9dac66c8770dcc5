"""Makes pages of the site of examples/notebooks: their text and code as Markdown, their outputs as they are kept in them.

A hook of MkDocs. Links to notebooks become links to their pages, and are checked like all others.
"""

import html
import json
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

NOTEBOOKS = Path(__file__).resolve().parent.parent / "examples" / "notebooks"
_INDEX = "notebooks/index.md"
_LINK = re.compile(r"\]\((?:\.\./)*(?:examples/notebooks/|(?=\w+\.ipynb))(\w+\.ipynb|README\.md)?")
_TO_DOCS = "](../../docs/"
_OUTPUTS: dict[str, str] = {}
"""Placeholder -> what stands there in the finished page; neither Markdown nor the search index reads pictures."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        uri = f"notebooks/{path.stem}.md"
        files.append(File.generated(config, uri, content=as_markdown(json.loads(path.read_text()), path.stem)))
    files.append(File.generated(config, _INDEX, content=(NOTEBOOKS / "README.md").read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to notebooks and, in these, to the documentation, from where they are in the repository to the site."""
    here = Path(page.file.src_uri).parent

    def to_page(match: re.Match[str]) -> str:
        name = match[1] or "README.md"
        target = _INDEX if name == "README.md" else f"notebooks/{Path(name).stem}.md"
        return "](" + Path(os.path.relpath(target, here)).as_posix()

    if here.name == "notebooks":
        markdown = markdown.replace(_TO_DOCS, "](../")
    return _LINK.sub(to_page, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    for placeholder in re.findall(r'<div class="notebook-output" id="[^"]+"></div>', output):
        output = output.replace(placeholder, _OUTPUTS[placeholder])
    return output


def as_markdown(notebook: dict[str, Any], name: str) -> str:
    """The page of a notebook, with placeholders for its outputs."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        else:
            parts.append(f"```python\n{source}\n```")
            parts += [_place(each, f"{name}-{len(_OUTPUTS)}") for each in cell["outputs"]]
    return "\n\n".join(parts)


def _place(output: dict[str, Any], name: str) -> str:
    """An output in Markdown: itself, if it is Markdown, or its placeholder."""
    kinds = {kind: "".join(text) for kind, text in output.get("data", {}).items() if kind != "application/json"}
    if "text/markdown" in kinds:
        return kinds["text/markdown"]
    if "image/png" in kinds:
        shown = f'<img alt="" src="data:image/png;base64,{kinds["image/png"].strip()}">'
    else:
        shown = kinds.get("text/html") or _preformatted(kinds.get("text/plain", "".join(output.get("text", ""))))
    placeholder = f'<div class="notebook-output" id="{name}"></div>'
    _OUTPUTS[placeholder] = f'<div class="notebook-output">{shown}</div>'
    return placeholder


def _preformatted(text: str) -> str:
    return f"<pre><code>{html.escape(text)}</code></pre>"
