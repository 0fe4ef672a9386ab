//! Tools of a chat.
//!
//! The template shows their definitions to the model; calls are taken out of its answer.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::tool_calls::Tool;

/// Choice between text and calls.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// Text alone: the model does not see the tools.
    None,
    /// At least one call.
    Required,
    /// A call of this function.
    Named(String),
}

/// Tools of a request, checked.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RequestTools<'a> {
    /// Definitions for the template; empty: it gets none.
    pub definitions: &'a [Value],
    pub choice: ToolChoice,
}

/// Reads `tools` and `tool_choice`. Refuses invalid ones, and choices that contradict the tools.
pub fn read<'a>(
    tools: Option<&'a Value>,
    choice: Option<&Value>,
) -> Result<RequestTools<'a>, ApiError> {
    let definitions = match tools {
        None | Some(Value::Null) => &[],
        Some(Value::Array(tools)) => &tools[..],
        Some(_) => {
            return Err(ApiError::validation("tools", "`tools` must be an array"));
        }
    };
    for (index, tool) in definitions.iter().enumerate() {
        check(tool, &format!("tools[{index}]"))?;
    }
    let choice = read_choice(choice)?;
    match &choice {
        ToolChoice::None => {
            return Ok(RequestTools {
                definitions: &[],
                choice,
            });
        }
        ToolChoice::Auto => {}
        ToolChoice::Required | ToolChoice::Named(_) if definitions.is_empty() => {
            return Err(ApiError::validation(
                "tool_choice",
                "`tool_choice` requires a call, but there are no `tools`; give at least one",
            ));
        }
        ToolChoice::Required => {}
        ToolChoice::Named(name) => {
            let names =
                |tool: &Value| tool.pointer("/function/name") == Some(&name.as_str().into());
            if !definitions.iter().any(names) {
                return Err(ApiError::validation(
                    "tool_choice",
                    format!("`tool_choice` names {name:?}, which is none of the `tools`"),
                ));
            }
        }
    }
    Ok(RequestTools {
        definitions,
        choice,
    })
}

fn read_choice(choice: Option<&Value>) -> Result<ToolChoice, ApiError> {
    let refused = |given: &dyn std::fmt::Display| {
        ApiError::validation(
            "tool_choice",
            format!(
                "`tool_choice` must be \"none\", \"auto\", \"required\" or an object that names a function: \
                 {{\"type\": \"function\", \"function\": {{\"name\": …}}}}. Given: {given}"
            ),
        )
    };
    match choice {
        None | Some(Value::Null) => Ok(ToolChoice::Auto),
        Some(Value::String(choice)) => match choice.as_str() {
            "auto" => Ok(ToolChoice::Auto),
            "none" => Ok(ToolChoice::None),
            "required" | "any" => Ok(ToolChoice::Required),
            _ => Err(refused(&format_args!("{choice:?}"))),
        },
        Some(given @ Value::Object(choice)) => {
            let name = choice
                .get("function")
                .and_then(|function| function.get("name"))
                .or(choice.get("name"));
            match name.and_then(Value::as_str) {
                Some(name) if !name.is_empty() => Ok(ToolChoice::Named(name.to_owned())),
                _ => Err(refused(given)),
            }
        }
        Some(given) => Err(refused(given)),
    }
}

impl RequestTools<'_> {
    /// The functions that calls in the answer may name.
    pub fn callable(&self) -> Arc<[Tool]> {
        let functions = self
            .definitions
            .iter()
            .filter_map(|tool| tool.get("function"));
        let tools = functions.filter_map(|function| {
            Some(Tool {
                name: function.get("name")?.as_str()?.to_owned(),
                parameters: function.get("parameters").cloned().unwrap_or_default(),
                strict: function.get("strict") == Some(&Value::Bool(true)),
            })
        });
        tools.collect()
    }
}

