//! Functions in the form that OpenAI's API had before tools: `functions` and `function_call` of requests and messages.

use serde_json::{Map, Value, json};

use super::chat_request::ChatRequest;
use crate::chat_template::Message;
use crate::error::ApiError;

impl ChatRequest {
    /// Translates the request's functions to tools, and the calls and results in its messages.
    pub(super) fn translate_functions(&mut self) -> Result<(), ApiError> {
        translate_messages(&mut self.messages)?;
        let choice = self.function_call.take().filter(|choice| !choice.is_null());
        if !self.has_functions() {
            return match choice {
                None => Ok(()),
                Some(choice) if choice == "none" || choice == "auto" => Ok(()),
                Some(_) => Err(ApiError::validation(
                    "function_call",
                    "`function_call` requires a call, but there are no `functions`; give at least one",
                )),
            };
        }
        if self.tools.as_ref().is_some_and(|tools| !tools.is_null()) {
            return Err(ApiError::validation(
                "functions",
                "`functions` and `tools` exclude each other; give `tools` alone, which are the newer form",
            ));
        }
        let Some(Value::Array(functions)) = &self.functions else {
            return Err(ApiError::validation(
                "functions",
                "`functions` must be an array",
            ));
        };
        let tool = |function: &Value| json!({"type": "function", "function": function});
        self.tools = Some(functions.iter().map(tool).collect());
        self.tool_choice = match choice {
            None => None,
            Some(choice) if choice == "none" || choice == "auto" => Some(choice),
            Some(Value::Object(named)) => Some(json!({"type": "function", "function": named})),
            Some(given) => {
                return Err(ApiError::validation(
                    "function_call",
                    format!(
                        "`function_call` must be \"none\", \"auto\" or an object that names a function: {{\"name\": …}}. \
                         Given: {given}"
                    ),
                ));
            }
        };
        // This form has one call in an answer.
        self.parallel_tool_calls = Some(false);
        self.tools().map(|_| ()).map_err(in_old_form)
    }

    /// True if the request gives functions in the old form, so that the answer has that form too.
    pub fn has_functions(&self) -> bool {
        !super::chat_request::is_empty(self.functions.as_ref())
    }
}

/// Makes an error about tools one about functions.
fn in_old_form(error: ApiError) -> ApiError {
    let renamed = |text: &str| {
        let text = text.replace("tool_choice", "function_call");
        match text.strip_prefix("`tools[").or(text.strip_prefix("tools[")) {
            Some(_) => text
                .replacen("tools[", "functions[", 1)
                .replacen("].function", "]", 1),
            None => text.replace("`tools`", "`functions`"),
        }
    };
    ApiError {
        message: renamed(&error.message),
        field: error.field.as_deref().map(renamed),
        ..error
    }
}

/// Translates calls of assistants, and messages with the role `function`, which have the results.
fn translate_messages(messages: &mut [Message]) -> Result<(), ApiError> {
    let mut last_call: Option<String> = None;
    for (index, message) in messages.iter_mut().enumerate() {
        let id = format!("call_{index}");
        match message.role.as_str() {
            "assistant" => {
                let Some(call) = message.extra.remove("function_call") else {
                    continue;
                };
                if call.is_null() || message.extra.contains_key("tool_calls") {
                    continue;
                }
                check_call(&call, &format!("messages[{index}].function_call"))?;
                let call = json!([{"id": id, "type": "function", "function": call}]);
                message.extra.insert("tool_calls".into(), call);
                last_call = Some(id);
            }
            "function" => {
                message.role = "tool".into();
                let of_call = last_call.take().unwrap_or(id);
                message.extra.insert("tool_call_id".into(), of_call.into());
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_call(call: &Value, path: &str) -> Result<(), ApiError> {
    let is_text = |call: &Map<String, Value>, key| call.get(key).is_some_and(Value::is_string);
    match call {
        Value::Object(call) if is_text(call, "name") && is_text(call, "arguments") => Ok(()),
        _ => Err(ApiError::validation(
            path,
            format!("`{path}` must be an object with the strings `name` and `arguments`"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(more: Value) -> ChatRequest {
        let mut body = json!({"messages": [{"role": "user", "content": "hi"}]});
        let entries = more.as_object().cloned().unwrap_or_default();
        body.as_object_mut().unwrap().extend(entries);
        serde_json::from_value(body).unwrap()
    }

    fn weather() -> Value {
        json!({"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}})
    }

    #[test]
    fn functions_become_tools() {
        for (choice, expected) in [
            (json!(null), None),
            (json!("auto"), Some(json!("auto"))),
            (json!("none"), Some(json!("none"))),
            (
                json!({"name": "weather"}),
                Some(json!({"type": "function", "function": {"name": "weather"}})),
            ),
        ] {
            let mut request = request(json!({"functions": [weather()], "function_call": choice}));
            request.prepare().unwrap();
            let tools = json!([{"type": "function", "function": weather()}]);
            assert_eq!(request.tools, Some(tools));
            assert_eq!(request.tool_choice, expected);
            assert!(request.has_functions());
            assert_eq!(request.parallel_tool_calls, Some(false));
        }
    }

    #[test]
    fn calls_and_results_become_those_of_tools() {
        let mut request = request(json!({"messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": null, "function_call": {"name": "weather", "arguments": "{}"}},
            {"role": "function", "name": "weather", "content": "sunny"},
            {"role": "assistant", "content": "It is sunny.", "function_call": null},
        ]}));
        request.prepare().unwrap();
        let messages = serde_json::to_value(&request.messages).unwrap();
        let expected = json!([
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]},
            {"role": "tool", "name": "weather", "content": "sunny", "tool_call_id": "call_1"},
            {"role": "assistant", "content": "It is sunny."},
        ]);
        assert_eq!(messages, expected);
        assert!(!request.has_functions());
    }

    #[test]
    fn errors_name_the_fields_of_the_old_form() {
        for (more, field) in [
            (json!({"functions": 1}), "functions"),
            (
                json!({"functions": [{"description": "no name"}]}),
                "functions[0].name",
            ),
            (json!({"functions": [weather(), 1]}), "functions[1]"),
            (
                json!({"functions": [weather()], "function_call": "required"}),
                "function_call",
            ),
            (
                json!({"functions": [weather()], "function_call": {"name": "other"}}),
                "function_call",
            ),
            (
                json!({"function_call": {"name": "weather"}}),
                "function_call",
            ),
            (json!({"functions": [weather()], "tools": []}), "functions"),
            (
                json!({"messages": [{"role": "assistant", "function_call": {"name": "weather"}}]}),
                "messages[0].function_call",
            ),
        ] {
            let error = request(more.clone()).prepare().unwrap_err();
            assert_eq!(error.field.as_deref(), Some(field), "{more}");
            assert!(!error.message.contains("tool_choice"), "{error}");
        }
    }
}
