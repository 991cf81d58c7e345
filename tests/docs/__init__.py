"""The documentation: its links, its code blocks, its reference and its site."""
