"""All commands, noun then verb. Nothing heavy is imported here: each verb loads what it needs when it runs."""

from __future__ import annotations

import os

import typer

from enroll.cli import (
    bridge,
    ca,
    cert,
    device,
    export,
    fetch,
    init,
    job,
    log,
    manufacturer,
    policy,
    request,
    send,
    serve,
    state,
    status,
    tail,
    token,
)
from enroll.cli.options import HomeOption, group

app = typer.Typer(
    help="Give every device of a fleet an identity of its own, and say what it may do.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(home: HomeOption = None) -> None:
    """Before the verb, `--home` is what FLEET_HOME is for everything behind it."""
    if home is not None:
        os.environ["FLEET_HOME"] = str(home)


app.command("init")(init.init)
app.command("serve")(serve.serve)
app.command("status")(status.status)
app.command("send")(send.send)
app.command("tail")(tail.tail)

for noun, verbs, help_ in (
    ("token", token.VERBS, "What lets a device in once."),
    ("request", request.VERBS, "Devices that wait for an admin's yes."),
    ("manufacturer", manufacturer.VERBS, "Whose certificates prove what hardware a device is."),
    ("device", device.VERBS, "Devices, operators, services and brokers."),
    ("cert", cert.VERBS, "Every certificate that was issued."),
    ("ca", ca.VERBS, "The certificate authority."),
    ("policy", policy.VERBS, "Who may publish and subscribe where."),
    ("state", state.VERBS, "What devices are to be, and are."),
    ("job", job.VERBS, "One command to many devices, a few first, then in waves."),
    ("fetch", fetch.VERBS, "Logs and files of devices."),
    ("bridge", bridge.VERBS, "The fleet in other people's systems, as a service."),
    ("export", export.VERBS, "Telemetry into databases and files, as a service."),
    ("log", log.VERBS, "What was done, and that nobody changed it."),
):
    app.add_typer(group(verbs, help_), name=noun)
