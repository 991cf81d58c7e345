"""Figures as SVG, and pages around them that need nothing else: reports and boards share their look and script."""
