//! Renders clients' conversations with templates in the style of well-known families, and compares the prompts with
//! those of Transformers.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{ChatTemplate, Message, RenderOptions};

/// Written by `integration-tests/test_chat_templates.py`.
const CONVERSATIONS: &str = include_str!("testdata/conversations.json");

#[derive(Deserialize)]
struct Conversations {
    families: Map<String, Value>,
    conversations: Vec<Conversation>,
}

#[derive(Deserialize)]
struct Conversation {
    /// Messages as a client sends them.
    messages: Vec<Message>,
    options: Map<String, Value>,
    variables: Map<String, Value>,
    /// Prompt that Transformers renders for each family, or the exception that its template raises.
    answers: Map<String, Value>,
}

fn family(name: &str) -> ChatTemplate {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/chat_template/testdata/families");
    let source = std::fs::read_to_string(folder.join(format!("{name}.jinja"))).unwrap();
    let tokens = json!({"bos_token": "<s>", "eos_token": "</s>"});
    ChatTemplate::compile(&source, tokens.as_object().cloned().unwrap()).unwrap()
}

#[test]
fn clients_conversations_give_the_prompts_of_transformers() {
    let file: Conversations = serde_json::from_str(CONVERSATIONS).unwrap();
    let mut wrong = Vec::new();
    for name in file.families.keys() {
        let template = family(name);
        for conversation in &file.conversations {
            let flag = |name: &str| conversation.options.get(name) == Some(&json!(true));
            let options = RenderOptions {
                add_generation_prompt: flag("add_generation_prompt"),
                continue_final_message: flag("continue_final_message"),
                variables: Some(&conversation.variables),
            };
            let result = template.render(&conversation.messages, &options);
            let answer = conversation.answers[name].get("answer");
            let fits = match (&result, answer.and_then(Value::as_str)) {
                (Ok(prompt), Some(answer)) => prompt == answer,
                (Err(_), None) => true,
                _ => false,
            };
            if !fits {
                wrong.push(format!(
                    "{name}: {:?}\n  wanted {:?}\n  got    {result:?}",
                    conversation.messages, conversation.answers[name]
                ));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
