"""What failures teach of devices, kept in the store."""

import asyncio
import logging
from collections.abc import Callable

from supervisor.core.entities import AgentId, Cause, Plan
from supervisor.core.lessons import Lesson, aside_left_s, learned
from supervisor.core.obeying import Lessons
from supervisor.core.planning import HOST
from supervisor.errors import DeviceUnknown
from supervisor.service.tools import Tools

log = logging.getLogger(__name__)


class Learning:
    """Reads and writes lessons. Their times are of the wall clock: they outlive a restart."""

    def __init__(self, tools: Tools, wall_clock: Callable[[], float]) -> None:
        self._tools = tools
        self._wall_clock = wall_clock
        self._one_at_a_time = asyncio.Lock()

    def lessons(self) -> Lessons:
        """Everything that was learned, as of now."""
        known = {lesson.agent_id: lesson for lesson in self._tools.store.lessons()}
        return Lessons(known, self._wall_clock(), self._tools.main_host.engine)

    async def learn(self, cause: Cause, plan: Plan) -> Lesson | None:
        """Keep what a failure teaches of the device that it is about.

        Returns:
            The lesson, if there is a new one.
        """
        agent_id, facts = AgentId(cause.agent_id), None
        if agent_id:
            try:
                facts = self._tools.registry.device(agent_id).facts
            except DeviceUnknown:
                return None  # it was removed, and all that was known of it
        async with self._one_at_a_time:
            lessons = await asyncio.to_thread(self.lessons)
            before, limits = lessons.of(agent_id), self._tools.settings
            lesson = learned(
                before,
                cause,
                plan,
                lessons.now_s,
                limits,
                facts=facts,
                main_engine=lessons.main_engine,
            )
            if lesson == before:
                return None
            await asyncio.to_thread(self._tools.store.save_lesson, lesson)
        aside_s = aside_left_s(lesson, lessons.now_s) or 0.0
        extra = {"device": cause.device or HOST, "code": cause.code, "aside_s": aside_s}
        log.warning("device.lesson_learned", extra={**extra, "reasons": lesson.reasons})
        return lesson
