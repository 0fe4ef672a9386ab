//! Calls in marked regions: their markers, names and order in the answer.

use super::terminal::{regex, without};
use super::{IDENTIFIER, SPACE, Wanted, Writer, json_text, quoted, whole_schema};
use crate::tool_calls::format::{Arguments, Body, Calls, Layout, Spelled};
use crate::tool_calls::plan::{Plan, Tool};
use crate::tool_calls::schema::{Unclear, any_object};

impl Writer<'_> {
    /// The rule of a call after its opening marker.
    pub(super) fn call(
        &mut self,
        number: usize,
        (index, tool): (usize, &Tool),
        calls: &Calls,
    ) -> Result<(), Unclear> {
        let body = match &calls.body {
            Body::Object {
                arguments_in_string,
                spelling,
                ..
            } => {
                let spelling = match spelling.is_empty() {
                    true => default_spelling(&calls.body),
                    false => spelling.clone(),
                };
                let arguments = match arguments_in_string {
                    true => self.json_in_string((index, tool))?,
                    false => self.json((index, tool)),
                };
                spelled(&spelling, &tool.name, &arguments)
            }
            Body::NameAsKey => {
                let arguments = self.json((index, tool));
                let before = format!("{{{}: ", json_text(&tool.name));
                format!("{} {arguments} \"}}\"", quoted(&before))
            }
            Body::Named {
                name_open,
                name_close,
                id_open,
                numbered,
                arguments,
            } => {
                let mut parts = Vec::new();
                if !name_open.is_empty() {
                    parts.extend([IDENTIFIER.to_owned(), self.literal(name_open)]);
                }
                match numbered {
                    true => parts.extend([
                        quoted(&format!("functions.{}:", tool.name)),
                        "/[0-9]{1,3}/".into(),
                    ]),
                    false => parts.push(quoted(&tool.name)),
                }
                if !id_open.is_empty() {
                    parts.extend([self.literal(id_open), IDENTIFIER.into()]);
                }
                parts.push(self.literal(name_close));
                if let Arguments::Tagged(_) = arguments
                    && !self.is_enforced(tool)
                {
                    parts.push(self.text_until(&calls.close));
                    self.rule(&format!("body_{number}"), &parts.join(" "));
                    return Ok(());
                }
                parts.push(match arguments {
                    Arguments::Json => self.json((index, tool)),
                    Arguments::Tagged(tags) => self.tagged_arguments((index, tool), tags)?,
                    Arguments::Keywords { style } => self.keywords((index, tool), style)?,
                    Arguments::BareKeys { quote, style } => {
                        self.bare_keys((index, tool), quote, style)?
                    }
                });
                parts.join(" ")
            }
        };
        let close = self.literal(&calls.close);
        self.rule(&format!("body_{number}"), &format!("{body} {close}"));
        Ok(())
    }

    /// Arguments as a JSON object.
    pub(super) fn json(&mut self, (index, tool): (usize, &Tool)) -> String {
        let schema = match self.is_enforced(tool) {
            true => whole_schema(tool),
            false => any_object(),
        };
        self.schema(index, "", schema)
    }

    /// Rules `calls`, all calls with the markers around them, and `calls_rest`, without the first word of the first
    /// marker.
    pub(super) fn section(&mut self, calls: &Calls, several: bool) {
        let (list_open, list_close) = match calls.list {
            true => (
                quoted(&format!("[{}", calls.list_open)),
                quoted(&format!("{}]", calls.list_close)),
            ),
            false => (String::new(), String::new()),
        };
        let separator = match (calls.list, calls.separator.as_str()) {
            (true, "") => quoted(", "),
            (_, separator) => self.literal(separator),
        };
        let more = if several {
            format!("({separator} call)*")
        } else {
            String::new()
        };
        let open = self.literal(&calls.open);
        self.rule("call", &format!("{open} body"));
        let (first, after_first) = first_marker(calls);
        let trimmed = first.trim_start();
        let marker = trimmed.split_whitespace().next().unwrap_or_default();
        let after = trimmed.strip_prefix(marker).unwrap_or_default();
        // A section may open with white space alone.
        let open_space = match calls.section_open.trim() {
            "" => calls.section_open.as_str(),
            _ => "",
        };
        let space = first.get(..first.len() - trimmed.len()).unwrap_or_default();
        let before = format!("{open_space}{space}");
        let (marker, after) = (self.literal(marker), self.literal(after));
        let close = self.literal(&calls.section_close);
        let end = optional(&calls.after);
        let rest = format!("{after} {list_open} {after_first} {more} {list_close} {close} {end}");
        self.rule("calls_rest", &rest);
        self.rule(
            "calls",
            &format!("{} {marker} calls_rest", optional(&before)),
        );
    }

    pub(super) fn start(&mut self, plan: &Plan, wanted: Wanted<'_>, calls: &Calls) {
        let thought = self.thought(plan);
        match wanted {
            Wanted::Required | Wanted::Named(_) => {
                self.rule("start", &format!("{thought} calls"));
            }
            Wanted::Content(content) => {
                self.rule("start", &format!("{thought} (calls | @{content})"));
            }
            // A text that begins like a call is one.
            Wanted::Optional if calls.is_bare() => {
                self.rule("start", &format!("{thought} (calls | free)"));
                self.rule("free", &regex(r"(?s:\s*([^\s{\[].*)?)"));
            }
            Wanted::Optional => {
                // White space inside markers may differ, so that text has not even their first words.
                let openings = [calls.section_open.as_str(), &calls.open].into_iter();
                let words = openings.filter_map(|opening| opening.split_whitespace().next());
                let words: Vec<String> = words.map(str::to_owned).collect();
                let free = format!("{} & {}", regex("(?s:.*)"), without(&words));
                let (first, _) = first_marker(calls);
                let marker = first.split_whitespace().next().unwrap_or_default();
                let before = self.value_until(&free, marker);
                let free = self.new_rule("TEXT", &free);
                self.rule("start", &format!("{thought} ({before} calls_rest)* {free}"));
            }
        }
    }

    /// Expression of the reasoning before the answer.
    pub(super) fn thought(&mut self, plan: &Plan) -> String {
        let Layout::Regions(regions) = &plan.format.layout else {
            return String::new();
        };
        let Some(reasoning) = &regions.reasoning else {
            return String::new();
        };
        let close = self.text_until(reasoning.close.trim());
        if plan.begins_in_reasoning() {
            return format!("{close} {SPACE}");
        }
        let open = self.literal(reasoning.open.trim());
        format!("({SPACE} {open} {close} {SPACE})?")
    }
}

