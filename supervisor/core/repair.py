"""What to try next after a failure, and when something better is worth a relaunch."""

from collections.abc import Collection, Iterable, Iterator
from typing import Final, Literal

from supervisor.core.entities import Action, AgentId, Cause, DeploymentSpec, Device, Plan
from supervisor.core.explain_words import duration, listed, rate
from supervisor.core.lifecycle import State
from supervisor.core.planning import HOST, Wanted

LEAST_GAIN: Final = 1.03
"""Predictions are not so good that a smaller difference would mean anything."""

PAYS_WITHIN_S: Final = 3600.0
"""Of generating: by then a relaunch has saved more time than it took."""

WANTS_MORE: Final = frozenset({"no_devices", "insufficient_memory", "worker_incompatible"})
"""Causes that one more device may end, or the same one with another build."""


def retry_pause_s(failures: int, *, first_s: float, longest_s: float, chance: float) -> float:
    """Pause before the attempt after ``failures`` failures in a row (1, 2, 3, ...).

    Full jitter: any pause up to a limit that doubles is as likely, so that deployments which
    failed together do not start together again.

    Args:
        failures: In a row.
        first_s: Longest pause after the first.
        longest_s: Longest pause at all.
        chance: From 0 to 1, drawn anew for each pause.
    """
    # The exponent is bounded: a float overflows long before a patient cluster gives up.
    return chance * min(longest_s, first_s * 2.0 ** min(max(failures, 1) - 1, 30))


# -- what was asked for, with the devices that are left --------------------------------------------


def spec_for_repair(
    spec: DeploymentSpec,
    usable_names: Collection[str],
    known_names: Collection[str] | None = None,
) -> DeploymentSpec:
    """The spec without the named devices that are gone; no others take their place.

    A first launch is strict: who names a device wants it. A repair rather serves with fewer. If
    none of those that were named is left, the spec stays as it is, and planning says so.

    Args:
        spec: What was asked for.
        usable_names: Names and ids of the devices that may take part now.
        known_names: Names and ids of all devices; who is not among them needs no excluding.
    """
    if known_names is not None:
        excluded = tuple(name for name in spec.exclude if _is_usable(name, known_names))
        spec = spec.model_copy(update={"exclude": excluded})
    gone = [name for name in _named(spec) if not _is_usable(name, usable_names)]
    if gone and len(gone) == len(_named(spec)):
        return spec
    changes: dict[str, object] = {}
    if gone:
        changes["split"] = ()
        changes["devices"] = tuple(name for name in spec.devices if name not in gone)
        changes["order"] = tuple(name for name in spec.order if name not in gone)
    if spec.pin_output and not _is_usable(spec.pin_output, usable_names):
        changes["pin_output"] = None
    return spec.model_copy(update=changes)


def loosened(spec: DeploymentSpec, devices: Iterable[Device]) -> DeploymentSpec:
    """The spec with any choice among the named devices, where all of them together do not do.

    Args:
        spec: What was asked for, with named devices.
        devices: All there are; those that were not named stay out.
    """
    named = {name.partition("/")[0] for name in _named(spec)}
    others = [device.name for device in devices if not named & {device.name, device.id}]
    host = [] if HOST in named else [HOST]
    free = {"devices": (), "order": (), "split": (), "pin_output": None}
    return spec.model_copy(update={**free, "exclude": (*spec.exclude, *host, *others)})


def dropped_sentence(spec: DeploymentSpec, changed: DeploymentSpec) -> str:
    """What of the operator's own wishes a repair does without, or nothing."""
    gone = [name for name in _named(spec) if name not in _named(changed)]
    parts = [listed(gone)] if gone else []
    if spec.split and not changed.split:
        parts.append("your split of the layers")
    if spec.pin_output and not changed.pin_output and spec.pin_output not in gone:
        parts.append(f"the output on {spec.pin_output}")
    if not parts:
        return ""
    return (
        f"This is a repair without {', and without '.join(parts)}, though you asked for that:"
        " rather a model on fewer devices than none."
    )


def _named(spec: DeploymentSpec) -> tuple[str, ...]:
    return spec.order or spec.devices


def _is_usable(name: str, usable_names: Collection[str]) -> bool:
    """``desktop/CUDA0`` is a ggml device of ``desktop``."""
    return name == HOST or name in usable_names or name.partition("/")[0] in usable_names


# -- something better ------------------------------------------------------------------------------


def worth_planning(
    usable_before: Collection[AgentId], usable_now: Collection[AgentId], plan: Plan
) -> frozenset[AgentId]:
    """Devices because of which a better plan may exist.

    Args:
        usable_before: Those that could take part when the present plan was made, or when a
            better one was looked for last.
        usable_now: Those that can now.
        plan: The present one.
    """
    return frozenset(usable_now) - frozenset(usable_before) - frozenset(plan.agent_ids)


