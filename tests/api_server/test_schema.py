import json
import math
from typing import get_args, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_server.errors import ApiError
from api_server.schema import refusals
from api_server.schema.decode import MAX_CONTAINERS, NAMED_SIZE, check_depth, decode, decode_query
from api_server.schema.requests import ChatRequest, CompletionRequest, GenerationRequest, PlainRequest, TokenizeRequest

MESSAGES = [{"role": "user", "content": "hi"}]
NUMBERS = [
    name
    for name, hint in get_type_hints(ChatRequest, include_extras=True).items()
    if any(getattr(kind, "__origin__", kind) in (int, float) for kind in get_args(hint))
]
RANGES = {
    "temperature": (0, 2),
    "top_p": (1e-9, 1),
    "top_k": (-1, 2**31 - 1),
    "min_p": (0, 1),
    "n": (1, 8),
    "max_tokens": (1, 2**31 - 1),
    "max_completion_tokens": (1, 2**31 - 1),
    "seed": (-(2**63), 2**63 - 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "repetition_penalty": (0.01, 10),
    "min_tokens": (0, 2**31 - 1),
    "top_logprobs": (0, 20),
    "prompt_logprobs": (0, 20),
    "priority": (-(2**31), 2**31 - 1),
    "timeout": (1e-9, 86_400),
}


def refused(body: bytes, kind: type = ChatRequest) -> ApiError:
    with pytest.raises(ApiError) as caught:
        decode(body, kind)
    assert caught.value.status == 400
    return caught.value


def chat(**fields: object) -> bytes:
    return json.dumps({"messages": MESSAGES, **fields}).encode()


def test_every_number_of_a_request_is_tested() -> None:
    assert set(NUMBERS) == set(RANGES)


@pytest.mark.parametrize("param", sorted(RANGES))
def test_ends_of_ranges_are_accepted_and_what_is_beyond_is_refused(param: str) -> None:
    low, high = RANGES[param]
    for value in (low, high):
        assert getattr(decode(chat(**{param: value}), ChatRequest), param) == value
    beyond = [low - 1, high + 1, -(10**400), 10**400, True, "1", [], {}]
    for value in beyond:
        error = refused(chat(**{param: value}))
        assert error.param == param, value
        assert error.code == "invalid_request_error"


@pytest.mark.parametrize("param", sorted(RANGES))
@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400"])
def test_what_is_no_finite_number_names_its_parameter(param: str, literal: str) -> None:
    body = b'{"messages":[{"role":"user","content":"hi"}],"%b":%b}' % (param.encode(), literal.encode())
    assert refused(body).param == param


@given(
    st.sampled_from(sorted(RANGES)),
    st.one_of(
        st.integers(),
        st.floats(),
        st.booleans(),
        st.sampled_from([2**63, -(2**63) - 1, 2**64, 1e308, -0.0, 5e-324, 10**30]),
    ),
)
def test_any_number_is_in_range_or_refused_by_name(param: str, value: float) -> None:
    body = chat(**{param: value})
    low, high = RANGES[param]
    whole = get_type_hints(ChatRequest)[param] == int | None
    if isinstance(value, bool) or (whole and isinstance(value, float)) or not math.isfinite(value):
        assert refused(body).param == param
    elif low <= value <= high:
        assert getattr(decode(body, ChatRequest), param) == value
    elif not (param in ("top_p", "timeout") and 0 < value < low):  # open ends, tested above as closely as it matters
        assert refused(body).param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": "x" * 257}, "stop"),
        ({"stop": ["ok", ""]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"bad_words": [""]}, "bad_words"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options"),
        ({"user": 5}, "user"),
        ({"metadata": []}, "metadata"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"chat_template_kwargs": {"a": [1]}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a": {"b": 1}}}, "chat_template_kwargs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "hi"}]}, "messages"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"response_format": {}}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}}, "response_format"),
        ({"structured_outputs": []}, "structured_outputs"),
        ({"structured_outputs": {"json": 1}}, "structured_outputs"),
        ({"structured_outputs": {"regex": ""}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "x" * 65_537}}, "structured_outputs"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs"),
        ({"structured_outputs": {"choice": [1]}}, "structured_outputs"),
        ({"guided_regex": ""}, "guided_regex"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"function": {}}]}, "tools"),
        ({"tools": [{"function": {"name": ""}}]}, "tools"),
        ({"tools": [{"function": {"name": "x" * 65}}]}, "tools"),
        ({"tools": [{"function": {"name": "get weather"}}]}, "tools"),
        ({"tools": [{"function": {"name": "get_weather\n"}}]}, "tools"),
        ({"tools": [{"function": {"name": "f", "parameters": []}}]}, "tools"),
        ({"tools": [{"function": {"name": "f"}}] * 129}, "tools"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tool_choice": {"type": "custom", "custom": {"name": "x"}}}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "none", "tools": []}}}, "tool_choice"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"functions": [{"name": "x y"}]}, "functions"),
        ({"function_call": "required"}, "function_call"),
        ({"model": 1}, "model"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, object], param: str) -> None:
    assert refused(chat(**fields)).param == param


