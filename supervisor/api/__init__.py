"""The HTTP edge: REST, events, OpenAI endpoint, join address."""
