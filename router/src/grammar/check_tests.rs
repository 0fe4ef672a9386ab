use std::str::FromStr;

use serde_json::{Value, json};
use tokenizers::Tokenizer;

use super::*;
use crate::grammar::spelling;

/// A token for each printable character of ASCII and for the line break, a special token, and the end.
fn checker() -> Checker {
    let characters = (' '..='~').chain(['\n']);
    let mut vocab: serde_json::Map<String, Value> = characters
        .enumerate()
        .map(|(id, c)| (c.to_string(), json!(id)))
        .collect();
    let size = vocab.len();
    for (name, id) in [("<|call|>", size), ("<|end|>", size + 1)] {
        vocab.insert(name.to_owned(), json!(id));
    }
    let added = |id: usize, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [added(size, "<|call|>"), added(size + 1, "<|end|>")],
        "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    let tokenizer = Tokenizer::from_str(&tokenizer.to_string()).unwrap();
    let tokens = TokenTable::of(&tokenizer);
    Checker::new(&tokens, tokens.len() as u32, &[tokens.len() as u32 - 1]).unwrap()
}

fn refusal(checker: &Checker, body: &Value) -> Option<Refusal> {
    let fields = body.as_object().unwrap().iter();
    let names = [
        "guided_json",
        "regex",
        "ebnf",
        "guided_grammar",
        "structural_tag",
        "guided_choice",
    ];
    let fields = fields.map(|(name, value)| {
        let name = names.iter().find(|known| *known == name).unwrap();
        (*name, Some(value))
    });
    let grammar = spelling::read(fields).unwrap().unwrap();
    checker.check(&grammar, &grammar.serialized()).err()
}

/// True if a grammar accepts a whole text.
fn accepts(checker: &Checker, body: &Value, text: &str) -> bool {
    let grammar = refusal(checker, body);
    assert_eq!(grammar, None, "{body}");
    let name: &str = body.as_object().unwrap().keys().next().unwrap();
    let names = [
        "guided_json",
        "regex",
        "ebnf",
        "guided_grammar",
        "structural_tag",
        "guided_choice",
    ];
    let name = names.iter().find(|known| **known == name).unwrap();
    let grammar = spelling::read([(*name, body.get(*name))]).unwrap().unwrap();
    let parsed = serde_json::from_str(&grammar.serialized()).unwrap();
    let mut matcher = Matcher::new(Ok(checker.parser(parsed).unwrap()));
    let trie = checker.factory.tok_env().tok_trie().clone();
    for character in text.chars() {
        let token = trie.token_id(character.to_string().as_bytes()).unwrap();
        if matcher.try_consume_tokens(&[token]).unwrap() == 0 {
            return false;
        }
    }
    matcher.is_accepting().unwrap()
}

#[test]
fn what_cannot_be_enforced_is_refused_at_its_place() {
    let checker = checker();
    let within = |schema: Value| json!({"type": "object", "properties": {"a": {"type": "array", "items": schema}}});
    for (schema, place, words) in [
        (
            json!({"type": "string", "format": "zipcode"}),
            ".properties.a.items",
            "Unknown format",
        ),
        (
            json!({"type": "strung"}),
            ".properties.a.items",
            "Invalid type",
        ),
        (json!({"not": {}}), ".properties.a.items", "not"),
        (
            json!({"type": "array", "uniqueItems": true}),
            ".properties.a.items",
            "uniqueItems",
        ),
        (
            json!({"type": "string", "pattern": "(a"}),
            ".properties.a.items",
            "unclosed group",
        ),
        (
            json!({"type": "string", "pattern": "a(?=b)"}),
            ".properties.a.items",
            "look-around",
        ),
        (
            json!({"oneOf": [{"type": "number"}, {"type": "integer"}]}),
            ".properties.a.items",
            "oneOf",
        ),
        (
            json!({"$ref": "#/nowhere"}),
            ".properties.a.items",
            "nowhere",
        ),
        (
            json!({"$ref": "https://example.com/a.json"}),
            ".properties.a.items",
            "example.com",
        ),
    ] {
        let whole = json!({"guided_json": within(schema.clone())});
        let refusal = refusal(&checker, &whole).unwrap_or_else(|| panic!("{schema} is accepted"));
        assert!(
            refusal.reason.contains(words),
            "{schema}: {}",
            refusal.reason
        );
        assert_eq!(
            refusal.field,
            format!("guided_json{place}"),
            "{schema}: {}",
            refusal.reason
        );
    }
}

#[test]
fn impossible_schemas_are_refused() {
    let checker = checker();
    let impossible = json!({"type": "integer", "minimum": 3, "maximum": 2});
    for schema in [
        json!({"type": "object", "properties": {"b": impossible}, "required": ["b"]}),
        json!({"type": "object", "required": ["b"], "additionalProperties": false}),
        json!({"type": "array", "items": impossible, "minItems": 1}),
        json!({"allOf": [{"type": "string"}, {"type": "integer"}]}),
        json!({"enum": []}),
        json!(false),
    ] {
        let refused = refusal(&checker, &json!({"guided_json": schema}));
        assert!(refused.is_some(), "{schema}");
    }
    let possible = json!({"guided_json": {"type": "array", "items": impossible}});
    assert!(accepts(&checker, &possible, "[]"));
}

