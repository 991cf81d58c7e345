"""From finished runs to a page that says what was forgotten, what was learned, and how sure that is.

gather.py reads runs and sorts them; table.py, significance.py and figures/ make numbers of them; page_html.py and
page_markdown.py make pages of the numbers; build.py calls them in turn. Needs the extra `report` (scipy, matplotlib).
"""
