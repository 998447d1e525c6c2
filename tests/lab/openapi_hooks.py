"""What schemathesis is told beyond our OpenAPI document, so that it gets further than to a 404.

Names and paths that it makes up are of nothing that exists. So plans are asked for a real model
(``OPENAPI_MODEL``), and every second time for a real device (``OPENAPI_DEVICE``).
"""

import os
from typing import Any

import schemathesis


@schemathesis.hook
def before_call(context: Any, case: Any, **_: Any) -> None:
    body = case.body
    if case.operation.path != "/api/plan" or not isinstance(body, dict):
        return
    if isinstance(body.get("model"), str):
        body["model"] = os.environ["OPENAPI_MODEL"]
    if len(body) % 2:
        return
    for key in ("devices", "order", "exclude"):
        if body.get(key) and isinstance(body[key], list):
            body[key] = [os.environ["OPENAPI_DEVICE"]]
