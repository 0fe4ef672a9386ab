//! Tools of a response, as those of `/v1/chat/completions`, and their calls back in the form of the response.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::fields::{expected, optional_text, text};
use super::request::Item;
use crate::error::ApiError;

/// Separator of a namespace and the name of a function in it, in the name that the model sees.
const NAMESPACE_SEPARATOR: &str = "__";
/// Argument that holds the whole input of a custom tool.
const CUSTOM_INPUT: &str = "input";

/// Functions that the model sees, and what they stand for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tools {
    /// Definitions in the form of `/v1/chat/completions`.
    pub functions: Vec<Value>,
    /// Functions that stand for something else, by the names that the model sees.
    special: HashMap<String, Special>,
}

/// Origin of a function that the client did not send as such.
#[derive(Debug, Clone, PartialEq)]
enum Special {
    /// A tool whose input is any text.
    Custom,
    /// A function in a namespace.
    Namespaced { namespace: String, name: String },
}

/// A call of a tool, in the client's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Called<'a> {
    Function {
        namespace: Option<&'a str>,
        name: &'a str,
    },
    Custom(&'a str),
}

impl Tools {
    /// Reads the tools of a request. Those that run on other servers are left out: a client that lists them expects them
    /// to be unused where there are none.
    pub fn read(tools: &[Item]) -> Result<Self, ApiError> {
        let mut read = Self::default();
        for (index, tool) in tools.iter().enumerate() {
            read.add(tool, None, &format!("tools[{index}]"))?;
        }
        Ok(read)
    }