def test_a_missing_field_is_named() -> None:
    assert refused(b"{}").param == "messages"
    assert refused(b"{}", CompletionRequest).param == "prompt"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"messages":[{"role":"user","content":"x"}]} x',
        b'{"a":"\xff"}',
        b"\xff\xfe",
        b"{'a':1}",
    ],
)
def test_what_is_no_json(body: bytes) -> None:
    assert refused(body).code == "invalid_json"


@pytest.mark.parametrize("body", [b"[]", b"null", b"5", b'"text"'])
def test_json_that_is_no_object(body: bytes) -> None:
    assert refused(body).code == "invalid_request_error"


def test_json_is_read_twice_only_to_name_a_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **options: object) -> None:
        raise AssertionError("the body was parsed again")

    monkeypatch.setattr("api_server.schema.decode.json.loads", never)
    assert refused(b'{"messages":[').code == "invalid_json"
    large = b'{"user":"' + b"x" * NAMED_SIZE + b'","top_p":NaN}'
    assert refused(large).code == "invalid_json"
    with pytest.raises(AssertionError):
        decode(b'{"top_p":NaN}', ChatRequest)


def test_unknown_fields_are_ignored_and_null_means_left_out() -> None:
    request = decode(chat(best_effort={"deep": [1, 2]}, temperature=None, stop=None, n=None), ChatRequest)
    assert request == decode(chat(), ChatRequest)


def test_a_lone_surrogate_is_no_text() -> None:
    assert refused(b'{"messages":[{"role":"user","content":"\\ud800"}]}').code == "invalid_json"


@pytest.mark.parametrize(("opening", "closing"), [(b'{"a":', b"}"), (b"[", b"]")])
def test_depth_ends_at_32(opening: bytes, closing: bytes) -> None:
    check_depth(opening * 32 + b"1" + closing * 32)
    with pytest.raises(ApiError, match="nested deeper"):
        check_depth(opening * 33 + b"1" + closing * 33)
    with pytest.raises(ApiError, match="nested deeper"):
        check_depth(opening * 60_000)


def test_depth_does_not_count_brackets_in_strings() -> None:
    text = '[{"\\' * 100
    request = decode(chat(user=text), ChatRequest)
    assert request.user == text


def test_wide_is_not_deep_but_has_an_end() -> None:
    check_depth(b"[" + b",".join([b"[[],{}]"] * 1000) + b"]")
    with pytest.raises(ApiError, match="objects and arrays"):
        check_depth(b"[]" * (MAX_CONTAINERS + 1))


values = st.recursive(
    st.none() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=60,
)


def depth(value: object) -> int:
    if isinstance(value, dict | list):
        inside = value.values() if isinstance(value, dict) else value
        return 1 + max(map(depth, inside), default=0)
    return 0


@given(values, st.integers(0, 40))
def test_depth_is_right_for_any_document(value: object, more: int) -> None:
    for _ in range(more):
        value = [value]
    body = json.dumps(value).encode()
    if depth(value) > 32:
        with pytest.raises(ApiError):
            check_depth(body)
    else:
        check_depth(body)


def test_query_strings_are_read_as_numbers_and_flags() -> None:
    query = {
        "prompt": "5",
        "max_tokens": "12",
        "temperature": "0.5",
        "ignore_eos": "true",
        "stop": "7",
        "access_token": "k",
    }
    request = decode_query(query, PlainRequest)
    assert (request.prompt, request.max_tokens, request.temperature) == ("5", 12, 0.5)
    assert request.ignore_eos is True
    assert request.stop == "7"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("temperature", "nan"),
        ("temperature", "inf"),
        ("temperature", "warm"),
        ("max_tokens", "0"),
        ("max_tokens", "1.5"),
        ("seed", "9" * 30),
        ("seed", "9" * 6000),
        ("ignore_eos", "perhaps"),
        ("logit_bias", "1"),
    ],
)
def test_wrong_query_strings_name_their_parameter(name: str, text: str) -> None:
    with pytest.raises(ApiError) as caught:
        decode_query({"prompt": "x", name: text}, PlainRequest)
    assert caught.value.status == 400
    assert caught.value.param == name


@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest, PlainRequest, TokenizeRequest])
def test_request_types_have_a_schema(kind: type) -> None:
    schema = msgspec.json.schema(kind)
    assert "$defs" in schema


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "the end"}, "suffix"),
    ],
)
def test_what_is_not_served_is_refused_by_name(fields: dict[str, object], param: str) -> None:
    body = msgspec.json.encode({"prompt": "x", **fields})
    with pytest.raises(ApiError) as caught:
        refusals.refuse(decode(body, CompletionRequest), refusals.NOT_SERVED)
    assert caught.value.code == "unsupported_parameter"
    assert caught.value.param == param
    assert param in caught.value.message


@pytest.mark.parametrize(
    "fields",
    [
        {"stream_options": {"include_usage": True, "resumable": True}},
        {"echo": True},
        {"echo": True, "logprobs": True, "prompt_logprobs": 0},
    ],
)
def test_asking_for_nothing_special_is_served(fields: dict[str, object]) -> None:
    request: GenerationRequest = decode(chat(**fields), ChatRequest)
    refusals.refuse(request, refusals.NOT_SERVED)
