//! Named formats of the data file formats.json: for templates that show calls in another form than models write them,
//! and for users who name a format.

use serde::Deserialize;

use super::format::{Calls, Format, Layout, Origin, Reasoning, Regions};

const DATA: &str = include_str!("formats.json");

/// The data file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedFormats {
    /// Layouts of whole answers.
    layouts: Vec<NamedLayout>,
    calls: Vec<NamedCalls>,
    reasoning: Vec<NamedReasoning>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedLayout {
    /// The format's name, then other names for it.
    names: Vec<String>,
    /// Texts that a chat template contains only if its model writes this format.
    when: Vec<String>,
    #[serde(default)]
    anchor: String,
    layout: Layout,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedCalls {
    names: Vec<String>,
    format: Calls,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedReasoning {
    names: Vec<String>,
    format: Reasoning,
}

/// Formats that the user names; `None`: what is found.
#[derive(Debug, Clone, Copy, Default)]
pub struct Choice<'a> {
    pub calls: Option<&'a str>,
    pub reasoning: Option<&'a str>,
}

/// Name that turns parsing off.
const OFF: &str = "none";
/// Name that stands for what is found.
const AUTO: &str = "auto";

impl NamedFormats {
    /// Reads the data file.
    ///
    /// # Errors
    ///
    /// The file is part of the program, and a test reads it.
    pub fn read() -> Result<Self, serde_json::Error> {
        serde_json::from_str(DATA)
    }

    /// The layout of models whose chat template is `source`.
    pub fn for_template(&self, source: &str) -> Option<Format> {
        let fits = |layout: &&NamedLayout| layout.when.iter().all(|text| source.contains(text));
        self.layouts.iter().find(fits).map(NamedLayout::format)
    }

    /// Replaces what `choice` names. Returns a message for each name that is not known.
    pub fn apply(&self, choice: Choice<'_>, format: &mut Format) -> Vec<String> {
        let mut unknown = Vec::new();
        let given = |name: Option<&str>| name.filter(|name| !is(name, AUTO)).map(str::to_owned);
        if let Some(name) = given(choice.calls) {
            let layout = self.layouts.iter().find(|entry| has(&entry.names, &name));
            let calls = self.calls.iter().find(|entry| has(&entry.names, &name));
            if is(&name, OFF) {
                set_calls(format, None, Origin::Nothing);
            } else if let Some(layout) = layout {
                *format = layout.format();
            } else if let Some(entry) = calls {
                let origin = Origin::Named(canonical(&entry.names));
                set_calls(format, Some(entry.format.clone()), origin);
            } else {
                unknown.push(unknown_name("--tool-call-parser", &name));
            }
        }
        if let Some(name) = given(choice.reasoning) {
            let is_layout = self.layouts.iter().any(|entry| has(&entry.names, &name));
            let reasoning = self.reasoning.iter().find(|entry| has(&entry.names, &name));
            if is(&name, OFF) {
                set_reasoning(format, None, Origin::Nothing);
            } else if let Some(entry) = reasoning {
                let origin = Origin::Named(canonical(&entry.names));
                set_reasoning(format, Some(entry.format.clone()), origin);
            } else if !is_layout {
                unknown.push(unknown_name("--reasoning-parser", &name));
            }
        }
        unknown
    }
}

impl NamedLayout {
    fn format(&self) -> Format {
        let origin = Origin::Named(canonical(&self.names));
        Format {
            calls_from: origin.clone(),
            reasoning_from: origin,
            anchor: self.anchor.clone(),
            layout: self.layout.clone(),
        }
    }
}

fn unknown_name(flag: &str, name: &str) -> String {
    format!("{flag} `{name}` is no name that is known here; what was found is used")
}

fn canonical(names: &[String]) -> String {
    names.first().cloned().unwrap_or_default()
}

fn has(names: &[String], name: &str) -> bool {
    names.iter().any(|known| is(known, name))
}

/// Compares names without regard to case, hyphens and underscores.
fn is(a: &str, b: &str) -> bool {
    let plain = |name: &str| {
        let kept = name.chars().filter(|c| c.is_alphanumeric());
        kept.flat_map(char::to_lowercase).collect::<String>()
    };
    plain(a) == plain(b)
}

/// Regions of the format. Those of a format with channels are replaced by none.
fn take_regions(format: &mut Format) -> Regions {
    match &mut format.layout {
        Layout::Regions(regions) => *std::mem::take(regions),
        Layout::Channels(_) => {
            format.reasoning_from = Origin::Nothing;
            format.calls_from = Origin::Nothing;
            Regions::default()
        }
    }
}

fn set_calls(format: &mut Format, calls: Option<Calls>, origin: Origin) {
    let regions = take_regions(format);
    format.layout = Layout::from(Regions { calls, ..regions });
    format.calls_from = origin;
}

fn set_reasoning(format: &mut Format, reasoning: Option<Reasoning>, origin: Origin) {
    let regions = take_regions(format);
    format.layout = Layout::from(Regions {
        reasoning,
        ..regions
    });
    format.reasoning_from = origin;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_file_is_valid_and_its_names_are_unique() {
        let formats = NamedFormats::read().unwrap();
        for names in [
            formats
                .layouts
                .iter()
                .map(|entry| &entry.names)
                .chain(formats.calls.iter().map(|entry| &entry.names))
                .collect::<Vec<_>>(),
            formats
                .layouts
                .iter()
                .map(|entry| &entry.names)
                .chain(formats.reasoning.iter().map(|entry| &entry.names))
                .collect(),
        ] {
            let all: Vec<&String> = names.into_iter().flatten().collect();
            for (index, name) in all.iter().enumerate() {
                assert!(
                    all[..index].iter().all(|other| !is(other, name)),
                    "{name} twice"
                );
            }
        }
    }

    #[test]
    fn names_are_known_in_every_spelling_and_others_are_reported() {
        let formats = NamedFormats::read().unwrap();
        let apply = |calls, reasoning| {
            let mut format = Format::plain();
            let unknown = formats.apply(Choice { calls, reasoning }, &mut format);
            (format, unknown)
        };
        let (format, unknown) = apply(Some("Hermes"), Some("deepseek-r1"));
        assert!(unknown.is_empty() && format.has_calls() && format.has_reasoning());
        let (format, unknown) = apply(Some("auto"), None);
        assert!(unknown.is_empty() && format == Format::plain());
        let (format, _) = apply(Some("openai"), None);
        assert!(matches!(format.layout, Layout::Channels(_)));
        let (format, unknown) = apply(Some("frobnicate"), Some("frobnicate"));
        assert_eq!((unknown.len(), format), (2, Format::plain()));
        let (format, _) = apply(Some("none"), Some("none"));
        assert_eq!(format, Format::plain());
    }
}
