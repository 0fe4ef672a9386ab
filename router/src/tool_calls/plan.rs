//! How the answers of one request are parsed: the model's format, the request's tools, and where the prompt ends.

use std::sync::Arc;

use serde_json::Value;

use super::format::{Format, Layout};

/// A function that the model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    pub name: String,
    /// JSON schema of the arguments; `null` if none was given.
    pub parameters: Value,
    /// True if the arguments must fit the schema.
    pub strict: bool,
}

/// How the answers of one request are parsed. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Plan {
    pub format: Arc<Format>,
    /// The request's tools; empty: calls are not taken out of the text.
    pub tools: Arc<[Tool]>,
    /// True if reasoning is taken out of the text.
    pub separate_reasoning: bool,
    /// True if calls after the first are left out.
    pub single_call: bool,
    /// Part of the assistant's turn that the prompt ends with, such as an opened `<think>`.
    pub prefix: String,
}

impl Plan {
    /// The plan for a rendered `prompt`; `None` if answers are content alone.
    pub fn new(
        format: Arc<Format>,
        tools: Arc<[Tool]>,
        separate_reasoning: bool,
        prompt: &str,
    ) -> Option<Self> {
        let calls = !tools.is_empty() && format.has_calls();
        let has_reasoning = separate_reasoning && format.has_reasoning();
        if !calls && !has_reasoning {
            return None;
        }
        let anchor = format.anchor.trim();
        let turn = prompt
            .rfind(anchor)
            .filter(|_| !anchor.is_empty())
            .and_then(|start| prompt.get(start + anchor.len()..));
        // Where the turn's beginning is not known, only the prompt's last line counts.
        let last_line = || prompt.trim_end().rsplit('\n').next();
        let prefix = turn.or_else(last_line).unwrap_or_default().to_owned();
        Some(Self {
            format,
            tools: if calls { tools } else { Arc::new([]) },
            separate_reasoning,
            single_call: false,
            prefix,
        })
    }

    /// True if the prompt ends inside reasoning, so that the answer begins there.
    pub fn begins_in_reasoning(&self) -> bool {
        let Layout::Regions(regions) = &self.format.layout else {
            return false;
        };
        let Some(reasoning) = &regions.reasoning else {
            return false;
        };
        let (open, close) = (reasoning.open.trim(), reasoning.close.trim());
        if open.is_empty() {
            return false;
        }
        let opened = self.prefix.rfind(open);
        opened.is_some_and(|opened| {
            let inside = self.prefix.get(opened + open.len()..).unwrap_or_default();
            !inside.contains(close)
        })
    }

    /// Finds the tool with this name.
    pub fn tool(&self, name: &str) -> Option<&Tool> {
        self.tools.iter().find(|tool| tool.name == name)
    }
}