#[test]
fn endless_grammars_are_refused() {
    let checker = checker();
    for body in [
        json!({"guided_json": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}}),
        json!({"guided_json": {"$ref": "#"}}),
        json!({"guided_json": {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/list"}],
               "$defs": {"list": {"type": "array", "items": {"$ref": "#/$defs/list"}, "minItems": 1}}}}),
        json!({"guided_grammar": "start: start \"a\""}),
        json!({"guided_grammar": "start: \"a\"* | \"b\" trap\ntrap: \"c\" trap"}),
        json!({"guided_grammar": "start: a\na: b\nb: a"}),
        json!({"ebnf": "root ::= \"a\" root"}),
    ] {
        assert!(refusal(&checker, &body).is_some(), "{body}");
    }
    for body in [
        json!({"guided_json": {"type": "object", "properties": {"a": {"$ref": "#"}}}}),
        json!({"guided_json": {"type": "array", "items": {"$ref": "#"}}}),
        json!({"ebnf": "root ::= \"a\" root | \"b\""}),
    ] {
        assert_eq!(refusal(&checker, &body), None, "{body}");
    }
}

#[test]
fn grammars_made_to_blow_up_are_refused_or_compiled_quickly() {
    let checker = checker();
    let doubling: serde_json::Map<String, Value> = (0..60)
        .map(|i| {
            let next = json!({"$ref": format!("#/$defs/d{}", i + 1)});
            (
                format!("d{i}"),
                json!({"type": "object", "properties": {"a": next, "b": next}}),
            )
        })
        .chain([("d60".to_owned(), json!({"type": "string"}))])
        .collect();
    let crossed: Vec<Value> = (0..12)
        .map(|i| {
            let options =
                (0..4).map(|j| json!({"properties": {format!("p{i}{j}"): {"type": "string"}}}));
            json!({"anyOf": options.collect::<Vec<_>>()})
        })
        .collect();
    let nested = format!("start: {}\"a\"{}", "(".repeat(20_000), ")".repeat(20_000));
    let chain: String = (0..5000).map(|i| format!("T{i}: T{}\n", i + 1)).collect();
    let chain = format!("start: T0\n{chain}T5000: \"a\"\n");
    for body in [
        json!({"guided_json": {"$defs": doubling, "$ref": "#/$defs/d0"}}),
        json!({"guided_json": {"allOf": crossed}}),
        json!({"guided_json": {"type": "array", "minItems": 1_000_000, "items": {"type": "string"}}}),
        json!({"regex": "(((a{1,1000}){1,1000}){1,1000}){1,1000}"}),
        json!({"regex": "(a|a|a)*(a|aa)+b{100000}"}),
        json!({"regex": "(x+x+)+y"}),
        json!({"regex": format!("{}a{}", "(".repeat(5000), ")".repeat(5000))}),
        json!({"guided_grammar": nested}),
        json!({"guided_grammar": chain}),
    ] {
        let started = std::time::Instant::now();
        let thread = std::thread::Builder::new().stack_size(256 * 1024 * 1024);
        std::thread::scope(|scope| {
            let checked = thread.spawn_scoped(scope, || refusal(&checker, &body));
            checked.unwrap().join().expect("no panic");
        });
        let text = body.to_string();
        assert!(
            started.elapsed().as_secs() < 20,
            "{}",
            &text[..text.len().min(100)]
        );
    }
}

#[test]
fn texts_follow_their_grammars() {
    let checker = checker();
    let schema = json!({"guided_json": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
                        "additionalProperties": false}});
    let recursive = json!({"ebnf": "root ::= \"[\" (root | [a-z]+ \"ing\") \"]\""});
    let tags = json!({"structural_tag": {
        "structures": [{"begin": "<f=x>", "schema": {"type": "boolean"}, "end": "</f>"}], "triggers": ["<f="]}});
    let choice = json!({"guided_choice": ["a", "ab"]});
    for (body, text, expected) in [
        (&schema, "{\"a\": 1}", true),
        (&schema, "{\n  \"a\":1\n}", true),
        (&schema, "{\"a\":  1}", false),
        (&schema, "{\"b\": 1}", false),
        (&recursive, "[[singing]]", true),
        (&recursive, "[sung]", false),
        (&choice, "ab", true),
        (&choice, "b", false),
        (&json!({"regex": "^a|bc$"}), "bc", true),
        (&json!({"regex": "[0-9]{3}/"}), "123/", true),
        (&json!({"regex": "[0-9]{3}"}), "12", false),
        (&tags, "see <f=x>true</f> and <f=x>false</f>.", true),
        (&tags, "nothing", true),
        (&tags, "see <f=x>3", false),
        (&tags, "see <f=y", false),
    ] {
        assert_eq!(accepts(&checker, body, text), expected, "{body}: {text}");
    }
}

#[test]
fn special_tokens_are_no_text() {
    let checker = checker();
    let trie = checker.factory.tok_env().tok_trie();
    let call = trie.get_special_token("<|call|>").unwrap();
    let by_name = Grammar::from_lark("tools", "start: <|call|> \"x\"".to_owned());
    let by_text = Grammar::from_lark("tools", "start: \"<|call|>\" \"x\"".to_owned());
    for (grammar, expected) in [(by_name, 1), (by_text, 0)] {
        let parsed = serde_json::from_str(&grammar.serialized()).unwrap();
        let mut matcher = Matcher::new(Ok(checker.parser(parsed).unwrap()));
        assert_eq!(matcher.try_consume_tokens(&[call]).unwrap(), expected);
    }
}
