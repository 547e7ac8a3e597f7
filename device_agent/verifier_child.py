"""Looks at signatures, in a process of its own: `device-agent run` starts it when there is one to look at.

So `run` stays without `cryptography`, which costs 10 MB, and a message that breaks a parser breaks no agent. The first
line on standard input says whom to believe; each that follows is a message, and is answered by a line on standard
output. It ends when its input does. Nothing is read but the roots; the time is told with each message.
"""

from __future__ import annotations

import argparse
import base64
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509

from device_agent.verifying import Verifier
from fleet import downlink, messages, signers
from fleet.layout import AgentHome

_MAX_LINE_BYTES = 4 * downlink.MAX_SIGNED_BYTES


def main(arguments: Sequence[str] | None = None) -> int:
    """0 at the end of the input. A line that is not the agent's ends it with a traceback: that is a mistake of ours."""
    parser = argparse.ArgumentParser(prog="verifier_child")
    parser.add_argument("--home", type=Path, required=True)
    home = AgentHome(parser.parse_args(arguments).home)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the agent, which ends this
    lines = iter(sys.stdin.buffer.readline, b"")
    chains = signers.from_json(
        messages.decode_object(next(lines, b"{}"), max_bytes=signers.MAX_BYTES).get("signers", [])
    )
    verifier = Verifier(x509.load_pem_x509_certificates(home.trust.read_bytes()), chains)
    for line in lines:
        asked = messages.decode_object(line, max_bytes=_MAX_LINE_BYTES)
        payload, now = base64.b64decode(asked["payload"]), messages.parse_time(asked["now"])
        verdict = verifier.judge(asked["topic"], payload, now)
        print(json.dumps({"number": asked["number"], "verdict": verdict}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
