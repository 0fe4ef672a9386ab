//! Table of all routes for docs/api.md.

use std::fmt::Write;

use super::ROUTES;
use crate::encoder::task_name;
use crate::http::route::{ALL_TASKS, Api};

/// The table, in Markdown.
pub fn table() -> String {
    let mut text =
        "| route | API | tasks | counted as | what it does |\n|---|---|---|---|---|\n".to_owned();
    for route in ROUTES {
        let api = match route.api {
            Api::OpenAi => "OpenAI",
            Api::Tgi => "TGI",
            Api::Tei => "TEI",
            Api::Anthropic => "Anthropic",
            Api::Server => "–",
        };
        let tasks = match route.tasks {
            tasks if tasks.len() == ALL_TASKS.len() => "all".to_owned(),
            tasks => code(tasks.iter().map(|&task| task_name(task))),
        };
        let labels = match route.counted_as {
            [] => "–".to_owned(),
            labels => code(labels.iter().copied()),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| {} `{}` | {api} | {tasks} | {labels} | {} |",
            route.method,
            route.path.replace("{*", "{"),
            route.summary
        );
    }
    text
}

fn code<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let words: Vec<String> = words.map(|word| format!("`{word}`")).collect();
    words.join(", ")
}
