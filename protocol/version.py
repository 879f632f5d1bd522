"""Which tokenwire this is."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version


def own_version() -> str:
    """The installed distribution's version; a checkout that is not installed has none."""
    try:
        return installed_version("tokenwire")
    except PackageNotFoundError:
        return "unknown"
