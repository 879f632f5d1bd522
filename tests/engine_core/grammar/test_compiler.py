"""What each kind of grammar accepts, and what is refused in which words."""

import json
import socket
import threading
from functools import cache

import pytest
from msgspec.structs import replace

from engine_core.grammar.compiler import MESSAGE_CHARS, Compiler, Refused
from protocol.sampling import Grammar, GrammarKind
from tests.engine_core.grammar.engine import EOS, TOKENIZER, WIDTH, choice, encode, lark, regex, schema


@cache
def compiler() -> Compiler:
    return Compiler(TOKENIZER.decode(), WIDTH, EOS)


def accepts(grammar: Grammar, text: str) -> bool:
    """The whole text, and it may end there."""
    matcher = compiler().compile(grammar)
    return bool(matcher.consume_tokens(encode(text)) and matcher.is_accepting())


POINT = schema(type="object", properties={"x": {"type": "integer"}, "y": {"type": "integer"}}, required=["x"])


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        (POINT, '{"x":1}'),
        (POINT, '{"x": 1, "y": 2}'),
        (POINT, json.dumps({"x": 1, "y": -2}, indent=4)),
        (Grammar(GrammarKind.JSON_SCHEMA, "true"), '[1, {"a": null}]'),
        (schema(type="object"), '{"anything": ["é😀"]}'),
        (schema(type="string", pattern="^a+$"), '"aaa"'),
        (regex(r"\d{3}"), "123"),
        (regex("^(a|b)$"), "b"),
        (regex("[^a]/\\n"), "é/\n"),
        (regex(r"[\d.]+\/\D\w"), "1.5/xé"),
        (choice("yes", "no"), "no"),
        (choice("", "a"), ""),
        (choice('"', "\\", "\n", "{", "é😀", "\x00", "/x/"), "é😀"),
        (choice('"', "\\", "\n", "{", "é😀", "\x00", "/x/"), "\x00"),
        (choice('"', "\\", "\n", "{", "é😀", "\x00", "/x/"), "/x/"),
        (lark('start: "a" B+\nB: /[0-9]/'), "a12"),
        (Grammar(GrammarKind.LARK, 'root ::= "a" b\nb ::= [0-9]+ | "x"\n'), "a12"),
        (lark('start: %json {"type": "integer"}'), "-7"),
        (lark('?start: sum\n?sum: NUMBER | sum "+" NUMBER\nNUMBER: /[0-9]+/'), "1+2"),
        (lark('start[capture]: "a ::= b"\n// root ::=\n'), "a ::= b"),
    ],
)
def test_sentences_of_each_kind(grammar: Grammar, text: str) -> None:
    assert accepts(grammar, text)


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        (POINT, '{"y": 1}'),
        (POINT, '{"x":  1}'),
        (POINT, '{"x":\n\n1}'),
        (POINT, ' {"x":1}'),
        (regex("a.c"), "a\nc"),
        (regex("b"), "abc"),
        (regex(r"\d+"), "٣"),
        (choice("yes"), "ye"),
    ],
)
def test_what_is_no_sentence(grammar: Grammar, text: str) -> None:
    assert not accepts(grammar, text)


