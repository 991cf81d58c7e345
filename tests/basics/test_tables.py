"""Tables at terminals of any width: no line beyond the edge, nothing lost."""

from __future__ import annotations

from alora_trainer.basics.tables import markdown_table, plain_table

ROWS = [
    ["method", "general perplexity", "loss rise", "elements acc (%)", "acc_norm (%)", "seconds", "peak memory"],
    ["base", "12.34", "+0.00 %", "25.0 ± 4.3", "-", "-", "-"],
    ["alora|x", "12.40", "+0.16 %", "31.0 ± 4.6", "30.1 ± 4.6", "812", "1.25 GiB"],
]


def test_a_table_that_fits_is_one() -> None:
    whole = markdown_table(ROWS)
    assert whole.count("\n") == 3 and "alora\\|x" in whole
    assert markdown_table(ROWS, len(whole.splitlines()[0])) == whole
    assert markdown_table(ROWS, len(whole.splitlines()[0]) - 1) != whole
    plain = plain_table(ROWS)
    assert plain_table(ROWS, max(map(len, plain.splitlines()))) == plain


def test_a_wide_table_is_parted_and_keeps_every_cell() -> None:
    for table in (markdown_table, plain_table):
        for width in (40, 60, 80):
            parts = table(ROWS, width).split("\n\n")
            assert len(parts) > 1
            assert all(len(line) <= width for part in parts for line in part.splitlines())
            header = [
                cell for part in parts for cell in part.splitlines()[0].replace("|", "  ").split("  ") if cell.strip()
            ]
            names = [cell.strip() for cell in header]
            assert [name for name in names if name != "method"] == ROWS[0][1:] and names.count("method") == len(parts)
    # Narrower than any column: each beside the first, whole.
    assert len(markdown_table(ROWS, 10).split("\n\n")) == len(ROWS[0]) - 1
    assert markdown_table([["only"], ["one"]], 3).splitlines()[0] == "| only |"
