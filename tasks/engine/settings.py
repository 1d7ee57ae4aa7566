"""How a run computes, which changes no result."""

from dataclasses import dataclass
from typing import Literal, get_args

Sharded = Literal["none", "teacher", "student", "both"]


@dataclass(frozen=True, kw_only=True)
class RuntimeSettings:
    """Where and how a run computes. In no stage's key: it changes no result beyond the last bits of a float."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)

    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    threads: int | None = None  # CPU threads; None = torch's choice. Byte-identical results need the same number
    checkpoint_seconds: float = 30.0  # between two checkpoints; 0 = after every step
    gradient_checkpointing: bool = False  # students on pairs learn in less memory, a third slower: the same bytes
    cuda_graphs: bool = False  # decoder-only students on pairs write by CUDA graphs; nobody has measured it yet
    track: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ()  # where else training logs go
    engine: Literal["local", "ray"] = "local"  # ray: processes share out shards, and train together
    workers: int | None = None  # of them; None = one for each GPU, or for each node where there is none
    address: str | None = None  # of a Ray that runs, HOST:PORT, or auto; None = one of our own, on this machine
    gpus_per_worker: float | None = None  # None = `teacher_devices` where there are GPUs, else, and on cpu, 0
    sharded: Sharded = "none"  # whose layers the workers that train share out: of a model that fits no single device
    teacher_devices: int = 1  # of each process, over which a teacher's layers are spread: more where it fits none alone

    def __post_init__(self) -> None:
        if self.device != "auto" and self.device.split(":")[0] not in ("cpu", "cuda", "mps"):
            raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, got {self.device!r}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")
        if self.checkpoint_seconds < 0:
            raise ValueError(f"checkpoint_seconds must be 0 or more, got {self.checkpoint_seconds}")
        if self.sharded not in get_args(Sharded):
            raise ValueError(f"sharded must be none, teacher, student or both, got {self.sharded!r}")
        if self.sharded != "none" and self.engine == "local":
            raise ValueError(f"sharded={self.sharded} is for engine ray, and the engine is local\nadd: --engine ray")
        if self.shares_out("student") and self.cuda_graphs:
            raise ValueError("cuda_graphs must be false where the student is sharded, got true")
        if self.teacher_devices < 1:
            raise ValueError(f"teacher_devices must be at least 1, got {self.teacher_devices}")
        if self.teacher_devices > 1:
            self._check_spread()
        if self.engine == "ray":
            self._check_ray()
        elif given := [name for name in ("workers", "address", "gpus_per_worker") if getattr(self, name) is not None]:
            raise ValueError(f"{given[0]} is for engine ray, and the engine is local\nadd: --engine ray")

    def shares_out(self, role: Literal["teacher", "student"]) -> bool:
        """Whether a model's layers are shared out among the workers that train."""
        return self.sharded in (role, "both")

    def _check_spread(self) -> None:
        asked = f"teacher_devices={self.teacher_devices}"
        if self.shares_out("teacher"):
            raise ValueError(
                f"sharded={self.sharded} and {asked} both place the teacher's layers\nleave out one of them"
            )
        if self.device.startswith(("cpu", "mps")):
            raise ValueError(f"{asked} needs CUDA devices, and device is {self.device}\nleave it at 1")
        if self.gpus_per_worker is not None and self.gpus_per_worker < self.teacher_devices:
            raise ValueError(
                f"{asked} needs as many GPUs for each worker, and gpus_per_worker is {self.gpus_per_worker:g}\n"
                "leave out gpus_per_worker"
            )

    def _check_ray(self) -> None:
        if self.device.startswith("mps"):
            raise ValueError("device mps cannot be shared by the processes of engine ray\nset device to cpu or cuda")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")
        if self.gpus_per_worker is not None and self.gpus_per_worker < 0:
            raise ValueError(f"gpus_per_worker must be 0 or more, got {self.gpus_per_worker}")
        if self.sharded != "none" and 0 < (self.gpus_per_worker or 0) < 1:
            raise ValueError(
                f"sharded={self.sharded} needs a GPU for each worker, and gpus_per_worker is {self.gpus_per_worker}"
            )
        host, _, port = (self.address or "auto").rpartition(":")
        if self.address not in (None, "auto") and (not host or "/" in host or not port.isdigit()):
            raise ValueError(
                f"address must be auto or HOST:PORT, got {self.address!r}\n"
                "start the run on a node of the cluster: what it starts there writes to the store"
            )
