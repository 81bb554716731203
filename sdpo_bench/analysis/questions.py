"""The questions that a report answers, and the tables that answer each."""

from __future__ import annotations

from dataclasses import dataclass

from sdpo_bench.analysis.tables.base import Subject, Table

QUESTIONS = {  # the subjects of its tables, in their order on the page
    "Which method is best, and does the paper's order appear?": (
        Subject.PROTOCOL,
        Subject.ORDER,
        Subject.MAIN,
        Subject.EQUAL_QUERIES,
        Subject.DIFFERENCES,
        Subject.CLAIMS,
        Subject.PAPER,
    ),
    "Where does SDPO's lead come from?": (Subject.ABLATIONS,),
    "Are the predicted dense rewards accurate?": (Subject.DENSE_BUDGETS, Subject.DENSE_STEPS),
    "What does it cost?": (Subject.REACH, Subject.COST),
    "Is the reward hacked?": (Subject.HACKING, Subject.OTHER_REWARDS),
}


FURTHER = "Further tables"
UNMEASURED = "Not measured by these runs."
UNANSWERED = "Too few runs for an answer; the tables show what there is."
LONG = 60  # rows: a table of more is folded, its answer stands above all the same


@dataclass(frozen=True)
class Section:
    """A question, its tables, and their answers (or why there is none)."""

    anchor: str
    question: str
    tables: tuple[Table, ...]

    @property
    def answers(self) -> list[str]:
        return [table.answer for table in self.tables if table.answer] or (
            [] if self.question == FURTHER else [UNANSWERED if self.tables else UNMEASURED]
        )

    @property
    def ordered(self) -> list[tuple[Table, bool]]:
        """The tables, each with whether it stands open on the page: those that answer do, unless they are long, and
        come first."""
        found = [
            (
                table,
                (bool(table.answer) and sum(len(rows) for _, rows in table.blocks) <= LONG)
                or table.subject is Subject.MAIN,
            )
            for table in self.tables
        ]
        return sorted(found, key=lambda item: not item[1])


def sections(tables: list[Table]) -> list[Section]:
    """The tables under the questions that they answer; every table once."""
    found = [
        Section(f"question-{number}", text, tuple(t for subject in subjects for t in tables if t.subject is subject))
        for number, (text, subjects) in enumerate({**QUESTIONS, FURTHER: (None,)}.items(), 1)
    ]
    return [section for section in found if section.tables or section.question != FURTHER]
