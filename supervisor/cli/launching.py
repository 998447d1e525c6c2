"""Commands that plan and launch, with the same wishes."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from supervisor.cli import output, watching
from supervisor.cli.client import Client
from supervisor.cli.model_flags import (
    EngineOption,
    LoraFiles,
    Mmproj,
    TemplateFile,
    model_options,
)
from supervisor.cli.options import AsJson, Key, Name, Url
from supervisor.core.entities import Preset
from supervisor.core.transport import DIRECT_WARNING
from supervisor.errors import EngineExited

Model = Annotated[str, typer.Argument(help="GGUF file on the main host, or REPO[:QUANT]")]
Ctx = Annotated[int | None, typer.Option(help="context, tokens; 4096 unless kept otherwise")]
MinCtx = Annotated[int | None, typer.Option(help="shrink the context down to this if need be")]
Slots = Annotated[int | None, typer.Option(help="parallel sequences; 1 unless kept otherwise")]
Devices = Annotated[str, typer.Option(help="use all of these and no others, a,b,c")]
Exclude = Annotated[str, typer.Option(help="never use these, a,b")]
Order = Annotated[str, typer.Option(help="use all of these in this order, a,b,c")]
Split = Annotated[str, typer.Option(help="layers of each named device, 20,13")]
Kv = Annotated[str | None, typer.Option(help="type of the KV cache: f16, q8_0, ...")]
Ubatch = Annotated[int | None, typer.Option(help="prompt tokens computed at once")]
PinOutput = Annotated[
    str | None, typer.Option(help="device that computes the output layer, or 'main host'")
]
Goal = Annotated[Preset | None, typer.Option(help="what to optimise for; balanced unless kept")]
Transport = Annotated[
    Literal["link", "direct"],
    typer.Option(help="direct: without links, rpc-server itself on the network, without a key"),
]
OnDemand = Annotated[
    bool, typer.Option("--on-demand", help="a request for it starts it when it is stopped")
]
Ttl = Annotated[
    float | None, typer.Option(help="stopped after this long without a request, seconds")
]
Aliases = Annotated[
    list[str] | None, typer.Option("--alias", help="another name that requests may use; repeatable")
]


def plan(
    model: Annotated[str, typer.Argument(help="GGUF file on the main host, or REPO[:QUANT]")],
    ctx: Ctx = None,
    min_ctx: MinCtx = None,
    slots: Slots = None,
    devices: Devices = "",
    exclude: Exclude = "",
    order: Order = "",
    split: Split = "",
    kv: Kv = None,
    ubatch: Ubatch = None,
    pin_output: PinOutput = None,
    goal: Goal = None,
    transport: Transport = "link",
    chat_template_file: TemplateFile = None,
    mmproj: Mmproj = None,
    lora: LoraFiles = None,
    option: EngineOption = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Say how a model would be placed, how fast it would be, and why. Starts nothing."""
    spec = _spec(
        model, ctx, min_ctx, slots, devices, exclude, order, split, kv, ubatch, pin_output, goal
    )
    spec |= model_options(chat_template_file, mmproj, lora, option) | _transport(transport)
    _warn(transport)
    _show_plan(Client(url, key), spec, as_json=as_json)


def launch(
    model: Model,
    name: Annotated[str | None, typer.Option(help="name of the deployment")] = None,
    ctx: Ctx = None,
    min_ctx: MinCtx = None,
    slots: Slots = None,
    devices: Devices = "",
    exclude: Exclude = "",
    order: Order = "",
    split: Split = "",
    kv: Kv = None,
    ubatch: Ubatch = None,
    pin_output: PinOutput = None,
    goal: Goal = None,
    transport: Transport = "link",
    chat_template_file: TemplateFile = None,
    mmproj: Mmproj = None,
    lora: LoraFiles = None,
    option: EngineOption = None,
    on_demand: OnDemand = False,
    ttl: Ttl = None,
    alias: Aliases = None,
    wait: Annotated[bool, typer.Option(help="wait until it is ready, or has failed")] = False,
    dry_run: Annotated[bool, typer.Option(help="print the plan, start nothing")] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="in place of the deployment of that name, or the only")
    ] = False,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Launch a model over the devices that make it fastest, or over those that you name."""
    spec = _spec(
        model, ctx, min_ctx, slots, devices, exclude, order, split, kv, ubatch, pin_output, goal
    )
    spec |= model_options(chat_template_file, mmproj, lora, option) | _transport(transport)
    spec |= _given({"on_demand": on_demand or None, "ttl_s": ttl, "aliases": alias})
    _warn(transport)
    client = Client(url, key)
    replaced = watching.only_deployment(client, name) if replace else None
    if dry_run:
        _show_plan(client, spec, replaced, as_json=as_json)
        return
    if replaced:
        deployment = client.relaunch("PUT", f"/api/deployments/{replaced}", spec)
    else:
        deployment = client.post("/api/deployments", spec | ({"name": name} if name else {}))
    if wait:
        deployment = watching.wait_until_settled(client, deployment["id"], quiet=as_json)
    if as_json:
        output.print_json(deployment)
    else:
        output.console.print(output.deployments_table([deployment]))
    if wait and deployment["state"] != "ready":
        raise EngineExited(deployment["reason"] or f"the deployment is {deployment['state']}")


def restart(name: Name = None, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Stop a deployment and launch it again as it is; running requests may end first."""
    client = Client(url, key)
    path = f"/api/deployments/{watching.only_deployment(client, name)}/restart"
    deployment = client.relaunch("POST", path)
    if as_json:
        output.print_json(deployment)
    else:
        output.console.print(output.deployments_table([deployment]))


def _show_plan(
    client: Client, spec: dict[str, Any], replaced: str | None = None, *, as_json: bool
) -> None:
    answer = client.post("/api/plan", spec, **({"replaces": replaced} if replaced else {}))
    if as_json:
        output.print_json(answer)
    else:
        output.print_plan(answer)


def _spec(
    model: str,
    ctx: int | None,
    min_ctx: int | None,
    slots: int | None,
    devices: str,
    exclude: str,
    order: str,
    split: str,
    kv: str | None,
    ubatch: int | None,
    pin_output: str | None,
    goal: Preset | None,
) -> dict[str, Any]:
    """What was given, and no more: the rest is what is kept for the model, or a default."""
    wishes = {
        "model": model_path(model),
        "ctx_tokens": ctx,
        "min_ctx_tokens": min_ctx,
        "slots": slots,
        "devices": names(devices),
        "exclude": names(exclude),
        "order": names(order),
        "split": _numbers(split),
        "kv_type": kv,
        "ubatch": ubatch,
        "pin_output": pin_output,
        "goal": goal,
    }
    return _given(wishes)


def _given(wishes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in wishes.items() if value not in (None, [])}


def _transport(transport: str) -> dict[str, Any]:
    return {"transport": transport} if transport == "direct" else {}


def _warn(transport: str) -> None:
    """Before anything is exposed, and not in the way of what a program reads."""
    if transport == "direct":
        output.errors.print(f"[yellow]warning:[/] {escape(DIRECT_WARNING)}")


def model_path(model: str) -> str:
    """A path of this host in full; anything else is the supervisor's to judge."""
    try:
        path = Path(model).expanduser()
    except RuntimeError:  # such as "~nobody/model.gguf"
        return model
    # Not resolved: in caches a link has the name, and what it leads to has none.
    return os.path.abspath(path) if path.exists() else model  # noqa: PTH100


def names(text: str) -> list[str]:
    """The parts of ``a,b,c``."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part]
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a list of whole numbers", param_hint="--split"
        ) from None
