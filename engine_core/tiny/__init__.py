"""The built-in model `tokenwire-tiny`: a small trained chat model that ships with the package.

It is a demonstration, not an assistant: it knows a few hundred answers about tokenwire and LLM serving by heart and
tells simple stories. `train` makes it from the texts in `data/`, `evaluate` measures it. This module knows only
where the model lies; it imports neither torch nor transformers.
"""

from pathlib import Path
from typing import Final

MODEL_NAME: Final = "tokenwire-tiny"
MODEL_PATH: Final[Path] = Path(__file__).resolve().parent / "model"
DATA_PATH: Final[Path] = Path(__file__).resolve().parent / "data"
