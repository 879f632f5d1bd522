"""The server that clients talk to, and what is asked of all of them."""

from typing import Any

from tests.e2e.server import Server, until

KEY = "sk-of-the-tests"
MODEL = "tokenwire-tiny"
QUESTION: list[dict[str, Any]] = [{"role": "user", "content": "What is a KV cache?"}]
STORY = "Once upon a time"

# Few values, so that a small model is quick to choose, and any choice is a right one.
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "Tokyo", "Lima"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather of the next days.", "parameters": WEATHER},
}
CLOCK: dict[str, Any] = {
    "type": "function",
    "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}},
}


def is_weather(arguments: Any) -> bool:
    return (
        set(arguments) == {"city", "days"}
        and arguments["city"] in WEATHER["properties"]["city"]["enum"]
        and arguments["days"] in range(1, 10)
    )


class Service(Server):
    """Behind an API key."""

    @property
    def openai_url(self) -> str:
        return f"{self.url}/v1"

    def wait_idle(self) -> None:
        """Until nothing runs and every block is free, which is what is left of a request that nobody waits for."""
        until(lambda: self.engine()["running"] == 0 and self.metric("vllm:kv_cache_usage_perc") == 0)