def rejoin_allowed(mode: Literal["idle", "now", "never"], *, is_idle: bool) -> bool:
    """Whether a deployment may be relaunched now to use more devices."""
    return mode == "now" or (mode == "idle" and is_idle)


def relaunch_reason(
    current: Plan, candidate: Plan, spec: DeploymentSpec, *, min_gain: float, load_s: float
) -> str | None:
    """Why another plan is worth a relaunch, in one sentence; ``None``: it is not.

    Without a device that is new it never is. What the present ones would have free if they were
    stopped is only estimated, and a relaunch for an estimate could come again and again.

    Args:
        current: What runs, with a prediction that knows as much as the candidate's.
        candidate: What could run.
        spec: What was asked for.
        min_gain: Speed of the candidate over the present one that is worth it.
        load_s: How long a relaunch takes.
    """
    new = _new_devices(current, candidate)
    if not new:
        return None
    wishes = [*_regained(current, candidate, spec)]
    if not wishes and _gives_up(current, candidate, spec):
        return None
    gain = _gain(current, candidate)
    is_faster = gain is not None and gain >= max(min_gain, LEAST_GAIN)
    if not wishes and not (is_faster and load_s <= PAYS_WITHIN_S * (1 - 1 / (gain or 1.0))):
        return None
    gains = " and ".join([*wishes, *_speeds(current, candidate)])
    return f"with {listed(new)}, there would be {gains}; loading takes about {duration(load_s)}"


def _new_devices(current: Plan, candidate: Plan) -> list[str]:
    before = set(current.agent_ids)
    return [*dict.fromkeys(s.device for s in candidate.shards if s.agent_id not in before)]


def _regained(current: Plan, candidate: Plan, spec: DeploymentSpec) -> Iterator[str]:
    """Wishes that had to give way, and need not any longer."""
    before, named = set(current.agent_ids), _named(spec)
    new = [shard for shard in candidate.shards if shard.agent_id not in before]
    if any({s.agent_id, s.device, s.device.partition("/")[0]} & set(named) for s in new):
        yield "a device again that you named"
    if current.ctx_tokens < spec.ctx_tokens <= candidate.ctx_tokens:
        yield f"the whole context of {spec.ctx_tokens} instead of {current.ctx_tokens} tokens"
    wanted = _wanted_kv_type(spec)
    is_as_long = candidate.ctx_tokens >= min(current.ctx_tokens, spec.ctx_tokens)
    if current.kv_type != wanted == candidate.kv_type and is_as_long:
        yield f"a {wanted} instead of a {current.kv_type} cache"


def _gives_up(current: Plan, candidate: Plan, spec: DeploymentSpec) -> bool:
    """Whether the candidate fulfils less of what was asked for."""
    is_shorter = candidate.ctx_tokens < min(current.ctx_tokens, spec.ctx_tokens)
    is_coarser = candidate.kv_type not in (current.kv_type, _wanted_kv_type(spec))
    return is_shorter or is_coarser


def _wanted_kv_type(spec: DeploymentSpec) -> str:
    return spec.kv_type or Wanted().kv_types[0]


def _gain(current: Plan, candidate: Plan) -> float | None:
    now, then = current.prediction, candidate.prediction
    if now is None or then is None or now.decode_tokens_per_s <= 0:
        return None
    return then.decode_tokens_per_s / now.decode_tokens_per_s


def _speeds(current: Plan, candidate: Plan) -> Iterator[str]:
    now, then = current.prediction, candidate.prediction
    if now is not None and then is not None:
        yield (
            f"{rate(then.decode_tokens_per_s)} instead of {rate(now.decode_tokens_per_s)} tokens"
            " per second"
        )


def had_their_chance(
    usable_when_planned: Collection[AgentId], cause: Cause | None
) -> frozenset[AgentId]:
    """Devices that are no news to a deployment that has just failed: it could have used them.

    Its end may keep them busy for a moment, after which they seem to come back. Only the one that
    was the cause may really come back better than it was.

    Args:
        usable_when_planned: Those that could take part when the plan that failed was made.
        cause: Of the failure.
    """
    return frozenset(usable_when_planned) - ({AgentId(cause.agent_id)} if cause else frozenset())


def may_revive(state: State, cause: Cause | None, newly_usable: Collection[AgentId]) -> bool:
    """Whether a deployment that gave up should be planned again, now that a device came.

    Not if it failed for what no device can change, such as a model file that is broken.

    Args:
        state: Of the deployment.
        cause: Of its failure.
        newly_usable: Devices that may take part now, and could not when it failed.
    """
    if state is not State.FAILED or cause is None or not newly_usable:
        return False
    return cause.action is not Action.GIVE_UP or cause.code in WANTS_MORE
