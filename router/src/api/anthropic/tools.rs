//! Tools in Anthropic's form, as those of `/v1/chat/completions`.

use serde_json::{Value, json};

use super::request::{Tool, ToolChoice};
use crate::error::ApiError;

/// Definitions of the functions among `tools`. Tools that run on Anthropic's servers have a type of their own and no
/// schema. A client that lists them expects them to be unused where there are none, so they are left out.
pub fn definitions(tools: &[Tool]) -> Result<Vec<Value>, ApiError> {
    let mut functions = Vec::with_capacity(tools.len());
    for (index, tool) in tools.iter().enumerate() {
        if tool.kind.as_deref().is_some_and(|kind| kind != "custom") {
            continue;
        }
        functions.push(definition(tool, &format!("tools[{index}]"))?);
    }
    Ok(functions)
}

fn definition(tool: &Tool, path: &str) -> Result<Value, ApiError> {
    let missing = |field: &str| {
        let field = format!("{path}.{field}");
        ApiError::validation(&field, format!("`{field}` is missing"))
    };
    let name = tool.name.as_deref().filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| missing("name"))?;
    let schema = tool
        .input_schema
        .as_ref()
        .ok_or_else(|| missing("input_schema"))?;
    let mut function = json!({"name": name, "parameters": schema});
    if let Some(description) = &tool.description {
        function["description"] = description.as_str().into();
    }
    if let Some(strict) = tool.strict {
        function["strict"] = strict.into();
    }
    Ok(json!({"type": "function", "function": function}))
}

/// `tool_choice` and `parallel_tool_calls` for `functions`.
pub fn choice(choice: &ToolChoice, functions: &[Value]) -> Result<(Value, Option<bool>), ApiError> {
    let parallel = choice.disable_parallel_tool_use.map(|disabled| !disabled);
    let required = match choice.kind.as_str() {
        "auto" => return Ok(("auto".into(), parallel)),
        "none" => return Ok(("none".into(), parallel)),
        "any" => Value::from("required"),
        "tool" => named(choice, functions)?,
        other => {
            return Err(ApiError::validation(
                "tool_choice.type",
                format!(
                    "`tool_choice.type` must be \"auto\", \"any\", \"tool\" or \"none\". Given: {other:?}"
                ),
            ));
        }
    };
    if functions.is_empty() {
        return Err(ApiError::validation(
            "tool_choice",
            "`tool_choice` requires a call, and `tools` has no function that could be called",
        ));
    }
    Ok((required, parallel))
}

fn named(choice: &ToolChoice, functions: &[Value]) -> Result<Value, ApiError> {
    let name = choice.name.as_deref().ok_or_else(|| {
        ApiError::validation(
            "tool_choice.name",
            "`tool_choice.name` is missing; it is required with `type` \"tool\"",
        )
    })?;
    let known = functions
        .iter()
        .any(|function| function["function"]["name"] == name);
    if !known {
        return Err(ApiError::validation(
            "tool_choice.name",
            format!("`tool_choice.name` is {name:?}, and `tools` has no function of that name"),
        ));
    }
    Ok(json!({"type": "function", "function": {"name": name}}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(json: Value) -> Vec<Tool> {
        serde_json::from_value(json).expect("tools")
    }

    fn weather() -> Value {
        json!({"name": "weather", "description": "Tells it", "input_schema": {"type": "object"}, "strict": true,
               "cache_control": {"type": "ephemeral"}, "defer_loading": true})
    }

    #[test]
    fn functions_keep_their_schema_and_server_tools_are_left_out() {
        let given = tools(json!([
            {"type": "web_search_20250305", "name": "web_search", "max_uses": 5},
            weather(),
            {"type": "custom", "name": "plain", "input_schema": {}},
        ]));
        assert_eq!(
            definitions(&given).expect("functions"),
            [
                json!({"type": "function", "function": {"name": "weather", "parameters": {"type": "object"},
                       "description": "Tells it", "strict": true}}),
                json!({"type": "function", "function": {"name": "plain", "parameters": {}}}),
            ]
        );
    }

    #[test]
    fn incomplete_functions_are_refused_with_their_path() {
        for (tool, field) in [
            (json!({"input_schema": {}}), "tools[1].name"),
            (json!({"name": "", "input_schema": {}}), "tools[1].name"),
            (json!({"name": "f"}), "tools[1].input_schema"),
        ] {
            let error = definitions(&tools(json!([weather(), tool]))).expect_err("a refusal");
            assert_eq!(error.field.as_deref(), Some(field));
        }
    }

    #[test]
    fn choices_become_openais() {
        let functions = definitions(&tools(json!([weather()]))).expect("functions");
        let of = |given: Value| {
            let given: ToolChoice = serde_json::from_value(given).expect("a choice");
            choice(&given, &functions).map_err(|error| error.field.unwrap_or_default())
        };
        assert_eq!(of(json!({"type": "auto"})), Ok(("auto".into(), None)));
        assert_eq!(
            of(json!({"type": "any", "disable_parallel_tool_use": true})),
            Ok(("required".into(), Some(false)))
        );
        assert_eq!(of(json!({"type": "none"})), Ok(("none".into(), None)));
        let named = json!({"type": "function", "function": {"name": "weather"}});
        assert_eq!(
            of(json!({"type": "tool", "name": "weather", "disable_parallel_tool_use": false})),
            Ok((named, Some(true)))
        );
        for (wrong, field) in [
            (json!({"type": "tool"}), "tool_choice.name"),
            (
                json!({"type": "tool", "name": "nobody"}),
                "tool_choice.name",
            ),
            (json!({"type": "required"}), "tool_choice.type"),
        ] {
            assert_eq!(of(wrong), Err(field.to_owned()));
        }
        let any = ToolChoice {
            kind: "any".into(),
            ..ToolChoice::default()
        };
        let error = choice(&any, &[]).expect_err("nothing to call");
        assert_eq!(error.field.as_deref(), Some("tool_choice"));
    }
}
