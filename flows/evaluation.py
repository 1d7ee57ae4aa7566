"""Outlines of what is evaluated: all systems decoded, measured and compared; the exposure bias of each student."""

from collections.abc import Mapping
from dataclasses import dataclass

from kd_core.losses.rewards import RewardSettings
from kd_core.models.prompts import Prompts
from tasks.pairs.decode import decode
from tasks.pairs.evaluate import EvaluationSettings, evaluate
from tasks.pairs.exposure import ExposureSettings, exposure
from tasks.pairs.measure import measure
from tasks.store.artifacts import Artifact


@dataclass(frozen=True)
class System:
    """A model that is evaluated, and whether it reads what the teacher does, or what the student does."""

    model: Artifact
    prompted: bool = False


def evaluate_systems(
    corpus: Artifact,
    teacher: Artifact,
    systems: Mapping[str, System],
    prompt: Prompts,
    settings: EvaluationSettings,
) -> Artifact:
    """Outputs and metrics of each system, shared between comparisons, and their differences: the last stage."""
    outputs, measures = {}, {}
    for name, system in systems.items():
        outputs[name] = decode.labelled(name)(
            corpus=corpus,
            teacher=teacher,
            writer=system.model,
            prompt=Prompts(prompt.teacher) if system.prompted else prompt,
            prompted=system.prompted,
            reward=settings.reward,
            settings=settings.decode,
        )
        measures[name] = measure.labelled(name)(corpus=corpus, outputs=outputs[name], settings=settings.measure)
    return evaluate(corpus=corpus, outputs=outputs, measures=measures)


def measure_exposure(
    corpus: Artifact,
    teacher: Artifact,
    name: str,
    student: Artifact,
    prompt: Prompts,
    reward: RewardSettings,
    settings: ExposureSettings,
) -> Artifact:
    """The excess error of the student `name`. The samples are `decode` artifacts: all students share the teacher's."""

    def samples(shown: str, system: System) -> dict[str, Artifact]:
        return {
            str(sample): decode.labelled(shown)(
                corpus=corpus,
                teacher=teacher,
                writer=system.model,
                prompt=Prompts(prompt.teacher) if system.prompted else prompt,
                prompted=system.prompted,
                reward=reward,
                settings=settings.decode(sample),
            )
            for sample in range(settings.samples)
        }

    return exposure.labelled(name)(
        corpus=corpus,
        teacher=teacher,
        student=student,
        student_outputs=samples(name, System(student)),
        teacher_outputs=samples("teacher", System(teacher, prompted=True)),
        prompt=prompt,
        settings=settings,
    )
