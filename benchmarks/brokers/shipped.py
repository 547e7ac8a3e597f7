"""amqtt as it ships, over mutual TLS, with its own certificate plug-in and access control list; a program of its own.

`python -m benchmarks.brokers.shipped JSON`. Its list has no patterns: every device is in it by name.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import warnings
from typing import Any

from amqtt.broker import Broker
from amqtt.contexts import BrokerConfig, ListenerConfig


async def serve(told: dict[str, Any]) -> None:
    """Accept connections until killed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # this version does not take what `acl` is replaced by
        broker = Broker(config(told), asyncio.get_running_loop())
    await broker.start()
    (listening,) = broker._servers["default"].instance.sockets
    print(f"ready {listening.getsockname()[1]}", flush=True)
    await asyncio.Event().wait()


def config(told: dict[str, Any]) -> BrokerConfig:
    """What its manual allows."""
    listener = ListenerConfig(
        bind="127.0.0.1:0", ssl=True, cafile=told["ca"], certfile=told["cert"], keyfile=told["key"], max_connections=-1
    )
    admin = told["admin"]
    may_publish = {name: [f"devices/{name}/up/#"] for name in told["devices"]}
    may_read = {name: [f"devices/{name}/down/#", "fleet/notices/#"] for name in told["devices"]}
    plugins: dict[str, Any] = {
        "amqtt.contrib.cert.UserAuthCertPlugin": {"uri_domain": told["domain"]},
        "amqtt.plugins.topic_checking.TopicAccessControlListPlugin": {
            "acl": may_read | {admin: ["#"]},
            "publish_acl": may_publish | {admin: ["devices/#", "fleet/notices/#"]},
        },
    }
    return BrokerConfig(listeners={"default": listener}, plugins=plugins)


if __name__ == "__main__":
    logging.getLogger("amqtt").setLevel(logging.CRITICAL)
    asyncio.run(serve(json.loads(sys.argv[1])))
