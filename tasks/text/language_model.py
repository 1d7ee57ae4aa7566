"""The stage `language_model`: a causal model that exists is referred to; one that is described is pre-trained here."""

from dataclasses import asdict, dataclass

from kd_core.models.loading import ModelSettings, check_same_tokenizer, load_tokenizer
from kd_core.models.shapes import build_model
from kd_core.models.special_ids import vocabulary_size
from kd_core.train.language_model import PretrainSettings, train_language_model
from kd_core.windows.last_block import Trainable
from kd_core.windows.train import WindowTrainingSettings
from tasks.compute.device import device_of
from tasks.compute.models import LoadedModel
from tasks.compute.reference import refer
from tasks.compute.start import StartSettings
from tasks.compute.training import last_validation, run_training
from tasks.store.artifacts import Artifact
from tasks.store.stage import Build, stage, trains
from tasks.text.tokens import Vocabulary, read_tokens


@dataclass(frozen=True, kw_only=True)
class LanguageModelSettings(ModelSettings):
    """A causal model: by `name`, or a `shape`, pre-trained here on the part of the text that nobody distils on."""

    pretrain: PretrainSettings | None = None
    trainable: Trainable = "last_block"  # what is trained on the transfer set: the last block and final norm, or all

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.shape is None) != (self.pretrain is None):
            raise ValueError("a model described by shape needs pretrain, and one with a name is there already")
        self._check_trainable()

    def _check_trainable(self) -> None:
        if self.trainable not in ("last_block", "all"):
            raise ValueError(f"trainable must be last_block or all, got {self.trainable!r}")

    def identity(self) -> dict[str, object]:
        """What the model before any distillation depends on."""
        described = {} if self.pretrain is None else {"pretrain": asdict(self.pretrain)}
        return super().identity() | described


@dataclass(frozen=True, kw_only=True)
class TeacherModelSettings(LanguageModelSettings):
    """The teacher: a causal model, fine-tuned on the transfer set (the paper's), or left as it is (`fit: null`)."""

    vocab_size: int = 4096  # of the tokenizer trained on the pre-training text, for a described teacher
    fit: WindowTrainingSettings | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vocab_size < 16:
            raise ValueError(f"vocab_size must be at least 16, got {self.vocab_size}")
        if self.fit is not None and self.fit.alpha != 1:
            raise ValueError(f"the teacher's fit.alpha must be 1: it has no teacher of its own, got {self.fit.alpha}")

    def vocabulary(self) -> Vocabulary:
        """The tokenizer of the run: that of a named teacher, or one that is trained here."""
        named = ModelSettings(name=self.name, revision=self.revision) if self.name is not None else None
        return Vocabulary(model=named, size=self.vocab_size)


@dataclass(frozen=True, kw_only=True)
class StudentModelSettings(StartSettings, LanguageModelSettings):
    """The student: a causal model as any other here, or some layers of the teacher as it is before it is fine-tuned."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.from_ is None:
            return
        self._check_trainable()
        if self.layers is None:
            raise ValueError("a student from: teacher needs layers: how many of the teacher's, or which ones")
        if self.pretrain is not None:
            raise ValueError("pretrain is for a model described by shape, and this student is from: teacher")
        if self.choose == "influence":
            raise ValueError(
                "influence is measured on pairs, and running text has none\nchoose even or middle, or name the layers"
            )


@trains(when=lambda arguments: arguments["settings"].pretrain is not None)
@stage
def language_model(build: Build, corpus: Artifact, settings: LanguageModelSettings, seed: int) -> None:
    """Make `model/` (described) or `reference.json` (named). Raises ValueError if it reads other tokens."""
    tokenizer = load_tokenizer(corpus.path / "tokenizer")
    if settings.pretrain is None or settings.shape is None:
        check_same_tokenizer(tokenizer, load_tokenizer(settings.path or str(settings.name), settings.commit))
        refer(build, settings)
        return
    pretrain = settings.pretrain
    model = build_model(settings.shape, vocabulary_size(tokenizer), seed, eos_id=tokenizer.eos_token_id)
    model = model.to(device_of(build.runtime))
    text, held_out = (read_tokens(corpus, split) for split in ("pretraining", "validation"))
    log = run_training(
        build,
        LoadedModel(model, tokenizer),
        pretrain.optimizer,
        lambda state: train_language_model(state, text, held_out, pretrain, seed),
        pretrain.max_steps,
    )
    tokens_read = sum(row.values["tokens"] for row in log)
    build.record(parameters=model.num_parameters(), tokens=tokens_read, **last_validation(log))
