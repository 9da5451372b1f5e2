"""The page at `/`."""

from __future__ import annotations

from html import escape

from broker_pipeline import __version__

_LINKS = (
    ("/v1/status", "workers, routes, queue"),
    ("/v1/jobs", "jobs, newest first"),
    ("/openapi.json", "description of the API"),
    ("/metrics", "metrics for Prometheus"),
    ("/readyz", "whether jobs will be run now"),
)
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>broker-pipeline</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:40em;margin:3em auto}}</style>
<h1>broker-pipeline {version}</h1>
<ul>
{links}
</ul>
<pre>curl -F image=@photo.jpg -F prompt='What is this?' http://HOST/v1/jobs
curl http://HOST/v1/jobs/JOB_ID?wait_s=20
curl -N http://HOST/v1/jobs/JOB_ID/events</pre>
</html>
"""


def render_index() -> str:
    """Return the page."""
    links = "\n".join(f'<li><a href="{path}">{path}</a>: {escape(text)}' for path, text in _LINKS)
    return _PAGE.format(version=escape(__version__), links=links)
