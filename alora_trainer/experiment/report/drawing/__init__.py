"""Figures as SVG that a page needs nothing else for, its look and its few lines of JavaScript: reports and boards share them."""
