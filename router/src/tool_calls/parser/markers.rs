//! The format of calls, ready to be compared with text.

use super::cursor::Marker;
use crate::tool_calls::format::{Arguments, Body, Calls};

/// The format of calls, ready to be compared with text.
#[derive(Debug)]
pub struct CallMarkers {
    pub section_open: Marker,
    pub section_close: Marker,
    pub list: bool,
    pub open: Marker,
    pub close: Marker,
    pub separator: Marker,
    /// True if only a known name tells that a call begins.
    pub is_bare: bool,
    pub body: BodyMarkers,
}

#[derive(Debug)]
pub enum BodyMarkers {
    Object {
        name: String,
        arguments: String,
        wrapper: String,
        id: String,
    },
    NameAsKey,
    Named {
        name_open: Marker,
        name_close: Marker,
        id_open: Marker,
        numbered: bool,
        arguments: ArgumentMarkers,
    },
}

#[derive(Debug)]
pub enum ArgumentMarkers {
    Json,
    Keywords,
    BareKeys { quote: String },
    Tagged(TagMarkers),
}

/// Markers of tagged arguments, with the white space that belongs to them rather than to the value.
#[derive(Debug, Clone)]
pub struct TagMarkers {
    pub open: Marker,
    pub key_close: Marker,
    pub string_mark: Marker,
    pub json_mark: Marker,
    pub close: Marker,
    pub trim: bool,
    pub space_before_value: String,
    pub space_after_value: String,
}

impl CallMarkers {
    pub fn new(calls: &Calls) -> Self {
        Self {
            section_open: Marker::new(&calls.section_open),
            section_close: Marker::new(&calls.section_close),
            list: calls.list,
            open: Marker::new(&calls.open),
            close: Marker::new(&calls.close),
            separator: Marker::new(&calls.separator),
            is_bare: calls.is_bare(),
            body: BodyMarkers::new(&calls.body),
        }
    }

    /// Markers that tell that calls begin.
    pub fn openings(&self) -> Vec<&Marker> {
        let openings = [&self.section_open, &self.open].into_iter();
        openings.filter(|marker| !marker.is_empty()).collect()
    }
}

impl BodyMarkers {
    fn new(body: &Body) -> Self {
        match body {
            Body::Object {
                name,
                arguments,
                wrapper,
                id,
                ..
            } => Self::Object {
                name: name.clone(),
                arguments: arguments.clone(),
                wrapper: wrapper.clone(),
                id: id.clone(),
            },
            Body::NameAsKey => Self::NameAsKey,
            Body::Named {
                name_open,
                name_close,
                id_open,
                numbered,
                arguments,
            } => Self::Named {
                name_open: Marker::new(name_open),
                name_close: Marker::new(name_close),
                id_open: Marker::new(id_open),
                numbered: *numbered,
                arguments: match arguments {
                    Arguments::Json => ArgumentMarkers::Json,
                    Arguments::Keywords { .. } => ArgumentMarkers::Keywords,
                    Arguments::BareKeys { quote, .. } => ArgumentMarkers::BareKeys {
                        quote: quote.trim().to_owned(),
                    },
                    Arguments::Tagged(tags) => ArgumentMarkers::Tagged(TagMarkers {
                        open: Marker::new(&tags.open),
                        key_close: Marker::new(&tags.key_close),
                        string_mark: Marker::new(&tags.string_mark),
                        json_mark: Marker::new(&tags.json_mark),
                        close: Marker::new(&tags.close),
                        trim: tags.trim,
                        space_before_value: trailing_space(if tags.string_mark.is_empty() {
                            &tags.key_close
                        } else {
                            &tags.string_mark
                        })
                        .to_owned(),
                        space_after_value: leading_space(&tags.close).to_owned(),
                    }),
                },
            },
        }
    }
}

fn leading_space(text: &str) -> &str {
    let len = text.len() - text.trim_start().len();
    text.get(..len).unwrap_or_default()
}

fn trailing_space(text: &str) -> &str {
    text.get(text.trim_end().len()..).unwrap_or_default()
}
