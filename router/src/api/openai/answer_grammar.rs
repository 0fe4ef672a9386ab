//! The grammar of a chat's answer: calls that are required or strict, a format of the content, and thoughts before them.

use std::sync::Arc;

use super::tools::ToolChoice;
use crate::error::ApiError;
use crate::grammar::{Grammar, Part, Rules};
use crate::tool_calls::{CallRules, Format, Plan, Unenforceable, Wanted, rules};

/// Name of the part that the content follows.
const CONTENT: &str = "content";

/// Field for a format of the content. Grammars of other fields are for the whole answer.
const RESPONSE_FORMAT: &str = "response_format";

/// The format for a request with this choice. A call can be required of a model that knows no tools too: it writes them
/// as a list in JSON.
pub fn format_for(format: &Arc<Format>, choice: &ToolChoice) -> Arc<Format> {
    let requires = matches!(choice, ToolChoice::Required | ToolChoice::Named(_));
    match requires && !format.has_calls() {
        true => Arc::new(format.with_plain_calls()),
        false => Arc::clone(format),
    }
}

/// Makes the grammar of an answer. `content`: grammar that the request asks of its content; `special_tokens`: names and
/// ids of the tokenizer's special tokens. An answer that must be a call has no content, so that `response_format` does
/// not apply to it: clients send the format with every request of a conversation.
///
/// # Errors
///
/// A required call beside a grammar of the whole answer, or a strict schema that the model's format cannot hold.
pub fn answer_grammar(
    plan: &Plan,
    choice: &ToolChoice,
    content: Option<Grammar>,
    special_tokens: &[(String, u32)],
) -> Result<Option<Grammar>, ApiError> {
    let is_strict = plan.tools.iter().any(|tool| tool.strict);
    let wanted = match (choice, &content) {
        (ToolChoice::Required | ToolChoice::Named(_), Some(content))
            if !content.field().starts_with(RESPONSE_FORMAT) =>
        {
            let field = content.field();
            return Err(ApiError::validation(
                field,
                format!(
                    "`{field}` sets the form of the answer, but `tool_choice` requires a call; leave out one"
                ),
            ));
        }
        (ToolChoice::Required, _) => Wanted::Required,
        (ToolChoice::Named(name), _) => Wanted::Named(name),
        (_, Some(_)) => Wanted::Content(CONTENT),
        (_, None) if is_strict => Wanted::Optional,
        (_, None) => return Ok(None),
    };
    let rules = rules(plan, wanted, special_tokens).map_err(|error| refused(plan, &error))?;
    let Some(rules) = rules else {
        return Ok(content);
    };
    Ok(Some(grammar(rules, content)))
}

fn grammar(rules: CallRules, content: Option<Grammar>) -> Grammar {
    let field = content
        .as_ref()
        .map_or("tool_choice".to_owned(), |content| {
            content.field().to_owned()
        });
    let schemas = rules.schemas.into_iter().map(|schema| Part {
        name: schema.name.into(),
        field: place(schema.tool, &schema.path).into(),
        rules: Rules::JsonSchema(schema.schema),
    });
    let of_content = content.iter().flat_map(Grammar::parts).enumerate();
    let of_content = of_content.map(|(index, part)| match index {
        0 => Part {
            name: CONTENT.into(),
            ..part.clone()
        },
        _ => part.clone(),
    });
    let parts: Vec<Part> = schemas.chain(of_content).collect();
    Grammar::from_lark(field, rules.text).with(parts)
}

/// Path of a place in the schema of a tool.
fn place(tool: usize, path: &str) -> String {
    format!("tools[{tool}].function.parameters{path}")
}

fn refused(plan: &Plan, error: &Unenforceable) -> ApiError {
    let tool = plan.tools.get(error.tool);
    let path = place(error.tool, &error.place.path);
    let reason = &error.place.reason;
    let advice = match tool {
        Some(tool) if tool.strict => "leave out `strict` or the constraint",
        _ => "leave out the constraint, or let `tool_choice` be \"auto\"",
    };
    ApiError::validation(
        &path,
        format!("`{path}` cannot be enforced: {reason}; {advice}"),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tool_calls::Tool;

    fn plan(strict: bool) -> Plan {
        let tools = Arc::new([Tool {
            name: "weather".into(),
            parameters: json!({"type": "object", "properties": {"city": {"type": "string"}}}),
            strict,
        }]);
        let format = format_for(&Arc::new(Format::plain()), &ToolChoice::Required);
        Plan::new(format, tools, true, "").unwrap()
    }

    #[test]
    fn required_and_strict_calls_have_a_grammar() {
        let grammar =
            |strict, choice: ToolChoice| answer_grammar(&plan(strict), &choice, None, &[]);
        assert_eq!(grammar(false, ToolChoice::Auto), Ok(None));
        for (strict, choice) in [
            (false, ToolChoice::Required),
            (false, ToolChoice::Named("weather".into())),
            (true, ToolChoice::Auto),
        ] {
            let grammar = grammar(strict, choice).unwrap().unwrap();
            assert_eq!(grammar.field(), "tool_choice");
            assert_eq!(grammar.parts()[1].field, "tools[0].function.parameters");
        }
    }

    #[test]
    fn a_required_call_excludes_a_grammar_of_the_answer_but_not_a_format_of_the_content() {
        let content = |field: &str| {
            Some(Grammar::from_json_schema(
                field.to_owned(),
                json!({"type": "object"}),
            ))
        };
        let required = ToolChoice::Required;
        let error =
            answer_grammar(&plan(false), &required, content("guided_json"), &[]).unwrap_err();
        assert_eq!(error.field.as_deref(), Some("guided_json"));
        let rules = |choice: &ToolChoice| {
            let field = "response_format.json_schema.schema";
            let found = answer_grammar(&plan(false), choice, content(field), &[]).unwrap();
            let Rules::Lark(text) = found.unwrap().parts()[0].rules.clone() else {
                panic!("the first part has the rules of the answer");
            };
            text
        };
        assert!(!rules(&required).contains("content"));
        assert!(!rules(&ToolChoice::Named("weather".into())).contains("content"));
        assert!(rules(&ToolChoice::Auto).contains("content"));
    }
}

#[cfg(test)]
#[path = "answer_grammar_tests.rs"]
mod family_tests;
