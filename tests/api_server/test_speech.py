"""What answers are held to and how they are read, by the dialects that templates show: the grammars are compiled, and
asked about answers as models of each family write them."""

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from api_server.errors import ApiError
from api_server.schema.tools import FunctionDefinition
from api_server.speech import Opening, Speech
from api_server.tools import Calling
from protocol.sampling import Grammar, GrammarKind
from tests.api_server.parsing.grammars import Vocabulary, vocabulary
from tests.api_server.parsing.reading import read
from tests.api_server.templates import LLAMA, QWEN, THINKING

TAGS = ("<tool_call>", "</tool_call>", "<think>", "</think>")
WORDS = vocabulary(*TAGS)
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTIONS = (FunctionDefinition("get_weather", None, PARAMETERS), FunctionDefinition("get_time"))
SCHEMA = Grammar(GrammarKind.JSON_SCHEMA, '{"type":"object","required":["x"]}', "response_format")
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
WRONG_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"town'
UNKNOWN_CALL = '<tool_call>\n{"name": "get_news"'
TIME_CALL = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
LLAMA_CALL = '{"name": "get_weather", "parameters": {"city": "Paris"}}'
PLAIN = "{% for message in messages %}{{ message.content }}{% endfor %}"
FRESH = Opening(False)
NOWHERE = Opening()


def speech(
    template: str, words: Vocabulary = WORDS, tool_parser: str = "auto", reasoning_parser: str = "auto"
) -> Speech:
    added = words.tokenizer.get_added_tokens_decoder()
    tokens = [(token, content.content, content.special) for token, content in added.items()]
    return Speech(template, tokens, tool_parser=tool_parser, reasoning_parser=reasoning_parser)


def calling(functions: Sequence[FunctionDefinition] = FUNCTIONS, **more: bool) -> Calling:
    return Calling(functions=tuple(functions), allowed=tuple(functions), size=0, **more)


def grammar(
    speech: Speech, calling: Calling | None = None, wanted: Grammar | None = None, opening: Opening = FRESH
) -> Grammar:
    found = speech.grammar(calling, wanted, opening)
    assert found is not None
    return found


# ------------------------------------------------------------------------------------------------ where answers begin


def test_answers_begin_inside_a_thought_behind_it_or_outside() -> None:
    qwen = speech(QWEN)
    assert qwen.opening("<|im_start|>assistant\n", None) == Opening(False, over=False)
    assert qwen.opening("<|im_start|>assistant\n<think>\n\n</think>\n\n", None) == Opening(False, over=True)
    assert qwen.opening("<|im_start|>assistant\n<think>\n", None) == Opening(True, over=False)
    assert speech(PLAIN).opening("<think>\n", None) == NOWHERE
    assert speech(QWEN, reasoning_parser="none").opening("<think>\n", None) == NOWHERE
    assert speech(PLAIN, reasoning_parser="deepseek_r1").opening("[assistant]", None) == Opening(True)


def test_a_message_that_goes_on_is_in_its_thought_or_past_all_of_them() -> None:
    qwen = speech(QWEN)
    assert qwen.opening("Well", "<think>Well") == Opening(True)
    assert qwen.opening("So", "<think>Well</think>So") == Opening(None)
    assert qwen.opening("So", "So") == Opening(None)
    assert qwen.opening("<|im_start|>assistant\n", "") == Opening(False)


# ------------------------------------------------------------------------------------------------ what they may be


def test_most_answers_are_free() -> None:
    assert speech(QWEN).grammar(None, None, FRESH) is None
    assert speech(QWEN).grammar(calling(), None, FRESH) is None
    assert speech(PLAIN).grammar(calling(), None, NOWHERE) is None


def test_a_forced_call_is_written_as_the_model_was_trained_to() -> None:
    forced = grammar(speech(QWEN), calling(forced=True), opening=NOWHERE)
    assert WORDS.accepts(forced, CALL)
    assert WORDS.accepts(forced, f"{CALL}\n{TIME_CALL}")
    for wrong in ("Hello", WRONG_CALL, UNKNOWN_CALL, LLAMA_CALL[:9]):
        assert not WORDS.begins(forced, wrong)
    llama = grammar(speech(LLAMA), calling(forced=True))
    assert WORDS.accepts(llama, LLAMA_CALL)
    assert not WORDS.begins(llama, CALL)


