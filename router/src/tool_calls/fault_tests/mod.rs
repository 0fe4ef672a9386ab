//! Kinds of faults that parsers of calls are known for, tried on all template families.

mod texts;
mod values;

use serde_json::{Value, json};

use super::format::{Arguments, Body, Calls, Layout, Regions, Tags};
use super::test_families::{Family, Parsed, families, parse_cut_everywhere};

/// Families whose answers are text with marked regions, and whose templates show calls.
pub fn with_regions() -> impl Iterator<Item = (Family, Regions, Calls)> {
    families().into_iter().filter_map(|family| {
        let Layout::Regions(regions) = &family.format.layout else {
            return None;
        };
        let (regions, calls) = ((**regions).clone(), regions.calls.clone()?);
        Some((family, regions, calls))
    })
}

/// Families that write arguments in tags.
pub fn with_tags() -> impl Iterator<Item = (Family, Regions, Tags)> {
    with_regions().filter_map(|(family, regions, calls)| match calls.body {
        Body::Named {
            arguments: Arguments::Tagged(tags),
            ..
        } => Some((family, regions, tags)),
        _ => None,
    })
}

pub fn named(name: &str) -> Family {
    families()
        .into_iter()
        .find(|family| family.name == name)
        .unwrap()
}

/// The answer in which the template shows these calls; `None` if it refuses them.
pub fn answer(family: &Family, calls: &[(&str, Value)]) -> Option<String> {
    let calls = calls.iter().enumerate();
    let calls: Vec<Value> = calls
        .map(|(index, (name, arguments))| family.call(index, name, arguments))
        .collect();
    let message = json!({"role": "assistant", "content": null, "tool_calls": calls});
    Some(family.answer(&message)?.1)
}

/// The text of one call without white space around it, and without an empty thought before it.
pub fn one_call(family: &Family, regions: &Regions, arguments: &Value) -> String {
    let answer = answer(family, &[("zqalpha", arguments.clone())]).unwrap();
    let answer = answer.trim();
    let call = regions.reasoning.as_ref().and_then(|reasoning| {
        let thought = answer.strip_prefix(reasoning.open.as_str())?;
        Some(thought.split_once(reasoning.close.as_str())?.1)
    });
    call.unwrap_or(answer).trim().to_owned()
}

pub fn parse(family: &Family, text: &str) -> Parsed {
    let mut plan = family.plan(&family.prompt()).unwrap();
    plan.prefix.clear();
    parse_cut_everywhere(&plan, text, &family.name)
}

pub fn arguments(parsed: &Parsed) -> Vec<Value> {
    let calls = parsed.calls.iter();
    calls
        .map(|(name, text)| {
            serde_json::from_str(text).unwrap_or_else(|error| panic!("{name}: {text:?}: {error}"))
        })
        .collect()
}
