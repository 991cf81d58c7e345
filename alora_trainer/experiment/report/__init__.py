"""From finished runs to a page that says what was forgotten, what was learned, and how sure that is.

method_result.py and results.py are what a run leaves behind, and its file; text_table.py and gate.py read it at the end of a
command, item_comparison.py what was answered item by item. For a report, gather.py sorts the runs; variant_rows.py,
significance.py, matched.py and figures/ make numbers of them, verdict.py sentences; drawing/ draws, for boards,
too; page_html.py and page_markdown.py make pages of the numbers; report_files.py calls them in turn, which needs
the extra `report` (scipy).
"""
