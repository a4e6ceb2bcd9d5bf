"""HTML files that load nothing and run no script but their own: opened from disk, in light, dark and print.

Prompts and names are hostile input. Templates escape every text, and a content policy names the page's own
scripts by their digests.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.utils import PlotlyJSONEncoder

_ROOT = Path(__file__).parents[1]  # templates, styles and scripts are named by their path below lvd/
_SHARED_STYLES = ("report/web/palette.css", "report/web/base.css")

_ENVIRONMENT = Environment(
    loader=FileSystemLoader(_ROOT),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.policies["json.dumps_function"] = partial(json.dumps, cls=PlotlyJSONEncoder)  # figures, too
_ENVIRONMENT.policies["json.dumps_kwargs"] = {}


def source(name: str) -> str:
    """A style or a script, by its path below lvd/."""
    return (_ROOT / name).read_text(encoding="utf-8")


def render(
    template: str, *, styles: Sequence[str], scripts: Sequence[str], media: str, **values: Any
) -> bytes:
    """A template that extends `report/web/base.html`, as a file.

    Args:
        template: its path below lvd/.
        styles: CSS files, by their paths; the palette and what all pages share come first.
        scripts: their text. The template places them; no other script runs.
        media: what the content policy lets the page load, "img-src data:" for images within it.
        values: what else the template shows.
    """
    page = _ENVIRONMENT.get_template(template).render(
        **values,
        policy=f"default-src 'none'; {media}; style-src 'unsafe-inline'; script-src {_allowed(scripts)}",
        style=Markup("".join(map(source, (*_SHARED_STYLES, *styles)))),
        scripts=[Markup(script) for script in scripts],
    )
    return page.encode("utf-8", "replace")


def _allowed(scripts: Sequence[str]) -> str:
    """What a content policy names so that these inline scripts run, and no other."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    return " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'"
