"""On-policy distillation of causal models: our loop against TRL's `DistillationTrainer`, a step of each in turn.

Needs TRL, in an environment of its own: `make bench-trl`. Both start from the same random models and read the same
prompts. Both write the same number of tokens a step, because the end of sequence is a token that the models do not
have. GPT-Neo's prompts are of one length, so neither computes padding (TRL's trainer gives no position ids, so shorter
prompts would be read at other positions in training than in sampling; where positions are rotated, as Llama's are, it
is the same at any). Both minimise GKD's generalised JSD with the same beta, Adam and clipping, in float32, and TRL
without the gradient checkpointing that is its default. TRL's own training loop runs; at the end of each of its steps a
callback runs one of ours.
"""

import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks import decoder_only
from benchmarks.common import line
from kd_core.losses.divergence_head import Divergence, TeacherStates, divergence_loss
from kd_core.models.policy import encode, head_of, target_states
from kd_core.models.shapes import GPTNeoShape, build_gpt_neo
from kd_core.models.token_rows import TokenRows
from kd_core.rollout.sampling import SamplingSettings
from kd_core.train.batches import BatchSettings, Sources
from kd_core.train.divergence import GKDSettings, Transfer, train_divergence
from kd_core.train.state import OptimizerSettings, TrainState

STEPS, WARM_UP = 12, 2  # of each; the first are not counted
LLAMA_STEPS, LLAMA_WARM_UP = 4, 1  # a minute each
ROWS = 32
BETA = 0.5
LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class Pair:
    """Random models whose end of sequence nobody can write, and prompts as ids."""

    what: str
    teacher: Any
    student: Any
    prompts: list[list[int]]
    response: int  # tokens of each
    steps: int = STEPS
    warm_up: int = WARM_UP

    @property
    def vocab_size(self) -> int:
        """The end of sequence is number V of a vocabulary of V."""
        size: int = self.teacher.config.vocab_size
        return size

    @property
    def pad_id(self) -> int:
        """What stands before shorter prompts."""
        number: int = self.student.config.pad_token_id
        return number


def gpt_neos(what: str, teacher: GPTNeoShape, student: GPTNeoShape, vocab_size: int, length: int) -> Pair:
    """GPT-Neos, and prompts as long as the responses."""
    shapes = enumerate((teacher, student))
    models = [build_gpt_neo(shape, vocab_size, seed, eos_id=vocab_size) for seed, shape in shapes]
    with torch.no_grad():  # at the start they are so flat that a divergence of 0.01 nats would prove little
        for model in models:
            model.lm_head.weight *= 3
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, vocab_size, (ROWS * (STEPS + 1), length), generator=generator)
    return Pair(what, *models, prompts.tolist(), length)


def llamas(what: str, student_layers: int, response: int, **shape: Any) -> Pair:
    """Llamas, the student of fewer layers, and prompts of uneven length: those of one batch, at every step."""
    models = []
    for seed, layers in enumerate((shape["num_hidden_layers"], student_layers)):
        torch.manual_seed(seed)
        ends = {"eos_token_id": shape["vocab_size"], "pad_token_id": decoder_only.PAD}
        config = LlamaConfig(**{**shape, **ends, "num_hidden_layers": layers})
        models.append(AutoModelForCausalLM.from_config(config))
        with torch.no_grad():
            models[-1].lm_head.weight *= 3
    generator = torch.Generator().manual_seed(0)
    lengths = decoder_only.prompt_lengths(ROWS, generator).tolist()
    prompts = [torch.randint(3, shape["vocab_size"], (length,), generator=generator).tolist() for length in lengths]
    return Pair(what, *models, prompts, response, LLAMA_STEPS, LLAMA_WARM_UP)


def pairs() -> Iterator[Pair]:
    """The demo's shapes and lengths, larger ones, and what `llmr-smollm2` distils: 30 layers of SmolLM2 into 20."""
    demo = (
        GPTNeoShape(hidden_size=128, num_layers=2, num_heads=4),
        GPTNeoShape(hidden_size=64, num_layers=2, num_heads=2),
    )
    yield gpt_neos("demo", *demo, 2048, 16)
    larger = (
        GPTNeoShape(hidden_size=256, num_layers=6, num_heads=8),
        GPTNeoShape(hidden_size=128, num_layers=4, num_heads=4),
    )
    yield gpt_neos("larger", *larger, 8192, 64)
    yield llamas("SmolLM2-135M", 20, 32, **decoder_only.SMOLLM2_135M)


def run() -> Iterator[dict[str, Any]]:
    """Each of `pairs`."""
    if find_spec("trl") is None:
        print("trl is not installed here: make bench-trl", file=sys.stderr)
        return
    from transformers.utils import logging

    logging.set_verbosity_error()  # it advises against an end of sequence that nobody can write
    for pair in pairs():
        yield from measure(pair)


def measure(pair: Pair) -> Iterator[dict[str, Any]]:
    """Check that both give the same loss for the same tokens; time whole steps."""
    ours, reference, loss = step_times(pair)
    tokens = ROWS * pair.response
    lengths = [len(prompt) for prompt in pair.prompts]
    yield line(
        "trl",
        ours,
        reference,
        "s/step",
        what="sample, judge by generalised JSD, learn",
        models=pair.what,
        rows=ROWS,
        prompt=[min(lengths), max(lengths)],
        response=pair.response,
        vocabulary=pair.vocab_size,
        teacher_parameters=pair.teacher.num_parameters(),
        student_parameters=pair.student.num_parameters(),
        our_tokens_per_second=round(tokens / ours),
        their_tokens_per_second=round(tokens / reference),
        loss=round(loss, 6),
        trl=version("trl"),
    )


