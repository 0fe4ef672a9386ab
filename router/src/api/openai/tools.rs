//! Tools of a chat.
//!
//! The template shows their definitions to the model; calls are taken out of its answer.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::tool_calls::Tool;

/// Definitions for the template. Refuses invalid definitions, and a `tool_choice` that requires a call.
pub fn for_template<'a>(
    tools: Option<&'a Value>,
    choice: Option<&Value>,
) -> Result<Option<&'a [Value]>, ApiError> {
    let tools = match tools {
        None | Some(Value::Null) => &[],
        Some(Value::Array(tools)) => &tools[..],
        Some(_) => {
            return Err(ApiError::validation("tools", "`tools` must be an array"));
        }
    };
    for (index, tool) in tools.iter().enumerate() {
        check(tool, &format!("tools[{index}]"))?;
    }
    let wanted = match choice {
        None | Some(Value::Null) => true,
        Some(Value::String(choice)) => match choice.as_str() {
            "auto" => true,
            "none" => false,
            "required" => return Err(needs_a_call("\"required\"")),
            _ => {
                return Err(ApiError::validation(
                    "tool_choice",
                    format!("`tool_choice` must be \"none\" or \"auto\". Given: {choice:?}"),
                ));
            }
        },
        Some(Value::Object(_)) => return Err(needs_a_call("that names a function")),
        Some(_) => {
            return Err(ApiError::validation(
                "tool_choice",
                "`tool_choice` must be a string or an object",
            ));
        }
    };
    Ok((wanted && !tools.is_empty()).then_some(tools))
}

/// The functions that calls in the answer may name: none unless the template gets definitions.
pub fn callable(tools: Option<&Value>, choice: Option<&Value>) -> Result<Arc<[Tool]>, ApiError> {
    let shown = for_template(tools, choice)?.unwrap_or_default();
    let functions = shown.iter().filter_map(|tool| tool.get("function"));
    let tools = functions.filter_map(|function| {
        Some(Tool {
            name: function.get("name")?.as_str()?.to_owned(),
            parameters: function.get("parameters").cloned().unwrap_or_default(),
            strict: function.get("strict") == Some(&Value::Bool(true)),
        })
    });
    Ok(tools.collect())
}

fn needs_a_call(choice: &str) -> ApiError {
    ApiError::validation(
        "tool_choice",
        format!(
            "`tool_choice` {choice} is not supported by this version; with \"auto\" the model sees the tools and \
             answers with text"
        ),
    )
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
        for choice in [None, Some(json!(null)), Some(json!("auto"))] {
            let shown = for_template(Some(&tools), choice.as_ref()).unwrap();
            assert_eq!(shown.map(<[_]>::len), Some(2));
        }
        assert_eq!(for_template(Some(&tools), Some(&json!("none"))), Ok(None));
        for empty in [json!([]), json!(null)] {
            assert_eq!(for_template(Some(&empty), Some(&json!("auto"))), Ok(None));
        }
        assert_eq!(for_template(None, None), Ok(None));
    }

    #[test]
    fn a_required_call_is_refused() {
        let tools = json!([tool()]);
        for choice in [
            json!("required"),
            json!({"type": "function", "function": {"name": "weather"}}),
            json!("sometimes"),
            json!(1),
        ] {
            let error = for_template(Some(&tools), Some(&choice)).unwrap_err();
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
                let error = for_template(Some(&json!([tool])), Some(&choice)).unwrap_err();
                assert_eq!(error.field.as_deref(), Some(field), "{tool}");
            }
        }
        let error = for_template(Some(&json!({})), None).unwrap_err();
        assert_eq!(error.field.as_deref(), Some("tools"));
    }
}