def test_a_forced_call_needs_no_dialect() -> None:
    plain = vocabulary()
    for parser in ("auto", "none"):
        forced = grammar(speech(PLAIN, plain, tool_parser=parser), calling(forced=True), opening=NOWHERE)
        assert plain.accepts(forced, CALL)
        assert not plain.begins(forced, UNKNOWN_CALL)
        assert not plain.begins(forced, f"{CALL}\n"), "who has not learnt to call has not learnt to stop"


def test_one_call_is_one() -> None:
    single = grammar(speech(QWEN), calling(forced=True, parallel=False), opening=NOWHERE)
    assert WORDS.accepts(single, CALL)
    assert not WORDS.begins(single, f"{CALL}\n<tool_call>")


def test_a_forced_call_follows_the_thought() -> None:
    for opening, before in ((Opening(True), "Hm.\n</think>\n\n"), (FRESH, "<think>\nHm.\n</think>\n\n"), (FRESH, "")):
        forced = grammar(speech(QWEN), calling(forced=True), opening=opening)
        assert WORDS.accepts(forced, before + CALL)
        assert not WORDS.begins(forced, before + "Hello")


def test_behind_a_thought_that_is_over_no_other_begins() -> None:
    forced = grammar(speech(QWEN), calling(forced=True), opening=Opening(False, over=True))
    assert WORDS.accepts(forced, CALL)
    assert not WORDS.begins(forced, "<think>")


def test_a_format_holds_from_the_end_of_the_thought_on() -> None:
    assert speech(PLAIN).grammar(None, SCHEMA, NOWHERE) is SCHEMA
    formatted = grammar(speech(QWEN), None, SCHEMA)
    for before in ("", "<think>{ Hm.</think>\n\n"):
        assert WORDS.accepts(formatted, before + '{"x": 1}')
        assert not WORDS.begins(formatted, before + '{"x":    1}')
        assert not WORDS.begins(formatted, before + "Hello")
    assert formatted.param == "response_format"


def test_a_model_that_may_call_and_has_a_format_does_either() -> None:
    for opening, before in ((NOWHERE, ""), (FRESH, "<think>Hm.</think>\n\n")):
        either = grammar(speech(QWEN), calling(), SCHEMA, opening)
        for answer in (CALL, f"{CALL}\n{TIME_CALL}", '{"x": [1, 2]}'):
            assert WORDS.accepts(either, before + answer)
        for wrong in ("Hello", UNKNOWN_CALL, '{"x":    1}'):
            assert not WORDS.begins(either, before + wrong)
        assert not WORDS.accepts(either, before + '{"y": 1}')
        assert either.param == "response_format"


def test_a_model_without_a_dialect_answers_in_the_format() -> None:
    assert speech(PLAIN).grammar(calling(), SCHEMA, NOWHERE) is SCHEMA


def test_structured_outputs_are_of_the_whole_output() -> None:
    wanted = replace_param(SCHEMA, "structured_outputs")
    assert speech(QWEN).grammar(calling(), wanted, NOWHERE) is wanted


def replace_param(grammar: Grammar, param: str) -> Grammar:
    return Grammar(grammar.kind, grammar.text, param)


def test_of_a_strict_function_every_call_is_held_to_its_schema() -> None:
    strict = calling([FunctionDefinition("get_weather", None, PARAMETERS, strict=True), FUNCTIONS[1]])
    for opening, before in ((NOWHERE, ""), (FRESH, "<think>Hm.</think>\n\n"), (Opening(True), "Hm.</think>\n\n")):
        free = grammar(speech(QWEN), strict, opening=opening)
        for answer in ("Hello.", "", CALL, f"Let me see.\n{CALL}\n{TIME_CALL} Done.", '{"x":    1}'):
            assert WORDS.accepts(free, before + answer)
        for wrong in (WRONG_CALL, f"Hello {UNKNOWN_CALL}"):
            assert not WORDS.begins(free, before + wrong)
        assert free.param == "tools"
    single = grammar(speech(QWEN), replace(strict, parallel=False), opening=NOWHERE)
    assert WORDS.accepts(single, f"Well: {CALL} Done.")
    assert not WORDS.begins(single, f"{CALL} {TIME_CALL}")


def test_where_a_call_begins_with_no_token_of_its_own_it_is_free_unless_forced() -> None:
    strict = calling([FunctionDefinition("get_weather", None, PARAMETERS, strict=True)])
    assert speech(QWEN, vocabulary()).grammar(strict, None, NOWHERE) is None
    assert speech(LLAMA).grammar(strict, None, NOWHERE) is None


