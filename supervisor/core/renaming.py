"""What a spec says of a device after that was given another name."""

from supervisor.core.entities import DeploymentSpec


def names_device(spec: DeploymentSpec, name: str) -> bool:
    """Whether a spec calls a device by that name, for whatever purpose."""
    given = (*spec.devices, *spec.exclude, *spec.order, spec.pin_output or "")
    return any(each.partition("/")[0] == name for each in given)


def renamed(spec: DeploymentSpec, before: str, after: str) -> DeploymentSpec:
    """The same spec with the device's new name; ``before/CUDA0`` is a ggml device of it."""

    def new(given: str) -> str:
        device, slash, ggml_device = given.partition("/")
        return f"{after}{slash}{ggml_device}" if device == before else given

    return spec.model_copy(
        update={
            "devices": tuple(map(new, spec.devices)),
            "exclude": tuple(map(new, spec.exclude)),
            "order": tuple(map(new, spec.order)),
            "pin_output": None if spec.pin_output is None else new(spec.pin_output),
        }
    )
