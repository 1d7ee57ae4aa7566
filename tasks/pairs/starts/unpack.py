"""The stage `unpack`: a student in a .gguf file, once, as safetensors."""

from kd_core.models.loading import ModelSettings
from tasks.compute.reference import refer
from tasks.store.stage import Build, stage


@stage
def unpack(build: Build, settings: ModelSettings) -> None:
    """Make `model/`."""
    refer(build, settings)