/// Marker that tells that calls begin, and the rule of what follows it.
fn first_marker(calls: &Calls) -> (&str, &'static str) {
    match calls.section_open.trim() {
        "" => (&calls.open, "body"),
        _ => (&calls.section_open, "call"),
    }
}

/// Expression of white space that may be missing.
fn optional(space: &str) -> String {
    match space {
        "" => String::new(),
        space => format!("({})?", quoted(space)),
    }
}

/// The object with its keys in order.
fn default_spelling(body: &Body) -> Vec<Spelled> {
    let Body::Object {
        name,
        arguments,
        wrapper,
        ..
    } = body
    else {
        return Vec::new();
    };
    let (mut before, mut after) = (String::new(), "}".to_owned());
    if !wrapper.is_empty() {
        before = format!("{{{}: ", json_text(wrapper));
        after.push('}');
    }
    vec![
        Spelled::Text(format!("{before}{{{}: \"", json_text(name))),
        Spelled::Name,
        Spelled::Text(format!("\", {}: ", json_text(arguments))),
        Spelled::Arguments,
        Spelled::Text(after),
    ]
}

/// Expression of a call's object.
fn spelled(spelling: &[Spelled], name: &str, arguments: &str) -> String {
    let name = json_text(name);
    let name = name.trim_start_matches('"');
    let name = name.strip_suffix('"').unwrap_or(name);
    let parts = spelling.iter().map(|part| match part {
        Spelled::Text(text) => quoted(text),
        Spelled::Name => quoted(name),
        Spelled::Id => IDENTIFIER.to_owned(),
        Spelled::Number => "/[0-9]{1,3}/".to_owned(),
        Spelled::Arguments => arguments.to_owned(),
    });
    parts.collect::<Vec<_>>().join(" ")
}
