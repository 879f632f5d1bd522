import pytest

from api_server.config import Config, ConfigError, from_environ, variable

ENGINE = {"TOKENWIRE_ENGINE": "ipc:///run/e.sock"}


def test_defaults_are_the_documented_ones() -> None:
    config = from_environ(ENGINE)
    assert (config.shutdown_timeout_s, config.stall_timeout_s, config.keepalive_interval_s) == (120.0, 60.0, 15.0)
    assert (config.max_body_size, config.max_header_size, config.max_headers) == (4 << 20, 32 << 10, 64)
    assert config.api_keys == config.cors_origins == ()


def test_every_field_has_its_variable_without_a_unit() -> None:
    assert variable("shutdown_timeout_s") == "TOKENWIRE_SHUTDOWN_TIMEOUT"
    assert variable("api_keys") == "TOKENWIRE_API_KEY"
    assert variable("max_headers") == "TOKENWIRE_MAX_HEADERS"


def test_texts_become_values() -> None:
    config = from_environ(
        ENGINE
        | {
            "TOKENWIRE_API_KEY": "a, b,",
            "TOKENWIRE_PORT": "81",
            "TOKENWIRE_STALL_TIMEOUT": "2.5",
            "TOKENWIRE_MAX_BODY_SIZE": "2097152",
            "TOKENWIRE_HEALTH_ONLY": "true",
            "TOKENWIRE_TOOL_CALL_PARSER": "hermes",
            "TOKENWIRE_REASONING_PARSER": "none",
            "TOKENWIRE_METRICS_KEY": "",
            "TOKENWIRE_MODEL": "the engine's",
            "HOME": "/",
        }
    )
    assert config.api_keys == ("a", "b")
    assert (config.port, config.stall_timeout_s, config.max_body_size) == (81, 2.5, 2 << 20)
    assert config.health_only
    assert (config.tool_call_parser, config.reasoning_parser) == ("hermes", "none")
    assert config.metrics_key is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("TOKENWIRE_PORT", "x"),
        ("TOKENWIRE_PORT", "70000"),
        ("TOKENWIRE_STALL_TIMEOUT", "0"),
        ("TOKENWIRE_KEEPALIVE_INTERVAL", "nan"),
        ("TOKENWIRE_MAX_BODY_SIZE", "4M"),
        ("TOKENWIRE_LOG_FORMAT", "xml"),
        ("TOKENWIRE_TOOL_CALL_PARSER", "xml"),
        ("TOKENWIRE_REASONING_PARSER", "hermes"),
        ("TOKENWIRE_ENGINE", "ipc:///a,ipc:///b"),
        ("TOKENWIRE_ENGINE", "/run/e.sock"),
        ("TOKENWIRE_ENGINE", "tcp://127.0.0.1:5"),
    ],
)
def test_a_bad_value_names_its_variable_in_one_line(name: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_environ(ENGINE | {name: text})
    message = str(caught.value)
    assert message.startswith(name)
    assert "\n" not in message


def test_without_an_engine_there_is_nothing_to_serve() -> None:
    with pytest.raises(ConfigError, match=r"^TOKENWIRE_ENGINE is not set$"):
        from_environ({})


def test_settings_never_change() -> None:
    with pytest.raises(AttributeError):
        Config(engine="ipc:///e").port = 1  # type: ignore[misc]
