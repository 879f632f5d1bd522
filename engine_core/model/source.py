"""Which folder or hub id a model's name means. Looks at the file system and nothing else, so that a wrong path is told
before anything slow is imported."""

from dataclasses import dataclass
from pathlib import Path

from engine_core.errors import CannotStart


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model comes from. `path` is a local folder or a hub id; `revision` counts for the latter only."""

    path: str
    revision: str | None = None
    trust_remote_code: bool = False


def resolve(model: str, *, revision: str | None = None, trust_remote_code: bool = False) -> ModelSource:
    """The source that MODEL names: a folder if there is one of that name, else a hub id. Raises CannotStart if it can
    be neither."""
    path = Path(model).expanduser()
    if model and path.is_dir():
        if not (path / "config.json").is_file():
            raise CannotStart(f"{path}: the model folder has no config.json")
        return ModelSource(str(path), None, trust_remote_code)
    if path.is_file():
        raise CannotStart(f"{path}: a model is a folder with config.json and *.safetensors, this is a file")
    if not model or path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise CannotStart(f"{model or '(empty name)'}: there is no such model folder")
    return ModelSource(model, revision, trust_remote_code)