/// Refuses an invalid definition of a function. `path`: its place in the request.
fn check(tool: &Value, path: &str) -> Result<(), ApiError> {
    let tool = object(Some(tool), path)?;
    let kind_path = format!("{path}.type");
    match tool.get("type") {
        Some(Value::String(kind)) if kind == "function" => {}
        Some(Value::String(kind)) => {
            return Err(ApiError::validation(
                &kind_path,
                format!(
                    "`{kind_path}`: tools of type {kind:?} are not supported; only \"function\" is"
                ),
            ));
        }
        _ => return Err(expected(&kind_path, "the string \"function\"")),
    }
    let path = format!("{path}.function");
    let function = object(tool.get("function"), &path)?;
    let is_name = |value: &&Value| value.as_str().is_some_and(|name| !name.is_empty());
    if function.get("name").filter(is_name).is_none() {
        return Err(expected(
            &format!("{path}.name"),
            "a string that is not empty",
        ));
    }
    let optional = |field: &str, fits: fn(&Value) -> bool, kind: &str| match function.get(field) {
        None | Some(Value::Null) => Ok(()),
        Some(value) if fits(value) => Ok(()),
        Some(_) => Err(expected(&format!("{path}.{field}"), kind)),
    };
    optional("description", Value::is_string, "a string")?;
    optional("parameters", Value::is_object, "an object")?;
    optional("strict", Value::is_boolean, "true or false")
}

fn object<'a>(value: Option<&'a Value>, path: &str) -> Result<&'a Map<String, Value>, ApiError> {
    value
        .and_then(Value::as_object)
        .ok_or_else(|| expected(path, "an object"))
}

fn expected(path: &str, kind: &str) -> ApiError {
    ApiError::validation(path, format!("`{path}` must be {kind}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tool() -> Value {
        json!({"type": "function", "function": {
            "name": "weather", "description": "Tells the weather", "strict": null,
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}})
    }

    #[test]
    fn the_template_gets_tools_unless_the_choice_is_none() {
        let tools = json!([tool(), {"type": "function", "function": {"name": "f"}}]);
        for choice in [
            None,
            Some(json!(null)),
            Some(json!("auto")),
            Some(json!("required")),
        ] {
            let shown = read(Some(&tools), choice.as_ref()).unwrap();
            assert_eq!(shown.definitions.len(), 2);
            assert_eq!(shown.callable().len(), 2);
        }
        let none = read(Some(&tools), Some(&json!("none"))).unwrap();
        assert!(none.definitions.is_empty() && none.callable().is_empty());
        for empty in [json!([]), json!(null)] {
            let shown = read(Some(&empty), Some(&json!("auto"))).unwrap();
            assert!(shown.definitions.is_empty());
        }
        assert_eq!(read(None, None), Ok(RequestTools::default()));
    }

    #[test]
    fn a_choice_names_one_of_the_tools() {
        let tools = json!([tool()]);
        for choice in [
            json!({"type": "function", "function": {"name": "weather"}}),
            json!({"type": "function", "name": "weather"}),
        ] {
            let read = read(Some(&tools), Some(&choice)).unwrap();
            assert_eq!(read.choice, ToolChoice::Named("weather".into()));
        }
        for choice in [
            json!("sometimes"),
            json!(1),
            json!({"type": "function"}),
            json!({"type": "function", "function": {"name": "other"}}),
        ] {
            let error = read(Some(&tools), Some(&choice)).unwrap_err();
            assert_eq!(error.field.as_deref(), Some("tool_choice"), "{choice}");
        }
        for choice in [json!("required"), json!({"function": {"name": "weather"}})] {
            let error = read(None, Some(&choice)).unwrap_err();
            assert_eq!(error.field.as_deref(), Some("tool_choice"), "{choice}");
        }
    }

    #[test]
    fn an_invalid_definition_is_refused_with_its_path() {
        let with = |field: &str, value: Value| {
            let mut tool = tool();
            tool["function"][field] = value;
            tool
        };
        for (tool, field) in [
            (json!("f"), "tools[0]"),
            (json!({"function": {"name": "f"}}), "tools[0].type"),
            (json!({"type": "web_search"}), "tools[0].type"),
            (json!({"type": "function"}), "tools[0].function"),
            (
                json!({"type": "function", "function": {}}),
                "tools[0].function.name",
            ),
            (with("name", json!("")), "tools[0].function.name"),
            (with("name", json!(5)), "tools[0].function.name"),
            (
                with("description", json!(5)),
                "tools[0].function.description",
            ),
            (
                with("parameters", json!("{}")),
                "tools[0].function.parameters",
            ),
            (with("strict", json!("yes")), "tools[0].function.strict"),
        ] {
            for choice in [json!("auto"), json!("none")] {
                let error = read(Some(&json!([tool])), Some(&choice)).unwrap_err();
                assert_eq!(error.field.as_deref(), Some(field), "{tool}");
            }
        }
        let error = read(Some(&json!({})), None).unwrap_err();
        assert_eq!(error.field.as_deref(), Some("tools"));
    }
}
