"""The commonest silent failure of distillation, said loudly: a teacher that is no better than its student."""

from collections.abc import Mapping

from tasks.store.stage import Build

STUDENT = "the student it teaches"


def warn_if_no_better(build: Build, teacher_nll: float, student_nlls: Mapping[str, float], text: str) -> None:
    """Warn where the teacher's loss is not below that of the best student, by name; both with their numbers.

    Losses are in nats per token of `text`, which is what the models were all measured on.
    """
    student = min(student_nlls, key=lambda name: student_nlls[name])
    if teacher_nll >= student_nlls[student]:
        build.warn(
            f"the teacher is no better than {student}: {teacher_nll:.3f} against {student_nlls[student]:.3f} nats per "
            f"token on the {text}; train the teacher longer, or take a larger one"
        )
