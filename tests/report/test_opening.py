"""What opens a report says the same only once."""

from __future__ import annotations

from longeval.report.build import StudyReport, _opening
from longeval.report.document import Paragraph, Row, Section, Table, TableCell


def table(caption: str) -> Table:
    return Table(columns=("method",), rows=(Row(cells=(TableCell(text="yarn"),)),), caption=caption)


def test_captions_and_paragraphs_are_not_repeated_but_papers_keep_theirs():
    said = Paragraph(text="Intervals: none.")
    found = [
        Section(title=name, blocks=(table(caption), said), paper=(table(caption),))
        for name, caption in (("a", "Longest length."), ("b", "Longest length."), ("c", "Another rule."))
    ]
    study = StudyReport(
        subject="x", sections=lambda collection: [], summary=lambda records: [], opening=lambda collection: found
    )
    (section,) = _opening([study], collection=None)
    captions = [block.caption for block in section.blocks if isinstance(block, Table)]
    assert captions[0] == "Longest length." and captions[2] == "Another rule."
    assert captions[1] not in ("", "Longest length.")
    assert section.blocks.count(said) == 1
    assert [one.caption for one in section.paper] == ["Longest length.", "Longest length.", "Another rule."]