def step_times(pair: Pair) -> tuple[float, float, float]:
    """Median seconds of our steps and of TRL's, and the loss that both give for the first batch."""
    from transformers import PrinterCallback, TrainerCallback

    steps = our_steps(pair)
    times: dict[str, list[float]] = {"ours": [], "trl": []}

    class InTurn(TrainerCallback):  # type: ignore[misc]
        """Times TRL's step, then one of ours."""

        def on_step_begin(self, *arguments: Any, **more: Any) -> None:
            self.begun = time.perf_counter()

        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            middle = time.perf_counter()
            row = next(steps)
            times["trl"].append(middle - self.begun)
            times["ours"].append(time.perf_counter() - middle)
            assert row.values["tokens"] == ROWS * pair.response, "our samples ended early"

    with tempfile.TemporaryDirectory() as folder:
        trainer = trl_trainer(pair, folder)
        loss = check(pair, trainer)
        trainer.remove_callback(PrinterCallback)  # it prints between the measurements
        trainer.add_callback(InTurn())
        trainer.train()
    medians = (statistics.median(times[name][pair.warm_up :]) for name in ("ours", "trl"))
    return next(medians), next(medians), loss


def our_steps(pair: Pair) -> Iterator[Any]:
    """Our loop, as `distill` runs it with kind gkd."""
    settings = GKDSettings(
        steps=10**6,
        beta=BETA,
        student_share=1.0,
        validate_every=0,
        validation_rows=1,
        sampling=SamplingSettings(max_new_tokens=pair.response),
        batch=BatchSettings(micro_batch_rows=ROWS, micro_batch_tokens=10**6, micro_batches=1),
        optimizer=OptimizerSettings(learning_rate=LEARNING_RATE),
    )
    prompts = TokenRows.of(pair.prompts)
    sources = Sources(prompts, prompts)
    state = TrainState.start(copy.deepcopy(pair.student), settings.optimizer)
    loop = train_divergence(state, copy.deepcopy(pair.teacher), Transfer(sources, None), sources, settings, seed=0)
    next(loop)  # the look at the validation set before any update
    return loop


def trl_trainer(pair: Pair, folder: str) -> Any:
    """TRL's trainer with the same models, prompts and optimizer."""
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    config = DistillationConfig(
        output_dir=folder,
        per_device_train_batch_size=ROWS,
        max_steps=pair.steps,
        max_completion_length=pair.response,
        beta=BETA,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        adam_beta2=0.999,
        max_grad_norm=1.0,
        weight_decay=0.0,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    return DistillationTrainer(
        model=copy.deepcopy(pair.student),
        teacher_model=copy.deepcopy(pair.teacher),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": [" ".join(f"w{i}" for i in row) for row in pair.prompts]}),
        processing_class=word_tokenizer(pair),
    )


def word_tokenizer(pair: Pair) -> Any:
    """Reads `w17` as 17; its end of sequence is number `vocab_size`."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    names = [*(f"w{i}" for i in range(pair.vocab_size)), "<end>"]
    words = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="<end>"))
    words.pre_tokenizer = WhitespaceSplit()
    ends = {"eos_token": "<end>", "pad_token": names[pair.pad_id]}
    return PreTrainedTokenizerFast(tokenizer_object=words, padding_side="left", **ends)


def check(pair: Pair, trainer: Any) -> float:
    """The loss of what TRL's student has written; AssertionError unless both give it, and one gradient."""
    trainer.model.train()
    batch = trainer._generate_and_score_completions([trainer.train_dataset[i] for i in range(ROWS)])
    read = [ids[mask.bool()].tolist() for ids, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)]
    assert read == pair.prompts[:ROWS], "TRL reads other prompts"
    tokens = batch["completion_ids"]
    assert tokens.shape == (ROWS, pair.response), "TRL's samples ended early"
    stock = trainer.compute_loss(trainer.model, batch)
    theirs = torch.autograd.grad(stock, list(trainer.model.parameters()))
    ours = jsd(pair, tokens)
    mine = torch.autograd.grad(ours, list(pair.student.parameters()))
    torch.testing.assert_close(ours, stock, atol=0.0, rtol=1e-5)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-3)
    return float(stock.detach())


def jsd(pair: Pair, tokens: Tensor) -> Tensor:
    """Our loss of given responses to the first prompts, by the functions that the loop calls. (B, T) -> scalar."""
    states = []
    prompts = TokenRows.of(pair.prompts).batch(torch.arange(len(tokens)), pair.pad_id)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    for model in (pair.student, pair.teacher):
        memory = encode(model, *prompts)
        states.append(target_states(model, memory, tokens, mask)[0])
    seen = TeacherStates(states[1].detach(), head_of(pair.teacher).detach())
    weight_M = states[0].new_full((tokens.numel(),), 1 / tokens.numel())
    loss, _ = divergence_loss(states[0], head_of(pair.student), seen, weight_M, Divergence.generalised_jsd(BETA))
    return loss


def version(package: str) -> str:
    """Which release is measured."""
    from importlib.metadata import version as installed

    return installed(package)
