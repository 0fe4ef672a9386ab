use serde_json::json;

use super::*;

/// A folder whose tokenizer.json is whole, with `files` changed or added.
fn whole(files: &[(&str, Value)]) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, value: &Value| {
        fs::write(folder.path().join(name), value.to_string()).unwrap();
    };
    put("config.json", &json!({"model_type": "llama"}));
    put(
        "tokenizer.json",
        &json!({"added_tokens": [{
            "id": 7, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true
        }], "model": {"vocab": {"a": 0}}}),
    );
    put("tokenizer_config.json", &settings(json!({})));
    for (name, value) in files {
        put(name, value);
    }
    is_whole(folder.path())
}

fn settings(more: Value) -> Value {
    let mut settings =
        json!({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "legacy": true});
    if let (Value::Object(settings), Value::Object(more)) = (&mut settings, more) {
        settings.extend(more);
    }
    settings
}

fn with_settings(more: Value) -> bool {
    whole(&[("tokenizer_config.json", settings(more))])
}

#[test]
fn a_file_that_nothing_adds_to_is_whole() {
    assert!(whole(&[]));
    assert!(whole(&[(
        "special_tokens_map.json",
        json!({"bos_token": {"content": "<s>"}, "additional_special_tokens": ["<s>"]})
    )]));
    assert!(whole(&[("added_tokens.json", json!({"<s>": 7}))]));
    assert!(with_settings(json!({
        "added_tokens_decoder": {"7": {"content": "<s>", "special": true, "normalized": false}},
        "extra_special_tokens": {"image_token": "<s>"},
        "pad_token": null,
        "model_max_length": 1e30,
    })));
}

#[test]
fn what_other_files_add_is_noticed() {
    let token = |content: &str, lstrip: bool| json!({"content": content, "special": true, "lstrip": lstrip});
    for more in [
        json!({"added_tokens_decoder": {"8": token("<new>", false)}}),
        json!({"added_tokens_decoder": {"8": token("<s>", false)}}),
        json!({"added_tokens_decoder": {"7": token("<s>", true)}}),
        json!({"added_tokens_decoder": {"7": "<s>"}}),
        json!({"eos_token": "a"}),
        json!({"eos_token": {"content": "</s>", "__type": "AddedToken"}}),
        json!({"image_token": "<image>"}),
        json!({"additional_special_tokens": ["<s>", "<x>"]}),
        json!({"extra_special_tokens": {"image_token": "<image>"}}),
        json!({"tokenizer_class": "LlamaTokenizer"}),
        json!({"do_lower_case": true}),
        json!({"fix_mistral_regex": true}),
    ] {
        assert!(!with_settings(more.clone()), "{more}");
    }
    for (name, content) in [
        ("special_tokens_map.json", json!({"bos_token": "a"})),
        ("special_tokens_map.json", json!({"eos_token": "<s>"})),
        ("added_tokens.json", json!({"<new>": 8})),
        ("added_tokens.json", json!({"<s>": 8})),
        ("tekken.json", json!({})),
        ("tokenizer_config.json", json!({})),
    ] {
        assert!(!whole(&[(name, content.clone())]), "{name}: {content}");
    }
}

#[test]
fn a_large_vocabulary_of_a_type_whose_cutting_may_be_mended_is_noticed() {
    let vocabulary = |size: usize| {
        let tokens: Map<String, Value> = (0..size).map(|id| (id.to_string(), id.into())).collect();
        json!({"added_tokens": [{"id": 7, "content": "<s>", "special": true}], "model": {"vocab": tokens}})
    };
    for (model_type, size, expected) in [
        ("mistral", 100_001, false),
        ("mistral", 1000, true),
        ("llama", 100_001, true),
    ] {
        let files = [
            ("config.json", json!({"model_type": model_type})),
            ("tokenizer.json", vocabulary(size)),
        ];
        assert_eq!(whole(&files), expected, "{model_type} {size}");
    }
}

#[test]
fn a_file_that_is_no_tokenizer_is_left_to_the_router() {
    assert!(whole(&[("tokenizer.json", json!({"tokenizer": 1}))]));
}
