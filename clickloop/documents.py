"""What is read of a document, the same everywhere."""

from __future__ import annotations


def document_text(title: str, text: str) -> str:
    """What the encoder reads of a document."""
    return f"{title}\n{text}" if title and text else title or text
