"""What to say when a program's optional packages are not installed."""

PACKAGES = frozenset({"fleet", "enroll", "broker", "device_agent", "firmware_stub"})


def explain_missing(error: ModuleNotFoundError, program: str, extra: str) -> str | None:
    """The two lines that tell what to install, or None if the missing module is one of ours.

    A module of ours that is missing is our mistake, and whoever reports it wants the traceback.
    """
    package = (error.name or "").partition(".")[0]
    if not package or package in PACKAGES:
        return None
    return f"error: {program} needs the Python package {package}, not installed here\nhint: {install_command(extra)}"


def install_command(extra: str) -> str:
    """The shell command that installs an extra of this distribution."""
    return f"pip install 'mqtt-fleet[{extra}]'"