    fn add(&mut self, tool: &Item, namespace: Option<&str>, path: &str) -> Result<(), ApiError> {
        match (text(tool, path, "type")?, namespace) {
            ("function", _) => self.add_function(tool, namespace, path),
            ("custom", None) => self.add_custom(tool, path),
            ("namespace", None) => {
                let namespace = text(tool, path, "name")?;
                let inner = tool.get("tools").and_then(Value::as_array);
                let path = format!("{path}.tools");
                let inner = inner.ok_or_else(|| expected(&path, "an array"))?;
                for (index, tool) in inner.iter().enumerate() {
                    let path = format!("{path}[{index}]");
                    let tool = tool.as_object();
                    let tool = tool.ok_or_else(|| expected(&path, "an object"))?;
                    self.add(tool, Some(namespace), &path)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn add_function(
        &mut self,
        tool: &Item,
        namespace: Option<&str>,
        path: &str,
    ) -> Result<(), ApiError> {
        // Clients that were written for chats nest the function.
        let nested = tool.get("function").and_then(Value::as_object);
        let (tool, path) = match nested {
            Some(nested) => (nested, &format!("{path}.function")),
            None => (tool, &path.to_owned()),
        };
        let name = text(tool, path, "name")?;
        if name.is_empty() {
            return Err(expected(
                &format!("{path}.name"),
                "a string that is not empty",
            ));
        }
        let seen = match namespace {
            Some(namespace) => flattened(namespace, name),
            None => name.to_owned(),
        };
        let mut function = Map::from_iter([("name".to_owned(), Value::from(seen.as_str()))]);
        if let Some(description) = optional_text(tool, path, "description")? {
            function.insert("description".into(), description.into());
        }
        match tool.get("parameters") {
            None | Some(Value::Null) => {}
            Some(Value::Object(parameters)) => {
                function.insert("parameters".into(), Value::Object(parameters.clone()));
            }
            Some(_) => return Err(expected(&format!("{path}.parameters"), "an object")),
        }
        match tool.get("strict") {
            None | Some(Value::Null) => {}
            Some(Value::Bool(strict)) => {
                function.insert("strict".into(), Value::Bool(*strict));
            }
            Some(_) => return Err(expected(&format!("{path}.strict"), "true or false")),
        }
        if let Some(namespace) = namespace {
            let special = Special::Namespaced {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            };
            self.special.insert(seen, special);
        }
        self.functions
            .push(json!({"type": "function", "function": function}));
        Ok(())
    }

    /// A custom tool takes any text. The model sees a function with one argument.
    fn add_custom(&mut self, tool: &Item, path: &str) -> Result<(), ApiError> {
        let name = text(tool, path, "name")?;
        let mut description = optional_text(tool, path, "description")?
            .unwrap_or_default()
            .to_owned();
        if let Some(format) = tool
            .get("format")
            .filter(|format| format["type"] == "grammar")
        {
            let syntax = format["syntax"].as_str().unwrap_or("lark");
            let definition = format["definition"].as_str().unwrap_or_default();
            description.push_str(&format!(
                "\n\nThe input must match this {syntax} grammar:\n{definition}"
            ));
        }
        self.special.insert(name.to_owned(), Special::Custom);
        self.functions.push(json!({"type": "function", "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {CUSTOM_INPUT: {"type": "string", "description": "The whole input"}},
                "required": [CUSTOM_INPUT],
                "additionalProperties": false,
            },
        }}));
        Ok(())
    }

    /// `tool_choice` in the form of `/v1/chat/completions`; keeps only the functions that it allows.
    pub fn choose(&mut self, choice: Option<&Value>) -> Result<Option<Value>, ApiError> {
        let chosen = match choice {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(mode)) => self.mode(mode, "tool_choice")?,
            Some(Value::Object(choice)) => self.object_choice(choice)?,
            Some(_) => return Err(expected("tool_choice", "a string or an object")),
        };
        if self.functions.is_empty() && chosen != "auto" && chosen != "none" {
            return Err(ApiError::validation(
                "tool_choice",
                "`tool_choice` requires a call, and `tools` has no function that could be called",
            ));
        }
        Ok(Some(chosen))
    }

    fn mode(&self, mode: &str, path: &str) -> Result<Value, ApiError> {
        if ["auto", "none", "required"].contains(&mode) {
            return Ok(mode.into());
        }
        Err(ApiError::validation(
            path,
            format!("`{path}` must be \"auto\", \"none\" or \"required\". Given: {mode:?}"),
        ))
    }

    fn object_choice(&mut self, choice: &Map<String, Value>) -> Result<Value, ApiError> {
        match text(choice, "tool_choice", "type")? {
            "function" | "custom" => {
                let name = self.named(choice, "tool_choice")?;
                Ok(json!({"type": "function", "function": {"name": name}}))
            }
            "allowed_tools" => {
                let mode = text(choice, "tool_choice", "mode")?;
                let mode = self.mode(mode, "tool_choice.mode")?;
                let allowed = choice.get("tools").and_then(Value::as_array);
                let allowed = allowed.ok_or_else(|| expected("tool_choice.tools", "an array"))?;
                let mut names = Vec::with_capacity(allowed.len());
                for (index, tool) in allowed.iter().enumerate() {
                    let path = format!("tool_choice.tools[{index}]");
                    let tool = tool.as_object();
                    let tool = tool.ok_or_else(|| expected(&path, "an object"))?;
                    if ["function", "custom"].contains(&text(tool, &path, "type")?) {
                        names.push(self.named(tool, &path)?);
                    }
                }
                self.functions
                    .retain(|function| names.iter().any(|name| has_name(function, name)));
                Ok(mode)
            }
            kind => Err(ApiError::validation(
                "tool_choice.type",
                format!("`tool_choice.type`: tools of type {kind:?} are not available here"),
            )),
        }
    }

    /// Name that the model sees of the tool that `choice` names.
    fn named(&self, choice: &Map<String, Value>, path: &str) -> Result<String, ApiError> {
        let nested = choice.get("function").and_then(Value::as_object);
        let name = text(nested.unwrap_or(choice), path, "name")?;
        let name = match optional_text(choice, path, "namespace")? {
            Some(namespace) => flattened(namespace, name),
            None => name.to_owned(),
        };
        if self
            .functions
            .iter()
            .any(|function| has_name(function, &name))
        {
            return Ok(name);
        }
        let field = format!("{path}.name");
        let message = format!("`{field}` is {name:?}, and `tools` has no tool of that name");
        Err(ApiError::validation(&field, message))
    }

    /// The tool that the model calls as `name`.
    pub fn called<'a>(&'a self, name: &'a str) -> Called<'a> {
        match self.special.get(name) {
            None => Called::Function {
                namespace: None,
                name,
            },
            Some(Special::Custom) => Called::Custom(name),
            Some(Special::Namespaced { namespace, name }) => Called::Function {
                namespace: Some(namespace),
                name,
            },
        }
    }
}

fn has_name(function: &Value, name: &str) -> bool {
    function["function"]["name"] == name
}

/// Name that the model sees of a function in a namespace.
pub fn flattened(namespace: &str, name: &str) -> String {
    [namespace, NAMESPACE_SEPARATOR, name].concat()
}

/// Arguments of the function that stands for a custom tool.
pub fn custom_arguments(input: &str) -> String {
    json!({ CUSTOM_INPUT: input }).to_string()
}

/// Input of a custom tool in the arguments that the model wrote. Other arguments are the input as they are.
pub fn custom_input(arguments: &str) -> String {
    let parsed: Option<Map<String, Value>> = serde_json::from_str(arguments).ok();
    match parsed.as_ref().and_then(|parsed| parsed.get(CUSTOM_INPUT)) {
        Some(Value::String(input)) => input.clone(),
        _ => arguments.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(json: Value) -> Tools {
        let items: Vec<Item> = serde_json::from_value(json).expect("items");
        Tools::read(&items).expect("tools")
    }

    fn codex() -> Tools {
        tools(json!([
            {"type": "function", "name": "shell", "description": "Runs it", "strict": false,
             "parameters": {"type": "object", "properties": {"command": {"type": "array"}}}},
            {"type": "custom", "name": "apply_patch", "description": "Edits files",
             "format": {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"}},
            {"type": "web_search", "external_web_access": false},
            {"type": "image_generation", "output_format": "png"},
            {"type": "namespace", "name": "mcp", "tools": [
                {"type": "function", "name": "read", "parameters": {"type": "object"}}, {"type": "web_search"}]},
        ]))
    }

    fn names(tools: &Tools) -> Vec<&str> {
        let name = |function: &'_ Value| function["function"]["name"].as_str().map(str::len);
        assert!(
            tools
                .functions
                .iter()
                .all(|function| name(function).is_some())
        );
        let functions = tools.functions.iter();
        functions
            .filter_map(|function| function["function"]["name"].as_str())
            .collect()
    }

    #[test]
    fn the_model_sees_functions_alone() {
        let tools = codex();
        assert_eq!(names(&tools), ["shell", "apply_patch", "mcp__read"]);
        assert_eq!(tools.functions[0]["function"]["strict"], false);
        let patch = &tools.functions[1]["function"];
        assert!(patch["description"].to_string().contains("lark grammar"));
        assert_eq!(patch["parameters"]["required"], json!(["input"]));
    }

    #[test]
    fn calls_are_in_the_clients_terms() {
        let tools = codex();
        let function = |namespace, name| Called::Function { namespace, name };
        assert_eq!(tools.called("shell"), function(None, "shell"));
        assert_eq!(tools.called("mcp__read"), function(Some("mcp"), "read"));
        assert_eq!(tools.called("apply_patch"), Called::Custom("apply_patch"));
        assert_eq!(tools.called("unknown"), function(None, "unknown"));
        assert_eq!(custom_input(&custom_arguments("a \"b\"\n")), "a \"b\"\n");
        for other in ["{\"input\": ", "[1]", "{\"patch\": \"a\"}"] {
            assert_eq!(custom_input(other), other);
        }
    }

    #[test]
    fn choices_become_those_of_chats() {
        let named = |name: &str| json!({"type": "function", "function": {"name": name}});
        for (choice, expected) in [
            (json!("auto"), json!("auto")),
            (json!("required"), json!("required")),
            (json!({"type": "function", "name": "shell"}), named("shell")),
            (
                json!({"type": "custom", "name": "apply_patch"}),
                named("apply_patch"),
            ),
            (
                json!({"type": "function", "namespace": "mcp", "name": "read"}),
                named("mcp__read"),
            ),
        ] {
            assert_eq!(codex().choose(Some(&choice)), Ok(Some(expected)));
        }
        let mut tools = codex();
        let allowed = json!({"type": "allowed_tools", "mode": "required", "tools": [
            {"type": "web_search"}, {"type": "function", "name": "shell"}]});
        assert_eq!(tools.choose(Some(&allowed)), Ok(Some(json!("required"))));
        assert_eq!(names(&tools), ["shell"]);
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_its_path() {
        for (tool, field) in [
            (json!({"name": "f"}), "tools[0].type"),
            (json!({"type": "function"}), "tools[0].name"),
            (json!({"type": "function", "name": ""}), "tools[0].name"),
            (
                json!({"type": "function", "name": "f", "parameters": []}),
                "tools[0].parameters",
            ),
            (
                json!({"type": "function", "name": "f", "strict": 1}),
                "tools[0].strict",
            ),
            (json!({"type": "namespace", "name": "n"}), "tools[0].tools"),
            (
                json!({"type": "namespace", "name": "n", "tools": [{"type": "function"}]}),
                "tools[0].tools[0].name",
            ),
        ] {
            let items: Vec<Item> = serde_json::from_value(json!([tool])).expect("items");
            let error = Tools::read(&items).expect_err("a refusal");
            assert_eq!(error.field.as_deref(), Some(field), "{tool}");
        }
        for (choice, field) in [
            (json!("sometimes"), "tool_choice"),
            (json!(5), "tool_choice"),
            (json!({"type": "web_search"}), "tool_choice.type"),
            (
                json!({"type": "function", "name": "nobody"}),
                "tool_choice.name",
            ),
            (
                json!({"type": "allowed_tools", "mode": "auto"}),
                "tool_choice.tools",
            ),
        ] {
            let error = codex().choose(Some(&choice)).expect_err("a refusal");
            assert_eq!(error.field.as_deref(), Some(field), "{choice}");
        }
        let error = tools(json!([])).choose(Some(&json!("required")));
        assert!(error.is_err());
    }
}