@pytest.mark.parametrize("frame", ["", "start: answer"])
def test_whitespace_has_an_end(frame: str) -> None:
    matcher = compiler().compile(replace(POINT, frame=frame))
    assert matcher.consume_tokens(encode("{\n" + 16 * " "))
    assert matcher.validate_tokens(encode(" ")) == 0


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (Grammar(GrammarKind.JSON_SCHEMA, "{"), "The JSON schema can't be read: Expecting property name"),
        (Grammar(GrammarKind.JSON_SCHEMA, "[]"), "a JSON schema is an object"),
        (Grammar(GrammarKind.JSON_SCHEMA, "false"), "a JSON schema is an object"),
        (Grammar(GrammarKind.JSON_SCHEMA, '{"items":' * 7000 + "{}" + "}" * 7000), "nested too deep"),
        (schema(type="objekt"), "can't be enforced: Invalid type: objekt"),
        (schema(**{"not": {}}), r'Unimplemented keys: \["not"\]'),
        (schema(type="object", unevaluatedProperties=False), r'Unimplemented keys: \["unevaluatedProperties"\]'),
        (schema(type="string", format="password"), "Unknown format: password"),
        (schema(oneOf=[{"type": "string", "pattern": "a"}, {"type": "string", "pattern": "b"}]), "oneOf"),
        (schema(**{"$ref": "#/$defs/none"}), "none"),
        (regex("(a"), r'The regular expression can\'t be enforced: invalid regex "\(a".* unclosed group'),
        (regex("(?=a)b"), "look-around"),
        (regex("(" * 5000 + "a" + ")" * 5000), "regex"),
        (Grammar(GrammarKind.CHOICE, "[1]"), "The list of choices can't be read: Expected `str`, got `int`"),
        (Grammar(GrammarKind.CHOICE, "[]"), "there is no choice"),
        (lark("start: b"), 'unknown name: "b"'),
        (lark('start: "a'), "The grammar can't be enforced: 1\\(10\\): lexer error"),
        (lark('strat: "a"'), "The grammar can't be enforced: no start rule found"),
        (lark('root ::= "a'), "The grammar can't be read: "),
        (lark("start: <|nope|>"), "unknown special token"),
        (lark('start: %json {"$ref": "http://example.com/s.json"}'), "does not fetch"),
    ],
)
def test_refusals_say_what_is_wrong(grammar: Grammar, words: str) -> None:
    with pytest.raises(Refused, match=words) as caught:
        compiler().compile(grammar)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < MESSAGE_CHARS + 200


FRAME = 'start: "(" answer ")" | calls\ncalls: %lark {\nstart: "call"\n}'


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        (POINT, '{"x": 1}'),
        (regex(r"\d{2}/[})]"), "12/}"),
        (choice("yes", ")"), ")"),
        (lark('start: word // }\nword: "a" "}"'), "a}"),
        (Grammar(GrammarKind.LARK, 'root ::= "a" b\nb ::= [0-9]+ | "x"\n'), "a12"),
    ],
)
def test_in_a_frame_each_kind_is_what_it_is_alone(grammar: Grammar, text: str) -> None:
    framed = replace(grammar, frame=FRAME)
    assert accepts(grammar, text)
    assert accepts(framed, f"({text})")
    assert accepts(framed, "call")
    assert not accepts(framed, text)
    assert not accepts(replace(regex(r"\d"), frame=FRAME), "(٣)")


def test_a_refusal_names_no_place_in_a_frame() -> None:
    with pytest.raises(Refused, match=r'^The grammar can.t be enforced: unknown name: "b"'):
        compiler().compile(replace(lark("start: b"), frame=FRAME))


def test_the_options_of_a_schema_are_the_clients() -> None:
    assert accepts(schema(type="object", **{"x-guidance": {"whitespace_pattern": "[ ]{4}"}}), "{    }")
    with pytest.raises(Refused, match="invalid type"):
        compiler().compile(schema(type="object", **{"x-guidance": 5}))


def test_no_reference_is_ever_fetched() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        caught = threading.Event()

        def listen() -> None:
            server.accept()[0].close()
            caught.set()

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        port = server.getsockname()[1]
        for reference in (f"http://127.0.0.1:{port}/s.json", f"http://127.0.0.1:{port}/s.json#/$defs/a"):
            with pytest.raises(Refused):
                compiler().compile(schema(**{"$ref": reference}))
            with pytest.raises(Refused):
                compiler().compile(schema(**{"$id": reference, "$ref": "other.json"}))
        assert not caught.is_set()
        socket.create_connection(("127.0.0.1", port)).close()  # it would have been heard
        listener.join(10.0)
        assert caught.is_set()


def test_a_tokenizer_may_have_more_tokens_than_the_model_has_logits() -> None:
    assert compiler().row_bytes == -(-WIDTH // 32) * 4
    assert Compiler(TOKENIZER.decode(), 1000, EOS).row_bytes * 8 >= 3072
    assert Compiler(TOKENIZER.decode(), WIDTH, []).eos_token_ids


def test_a_tokenizer_without_bytes_is_refused() -> None:
    pieces = {
        "type": "WordPiece",
        "vocab": {"a": 0, "[UNK]": 1},
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
    }
    text = json.dumps(
        {"version": "1.0", "model": pieces, "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}
    )
    with pytest.raises(ValueError, match="decoder"):
        Compiler(text, 10, [0])
