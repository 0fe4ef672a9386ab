//! Tests where templates and special tokens are found.

use std::fs;

use serde_json::json;
use tempfile::TempDir;

use super::tests::{PLAIN, conversation};
use super::*;

fn prompt(folder: &TempDir, config: Option<&Path>) -> Result<String, ChatTemplateError> {
    ChatTemplate::load(folder.path(), config)?.render(
        &conversation(json!([{"role": "user", "content": "x"}])),
        &PLAIN,
    )
}

fn write(folder: &TempDir, name: &str, text: &str) {
    fs::write(folder.path().join(name), text).unwrap();
}

#[test]
fn the_template_is_found_wherever_models_keep_it() {
    let folder = TempDir::new().unwrap();
    assert_eq!(prompt(&folder, None), Err(ChatTemplateError::Missing));
    write(
        &folder,
        "chat_template.json",
        r#"{"chat_template": "json"}"#,
    );
    assert_eq!(prompt(&folder, None).unwrap(), "json");
    write(
        &folder,
        "tokenizer_config.json",
        r#"{"chat_template": "{{ bos_token }}config", "bos_token": {"content": "<b>"}}"#,
    );
    assert_eq!(prompt(&folder, None).unwrap(), "<b>config");
    write(
        &folder,
        "chat_template.jinja",
        "{{ bos_token }}jinja{{ eos_token }}",
    );
    write(
        &folder,
        "special_tokens_map.json",
        r#"{"bos_token": "<m>", "eos_token": "<e>"}"#,
    );
    // Without `added_tokens_decoder` the map takes precedence, as in Transformers.
    assert_eq!(prompt(&folder, None).unwrap(), "<m>jinja<e>");
    write(&folder, "other.json", r#"{"chat_template": "other"}"#);
    let other = folder.path().join("other.json");
    assert_eq!(prompt(&folder, Some(&other)).unwrap(), "other");
    let missing = folder.path().join("missing.json");
    let error = prompt(&folder, Some(&missing)).unwrap_err();
    assert!(matches!(error, ChatTemplateError::Unreadable { .. }));
}

#[test]
fn of_named_templates_the_default_is_taken() {
    let folder = TempDir::new().unwrap();
    let named = |names: &[&str]| {
        let list: Vec<_> = names
            .iter()
            .map(|name| json!({"name": name, "template": format!("is {name}")}))
            .collect();
        json!({ "chat_template": list }).to_string()
    };
    write(
        &folder,
        "tokenizer_config.json",
        &named(&["tool_use", "default"]),
    );
    assert_eq!(prompt(&folder, None).unwrap(), "is default");
    write(&folder, "tokenizer_config.json", &named(&["rag"]));
    assert_eq!(prompt(&folder, None).unwrap(), "is rag");
    write(
        &folder,
        "tokenizer_config.json",
        &named(&["rag", "tool_use"]),
    );
    assert!(matches!(
        prompt(&folder, None),
        Err(ChatTemplateError::NoDefault { .. })
    ));
}

#[test]
fn a_request_with_tools_takes_the_template_for_tools() {
    let folder = TempDir::new().unwrap();
    let config = json!({"chat_template": [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "{{ tools|length }} tools"},
        {"name": "rag", "template": "rag"},
    ]});
    write(&folder, "tokenizer_config.json", &config.to_string());
    let template = ChatTemplate::load(folder.path(), None).unwrap();
    for (tools, expected) in [(json!([{}]), "1 tools"), (json!(null), "plain")] {
        let variables = json!({ "tools": tools });
        let options = RenderOptions {
            variables: variables.as_object(),
            ..PLAIN
        };
        assert_eq!(template.render(&[], &options).unwrap(), expected);
    }
    assert_eq!(prompt(&folder, None).unwrap(), "plain");
}

#[test]
fn files_of_further_templates_stand_beside_the_default_one() {
    let folder = TempDir::new().unwrap();
    fs::create_dir(folder.path().join("additional_chat_templates")).unwrap();
    write(&folder, "chat_template.jinja", "file\r\n{{ 'x' }}\r\n");
    write(&folder, "additional_chat_templates/tool_use.jinja", "tools");
    write(
        &folder,
        "tokenizer_config.json",
        r#"{"chat_template": "config"}"#,
    );
    assert_eq!(prompt(&folder, None).unwrap(), "file\nx");
    let variables = json!({"tools": [{}]});
    let options = RenderOptions {
        variables: variables.as_object(),
        ..PLAIN
    };
    let template = ChatTemplate::load(folder.path(), None).unwrap();
    assert_eq!(template.render(&[], &options).unwrap(), "tools");
}

#[test]
fn special_tokens_have_the_names_that_transformers_gives_them() {
    let folder = TempDir::new().unwrap();
    let config = json!({
        "chat_template": "{{ bos_token }}{{ image_token }}{{ boi }}{{ add_bos_token }}{{ pad_token }}",
        "bos_token": {"content": "<b>", "lstrip": false}, "image_token": "<i>", "add_bos_token": true,
        "pad_token": null, "extra_special_tokens": {"boi": "<o>"}, "added_tokens_decoder": {},
    });
    write(&folder, "tokenizer_config.json", &config.to_string());
    write(
        &folder,
        "special_tokens_map.json",
        r#"{"bos_token": "<m>", "pad_token": "<p>"}"#,
    );
    assert_eq!(prompt(&folder, None).unwrap(), "<b><i><o>");
}

#[test]
fn a_template_beyond_its_limits_is_told_of_by_name_at_the_start() {
    let folder = TempDir::new().unwrap();
    let endless =
        "a\n{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}";
    write(&folder, "chat_template.jinja", endless);
    let error = prompt(&folder, None).unwrap_err().to_string();
    assert!(error.contains("more steps"), "{error}");
    assert!(
        error.contains("line 2 of the chat template, chat_template.jinja"),
        "{error}"
    );
}