def test_parameters_that_are_of_no_object_are_refused_by_the_clients_name() -> None:
    bad = [FunctionDefinition("f", None, {"type": "string"})]
    for legacy, param in ((False, "tools"), (True, "functions")):
        with pytest.raises(ApiError) as caught:
            speech(QWEN).grammar(calling(bad, forced=True, legacy=legacy), None, NOWHERE)
        assert (caught.value.status, caught.value.param) == (400, param)
        assert grammar(speech(QWEN), calling(forced=True, legacy=legacy)).param == param


# ------------------------------------------------------------------------------------------------ how they are read


def told(speech: Speech, text: str, calling: Calling | None, opening: Opening, *, hides: bool = True) -> object:
    reader = speech.reading(calling, opening, hides_special=hides).reader
    assert reader is not None
    reading = read(reader(), *text)
    return reading.content, reading.reasoning, reading.calls


def test_a_model_that_neither_thinks_nor_may_call_has_no_reader() -> None:
    assert speech(PLAIN).reading(calling(), NOWHERE, hides_special=True).reader is None
    assert speech(LLAMA).reading(None, NOWHERE, hides_special=True).reader is None
    assert speech(QWEN, tool_parser="none").reading(calling(), NOWHERE, hides_special=True).reader is None
    assert speech(LLAMA).reading(None, NOWHERE, hides_special=True).visible == frozenset()


def test_calls_are_read_in_the_models_dialect() -> None:
    arguments = [("get_weather", '{"city": "Paris"}')]
    assert told(speech(QWEN), f"Well.{CALL}", calling(), NOWHERE) == ("Well.", "", arguments)
    assert told(speech(LLAMA), LLAMA_CALL, calling(), NOWHERE) == ("", "", arguments)
    assert told(speech(LLAMA, tool_parser="hermes"), CALL, calling(), NOWHERE) == ("", "", arguments)
    assert told(speech(PLAIN), CALL, calling(forced=True), NOWHERE) == ("", "", arguments)


def test_calls_of_other_functions_are_text_where_nothing_else_marks_a_call() -> None:
    other = LLAMA_CALL.replace("weather", "news")
    assert told(speech(LLAMA), other, calling(), NOWHERE) == (other, "", [])


def test_only_as_many_calls_as_there_may_be_are_told() -> None:
    _, _, calls = told(speech(QWEN), CALL + TIME_CALL, calling(parallel=False), NOWHERE)  # type: ignore[misc]
    assert [name for name, _ in calls] == ["get_weather"]


def test_thoughts_are_read_whether_or_not_there_are_tools() -> None:
    thought = "\nHm.\n</think>\n\nHello"
    assert told(speech(THINKING), thought, None, Opening(True)) == ("Hello", "Hm.", [])
    assert told(speech(QWEN), f"<think>{thought}{CALL}", calling(), FRESH)[1] == "Hm."  # type: ignore[index]
    assert told(speech(QWEN), CALL, None, FRESH) == (CALL, "", [])


def test_special_tokens_of_a_dialect_are_seen_by_the_reader_and_not_by_the_client() -> None:
    words = vocabulary("<|python_tag|>", "<|other|>")
    llama = speech(LLAMA, words)
    reading = llama.reading(calling(), NOWHERE, hides_special=True)
    assert reading.visible == {words.tokenizer.token_to_id("<|python_tag|>")}
    for text in ("<|python_tag|>", "Hello <|python_tag|>", "<|python_tag|>print(1)<|python_tag|>"):
        expected = text.replace("<|python_tag|>", "")
        assert told(llama, text, calling(), NOWHERE) == (expected, "", [])
        assert told(llama, text, calling(), NOWHERE, hides=False) == (text, "", [])
    assert told(llama, "<|python_tag|>" + LLAMA_CALL, calling(), NOWHERE)[2] != []  # type: ignore[index]


def test_a_parser_that_does_not_exist() -> None:
    for parsers in ({"tool_parser": "xml"}, {"reasoning_parser": "xml"}):
        with pytest.raises(ValueError, match="xml"):
            speech(PLAIN, **parsers)  # type: ignore[arg-type]


def test_schemas_keep_their_options_within_larger_grammars() -> None:
    lenient = Grammar(GrammarKind.JSON_SCHEMA, json.dumps({"type": "string", "x-guidance": {"lenient": True}}))
    assert '"lenient":true' in grammar(speech(QWEN), None, lenient).text.replace(" ", "")
