"""The outline of an evaluation: each system writes and is measured by itself, then all stand side by side."""

from collections.abc import Mapping
from dataclasses import dataclass

from kd_core.rewards import RewardSettings
from tasks.decode import decode
from tasks.evaluate import EvaluationSettings, evaluate
from tasks.measure import measure
from tasks.store import Artifact


@dataclass(frozen=True)
class System:
    """A model that is evaluated, and whether it reads the prompt (the teacher does) or the bare source."""

    model: Artifact
    prompted: bool = False


def evaluate_systems(
    corpus: Artifact,
    teacher: Artifact,
    systems: Mapping[str, System],
    prompt: str,
    reward: RewardSettings,
    settings: EvaluationSettings,
) -> Artifact:
    """Outputs and metrics of each system, shared between comparisons, and their differences: the last stage."""
    outputs, measures = {}, {}
    for name, system in systems.items():
        outputs[name] = decode.labelled(name)(
            corpus=corpus,
            teacher=teacher,
            writer=system.model,
            prompt=prompt,
            prompted=system.prompted,
            reward=reward,
            settings=settings.decode,
        )
        measures[name] = measure.labelled(name)(corpus=corpus, outputs=outputs[name], settings=settings.measure)
    return evaluate(corpus=corpus, outputs=outputs, measures=measures)
