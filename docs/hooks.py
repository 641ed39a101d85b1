"""What the build of the site does besides Markdown: it draws the diagrams.

A diagram is a fence of `mermaid` in the text. It is drawn when the site is built, by the mermaid
library itself inside of the Python process, so that a page needs neither scripts nor another host.
"""

import functools
import itertools

import mermaidx

_numbers = itertools.count()


def on_config(config):
    """Registers the drawing of `mermaid` fences."""
    fences = config.mdx_configs.setdefault("pymdownx.superfences", {})
    fences["custom_fences"] = [{"name": "mermaid", "class": "diagram", "format": _figure}]
    return config


def _figure(source, language, css_class, options, md, **kwargs) -> str:
    # All diagrams of mermaid have one id, to which their styles refer.
    drawn = _draw(source).replace("my-svg", f"diagram-{next(_numbers)}")
    return f'<div class="{css_class}">{drawn}</div>'


@functools.cache
def _draw(source: str) -> str:
    config = {
        "flowchart": {"htmlLabels": True, "wrappingWidth": 500, "rankSpacing": 35},
        "themeVariables": {"fontSize": "13px"},
    }
    return mermaidx.render(source, theme="neutral", config=config).svg()
