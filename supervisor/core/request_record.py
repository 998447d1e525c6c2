"""What is kept of a request: numbers and names, never a word of it."""

from pydantic import Field

from supervisor.core.entities import FrozenModel, Seconds


class RequestRecord(FrozenModel):
    """One request that the gateway answered, or could not."""

    at: str = Field(description="when it came; UTC, ISO 8601 with milliseconds")
    deployment: str = Field(default="", description="that answered; empty: none was found")
    launch_id: int | None = None
    path: str = Field(description="of the gateway's routes")
    caller: str = Field(description="name of the key, or 'local'")
    is_stream: bool = False
    status: int = Field(description="of HTTP; 499: the client left")
    code: str = Field(default="", description="of the error, if there was one")
    queue_s: Seconds = Field(default=0.0, description="waited for a slot of the deployment")
    first_token_s: Seconds | None = Field(
        default=None, description="since it came; None: no stream"
    )
    total_s: Seconds = 0.0
    prompt_tokens: int | None = Field(default=None, description="cached ones among them")
    cached_tokens: int | None = None
    generated_tokens: int | None = None
    tokens_per_s: float | None = Field(default=None, description="from the first token to the last")
    retries: int = Field(default=0, description="times it was begun again, unseen by the client")
    resumed: int = Field(default=0, description="times its answer was continued after a loss")
