"""One table, printed for a terminal and in Markdown."""

from dit.report.table import NOTHING, NUMBER, Cell, Row, Table

TABLE = Table(
    ("name", "value", "count"),
    [
        Row([Cell("a group whose name is longer than the first column")], "group"),
        Row([Cell("FID"), Cell("3.9", small="3.8 – 4.0", strong=True), Cell("9", NUMBER)]),
        Row([Cell("IS|x"), Cell("215", small="± 3"), Cell("1,000", NUMBER)]),
        Row([Cell("recall"), Cell("not available: <reason>")]),
    ],
)


def test_a_terminal_aligns_numbers_and_lets_last_cells_span():
    assert TABLE.to_text().splitlines() == [
        "name    value            count",
        "a group whose name is longer than the first column",
        "FID     3.9 (3.8 – 4.0)      9",
        "IS|x    215 ± 3          1,000",
        "recall  not available: <reason>",
    ]


def test_markdown_has_all_columns_in_every_row():
    assert TABLE.to_markdown().splitlines() == [
        "| name | value | count |",
        "| --- | --- | --- |",
        "| a group whose name is longer than the first column |  |  |",
        "| FID | **3.9** (3.8 – 4.0) | 9 |",
        "| IS\\|x | 215 ± 3 | 1,000 |",
        "| recall | not available: &lt;reason> |  |",
    ]


def test_columns_without_any_value_are_left_out():
    empty = Row([Cell("IS"), Cell(NOTHING), Cell("9", NUMBER), Cell("")])
    table = Table(("name", "value", "count", "remark"), [Row([Cell("a group")], "group"), empty])
    kept = table.without_empty_columns()
    assert kept.columns == ["name", "count"]
    assert [cell.text for cell in kept.rows[1].cells] == ["IS", "9"]
    assert kept.rows[0].cells[0].text == "a group"


def test_columns_and_rows_can_be_selected():
    assert TABLE.select(("count", "name"), most=2).to_text().splitlines() == [
        "name  count",
        "a group whose name is longer than the first column",
        "FID       9",
    ]
