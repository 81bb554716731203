"""The questions that a report answers, and the tables that answer each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from sdpo_bench.analysis.tables.base import Subject, Table


class Question(NamedTuple):
    """A question, the page in tables/ that has its tables, and their subjects in order."""

    text: str
    page: str
    subjects: tuple[Subject | None, ...]


QUESTIONS = (
    Question(
        "Which method is best, and does the paper's order appear?",
        "methods",
        (
            Subject.PROTOCOL,
            Subject.ORDER,
            Subject.ORDER_QUERIES,
            Subject.ORDER_EVALUATIONS,
            Subject.ORDER_COMPUTE,
            Subject.ORDER_STEPS,
            Subject.ORDER_RATE,
            Subject.ORDER_PAPER,
            Subject.ORDER_PAPER_QUERIES,
            Subject.ORDER_PAPER_STEPS,
            Subject.MAIN,
            Subject.EQUAL_QUERIES,
            Subject.EQUAL_EVALUATIONS,
            Subject.EQUAL_COMPUTE,
            Subject.EQUAL_STEPS,
            Subject.DIFFERENCES,
            Subject.CLAIMS,
            Subject.PAPER,
        ),
    ),
    Question("Where does SDPO's lead come from?", "ablations", (Subject.ABLATIONS,)),
    Question(
        "Are the predicted dense rewards accurate?",
        "dense_rewards",
        (Subject.DENSE_BUDGETS, Subject.DENSE_STEPS, Subject.CRITIC),
    ),
    Question("What does it cost?", "cost", (Subject.REACH, Subject.COST)),
    Question("Is the reward hacked?", "hacking", (Subject.HACKING, Subject.OTHER_REWARDS)),
)


FURTHER = Question("Further tables", "further", (None,))
UNMEASURED = "Not measured by these runs."
UNANSWERED = "Too few runs for an answer; the tables show what there is."


@dataclass(frozen=True)
class Section:
    """A question, its tables, and their answers (or why there is none)."""

    anchor: str
    question: Question
    tables: tuple[Table, ...]

    @property
    def answers(self) -> list[str]:
        return [table.answer for table in self.tables if table.answer] or (
            [] if self.question == FURTHER else [UNANSWERED if self.tables else UNMEASURED]
        )

    @property
    def ordered(self) -> list[tuple[Table, bool]]:
        """The tables, each with whether it stands open on the page: the main ones do, and come first."""
        return sorted(((table, table.subject is Subject.MAIN) for table in self.tables), key=lambda item: not item[1])


def sections(tables: list[Table]) -> list[Section]:
    """The tables under the questions that they answer; every table once."""
    found = [
        Section(
            f"question-{number}",
            question,
            tuple(table for subject in question.subjects for table in tables if table.subject is subject),
        )
        for number, question in enumerate((*QUESTIONS, FURTHER), 1)
    ]
    return [section for section in found if section.tables or section.question != FURTHER]
