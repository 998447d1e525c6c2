"""Parameters that several routes take."""

from typing import Annotated

from fastapi import Query

ModelName = Annotated[
    str, Query(min_length=1, max_length=2048, description="path, file name, reference or NAME:TAG")
]
