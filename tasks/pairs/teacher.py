"""The stage `teacher`: a model that exists is referred to; one that is described is fitted on the references."""

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from kd_core.models.loading import (
    ModelSettings,
    Tokenizer,
    load_tokenizer,
    read_configs,
)
from kd_core.models.prompts import PLACEHOLDER, Chat, Prompt, Prompts, check_prompt
from kd_core.models.shapes import build_model
from kd_core.models.special_ids import special_ids
from kd_core.models.tokenizer import train_tokenizer
from kd_core.train.ranks import Ranks
from kd_core.train.supervised import SupervisedSettings, num_updates, train_supervised
from tasks.compute.completions import EndpointSettings
from tasks.compute.device import device_of
from tasks.compute.models import LoadedModel
from tasks.compute.reference import refer, refer_to_served
from tasks.compute.served import tokenizer_content
from tasks.compute.training import last_validation, run_training
from tasks.pairs.inputs import read_split, reference_pairs
from tasks.store.artifacts import Artifact
from tasks.store.stage import Build, stage, trains

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, kw_only=True)
class TeacherSettings(ModelSettings):
    """The teacher: a model by `name`, prompted and never trained; or a `shape`, fitted on the training references.

    Or one behind a server (`endpoint`), of which only the tokenizer is here.
    """

    prompt: str = PLACEHOLDER  # what the teacher reads; {source} stands for the input
    chat: Chat | None = None  # in place of it: a turn of a chat, by the model's own chat template
    vocab_size: int = 4096  # of the tokenizer trained on the corpus, for a described teacher
    fit: SupervisedSettings | None = None
    endpoint: EndpointSettings | None = None
    tokenizer: str | None = None  # of the served model: hub id (with revision) or directory, with its config.json

    def __post_init__(self) -> None:
        if self.endpoint is None:
            super().__post_init__()
        elif self.name is not None or self.shape is not None or self.fit is not None:
            raise ValueError("a teacher behind a server (endpoint) has neither name, shape nor fit of its own")
        if (self.endpoint is None) != (self.tokenizer is None):
            raise ValueError("a teacher behind a server needs endpoint and tokenizer, got one of them")
        check_prompt(self.prompt)
        if self.chat is not None and self.prompt != PLACEHOLDER:
            raise ValueError("a teacher reads either a prompt or a chat, got both")
        if (self.shape is None) != (self.fit is None):
            raise ValueError("a teacher described by shape needs fit, and one with a name is never fitted")
        if self.fit is not None and self.fit.alpha < 1:
            raise ValueError(f"fit has no teacher: alpha must be 1, got {self.fit.alpha}\nleave fit.alpha out")
        if self.vocab_size < 16:
            raise ValueError(f"vocab_size must be at least 16, got {self.vocab_size}")

    @property
    def reads(self) -> Prompt:
        """What it reads of a source."""
        return self.prompt if self.chat is None else self.chat

    @property
    def reader(self) -> ModelSettings:
        """Where the tokenizer is."""
        return self if self.tokenizer is None else ModelSettings(name=self.tokenizer, revision=self.revision)

    def identity(self) -> dict[str, object]:
        """What the artifact depends on. Not what it reads: that is an argument of the stages that use it."""
        if self.endpoint is not None:  # where it is, and how it is asked, is no part of what it is: see `served`
            place = self.reader.path or str(self.reader.name), self.reader.commit
            tokenizer = load_tokenizer(*place)
            ends = special_ids(*read_configs(*place), tokenizer, str(place[0])).ends
            return {"served": self.endpoint.model, "tokenizer": tokenizer_content(tokenizer), "ends": list(ends)}
        if self.fit is None:
            return super().identity()
        return super().identity() | {"vocab_size": self.vocab_size, "fit": self.fit}


@trains(when=lambda arguments: arguments["settings"].fit is not None)
@stage
def teacher(build: Build, corpus: Artifact, settings: TeacherSettings, seed: int) -> None:
    """Make `model/` (fitted, or out of a .gguf) or `reference.json` (named, or behind a server)."""
    if settings.endpoint is not None:
        refer_to_served(build, settings.reader, settings.endpoint)
        return
    if settings.fit is None:
        refer(build, settings)
        return
    device, fit = device_of(build.runtime), settings.fit
    train = read_split(corpus, "train", ("source", "target"))
    validation = read_split(corpus, "validation", ("source", "target"))
    tokenizer = corpus_tokenizer(build, [*train["source"], *train["target"]], settings.vocab_size)
    assert settings.shape is not None  # the settings' own check
    model = build_model(settings.shape, len(tokenizer), seed, eos_id=tokenizer.eos_token_id).to(device)
    fitted = LoadedModel(model, tokenizer)
    pairs, held_out = (reference_pairs(fitted, Prompts(PLACEHOLDER), split, fit) for split in (train, validation))
    log = run_training(
        build,
        fitted,
        fit.optimizer,
        lambda state: train_supervised(state, pairs, held_out, fit, seed),
        num_updates(pairs, fit, seed),
    )
    build.record(parameters=model.num_parameters(), **last_validation(log))


def corpus_tokenizer(build: Build, texts: list[str], vocab_size: int) -> Tokenizer:
    """A tokenizer trained on the corpus, kept as a shard, so that a resumed run goes on with the same one."""
    with Ranks.here().first_alone():
        if not build.shards.whole(*TOKENIZER_FILES):
            build.progress(0, 1, "training the tokenizer")
            with TemporaryDirectory() as directory:
                train_tokenizer(texts, vocab_size).save_pretrained(directory)
                for name in TOKENIZER_FILES:
                    build.shards.write(name, partial(shutil.copyfile, Path(directory, name)))
    return load_tokenizer(build.shards.dir)
