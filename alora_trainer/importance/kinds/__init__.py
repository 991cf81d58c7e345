"""Kinds of importance: what is kept of one weight's, in which formats, and how it is checked, measured and added."""
