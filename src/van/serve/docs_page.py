"""The page under ``/docs``: every route, made from the OpenAPI document; it loads nothing from anywhere."""

from html import escape
from typing import Any


def docs_page(document: dict[str, Any]) -> str:
    """HTML without scripts or styles of its own: what each route is for, its options, and what it refuses."""
    parts = []
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            options = "".join(
                f"<li><code>{escape(option['name'])}</code> ({escape(option['in'])}): "
                f"{escape(option.get('description', ''))}</li>"
                for option in route.get("parameters", [])
            )
            bodies = ", ".join(
                f"<code>{escape(kind)}</code>" for kind in route.get("requestBody", {}).get("content", {})
            )
            answers = "".join(
                f"<li><code>{escape(status)}</code> {escape(answer.get('description', ''))}</li>"
                for status, answer in route.get("responses", {}).items()
            )
            parts.append(
                f"<section><h2><code>{escape(method.upper())} {escape(path)}</code></h2>"
                f"<p>{escape(route.get('summary', ''))}</p>"
                + (f"<p>Body: {bodies}</p>" if bodies else "")
                + (f"<h3>Options</h3><ul>{options}</ul>" if options else "")
                + f"<details><summary>Answers</summary><ul>{answers}</ul></details></section>"
            )
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width"></head>'
        f'<body><main><h1>{title}</h1><p>The whole of it, for programs: <a href="openapi.json">openapi.json</a></p>'
        f"{''.join(parts)}</main></body></html>"
    )
