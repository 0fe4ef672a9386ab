//! The beginning of a call, up to its arguments. Nothing of it is taken before its name is certain.

use super::cursor::{Cursor, Doubt, Marker, Try};
use super::literal::Literal;
use crate::tool_calls::format::{Arguments, Body, Calls};
use crate::tool_calls::plan::Plan;

/// Longest name that is taken for a function's, in bytes.
const MAX_NAME_BYTES: usize = 256;

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

/// A call whose name is certain.
#[derive(Debug)]
pub struct Begin {
    /// Bytes of text up to the arguments.
    pub len: usize,
    pub name: String,
    /// Identifier that the model wrote.
    pub id: Option<String>,
    pub arguments: Start,
}

/// The arguments from their beginning.
#[derive(Debug)]
pub enum Start {
    /// A JSON value follows. `open_objects`: objects around it that must be closed.
    Json {
        open_objects: usize,
    },
    /// The text of a JSON string follows.
    JsonString {
        open_objects: usize,
    },
    /// The arguments stood before the name.
    Complete {
        json: String,
        open_objects: usize,
    },
    Literal(Literal),
    Tagged,
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

    /// Reads the first call, with the markers before it. Returns true if it stands in a list.
    pub fn first(&self, text: &str, end: bool, plan: &Plan) -> Try<(Begin, bool)> {
        let mut cursor = Cursor::new(text, end);
        cursor.space();
        cursor.accept(&self.section_open)?;
        cursor.space();
        let in_list = self.list && cursor.take('[')?;
        if self.list && !in_list && self.is_bare {
            return Err(Doubt::No);
        }
        cursor.space();
        Ok((self.call(cursor, plan)?, in_list))
    }

    /// Reads a call from its own opening on.
    pub fn call(&self, mut cursor: Cursor<'_>, plan: &Plan) -> Try<Begin> {
        if !cursor.accept(&self.open)? {
            return Err(Doubt::No);
        }
        cursor.space();
        let begin = match &self.body {
            BodyMarkers::Object {
                name,
                arguments,
                wrapper,
                id,
            } => Keys {
                name,
                arguments,
                wrapper,
                id,
            }
            .read(&mut cursor)?,
            BodyMarkers::NameAsKey => name_as_key(&mut cursor)?,
            BodyMarkers::Named {
                name_open,
                name_close,
                id_open,
                numbered,
                arguments,
            } => {
                let id = id_before_name(&mut cursor, name_open)?;
                let markers = (name_close, id_open);
                let begin = self.named(&mut cursor, markers, *numbered, arguments)?;
                Begin {
                    id: begin.id.or(id),
                    ..begin
                }
            }
        };
        let is_known = plan.tool(&begin.name).is_some();
        let fits = !begin.name.is_empty() && begin.name.len() <= MAX_NAME_BYTES;
        if !fits || (self.is_bare && !is_known) {
            return Err(Doubt::No);
        }
        Ok(begin)
    }

    fn named(
        &self,
        cursor: &mut Cursor<'_>,
        (name_close, id_open): (&Marker, &Marker),
        numbered: bool,
        arguments: &ArgumentMarkers,
    ) -> Try<Begin> {
        let in_name = |c: char| !c.is_whitespace() && !"<>{}()[]\"'`|=,".contains(c);
        let written = cursor.word(in_name)?;
        let (name, mut id) = match numbered {
            true => (plain_name(written), Some(written.to_owned())),
            false => (written, None),
        };
        if name.is_empty() {
            return Err(Doubt::No);
        }
        cursor.space();
        if !id_open.is_empty() && cursor.accept(id_open)? {
            cursor.space();
            let written = cursor.word(|c| c.is_ascii_alphanumeric() || "_-".contains(c))?;
            id = Some(written.to_owned());
            cursor.space();
        }
        let closed = cursor.accept(name_close)?;
        cursor.space();
        let start = match arguments {
            ArgumentMarkers::Json => match cursor.peek() {
                Ok('{') => Start::Json { open_objects: 0 },
                Ok(_) | Err(Doubt::No) if self.ends_here(cursor)? => Start::Complete {
                    json: "{}".into(),
                    open_objects: 0,
                },
                Ok(_) => return Err(Doubt::No),
                Err(doubt) => return Err(doubt),
            },
            ArgumentMarkers::Keywords => {
                cursor.expect('(')?;
                keyword_follows(*cursor)?;
                Start::Literal(Literal::keywords())
            }
            ArgumentMarkers::BareKeys { quote } => {
                cursor.expect('{')?;
                Start::Literal(Literal::bare_keys(quote))
            }
            ArgumentMarkers::Tagged(tags) => {
                if !cursor.sees(&tags.open)? && !self.ends_here(cursor)? {
                    return Err(Doubt::No);
                }
                Start::Tagged
            }
        };
        if !closed && !name_close.is_empty() && !matches!(start, Start::Json { .. }) {
            return Err(Doubt::No);
        }
        Ok(Begin {
            len: cursor.at,
            name: name.to_owned(),
            id,
            arguments: start,
        })
    }

    /// True if the call's closing marker is next.
    fn ends_here(&self, cursor: &Cursor<'_>) -> Try<bool> {
        if self.close.is_empty() {
            return Ok(false);
        }
        match self.close.fit_some(cursor.rest(), cursor.is_last()) {
            Ok(_) => Ok(true),
            Err(Doubt::No) => Ok(false),
            Err(more) => Err(more),
        }
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
                arguments_in_string: _,
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
                    Arguments::Keywords => ArgumentMarkers::Keywords,
                    Arguments::BareKeys { quote } => ArgumentMarkers::BareKeys {
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

/// Reads the identifier before a name, and the marker between them.
fn id_before_name(cursor: &mut Cursor<'_>, name_open: &Marker) -> Try<Option<String>> {
    if name_open.is_empty() {
        return Ok(None);
    }
    let id = cursor.word(|c| c.is_ascii_alphanumeric() || "_-.:".contains(c))?;
    cursor.space();
    if !cursor.accept(name_open)? {
        return Err(Doubt::No);
    }
    cursor.space();
    Ok(Some(id.to_owned()))
}

/// The name in `functions.NAME:NUMBER`.
fn plain_name(written: &str) -> &str {
    let name = written.strip_prefix("functions.").unwrap_or(written);
    match name.rsplit_once(':') {
        Some((name, number)) if number.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => name,
    }
}

/// Checks that a keyword argument or the closing parenthesis follows: prose has parentheses too.
fn keyword_follows(mut cursor: Cursor<'_>) -> Try<()> {
    cursor.space();
    if cursor.peek()? == ')' {
        return Ok(());
    }
    let name = cursor.word(|c| c.is_alphanumeric() || "_-.".contains(c))?;
    cursor.space();
    let is_keyword = !name.is_empty() && cursor.take('=')? && cursor.peek()? != '=';
    is_keyword.then_some(()).ok_or(Doubt::No)
}

/// Keys of a call's object.
struct Keys<'a> {
    name: &'a str,
    arguments: &'a str,
    wrapper: &'a str,
    id: &'a str,
}

/// Keys besides name and arguments that a call may have, and whose values tell nothing.
const OTHER_KEYS: [&str; 5] = ["type", "id", "index", "tool_call_id", "call_id"];

impl Keys<'_> {
    /// Reads fields until both name and arguments are known.
    fn read(&self, cursor: &mut Cursor<'_>) -> Try<Begin> {
        let mut name: Option<String> = None;
        let mut id = None;
        let mut earlier: Option<String> = None;
        let mut open_objects = 1;
        cursor.expect('{')?;
        loop {
            cursor.space();
            let c = cursor.peek()?;
            if c == '}' {
                // An object without arguments.
                let name = name.ok_or(Doubt::No)?;
                return Ok(Begin {
                    len: cursor.at,
                    name,
                    id,
                    arguments: Start::Complete {
                        json: earlier.unwrap_or_else(|| "{}".into()),
                        open_objects,
                    },
                });
            }
            if c == ',' {
                cursor.skip(c);
                continue;
            }
            let key = cursor.json_string()?;
            cursor.space();
            cursor.expect(':')?;
            cursor.space();
            if !self.wrapper.is_empty() && key == self.wrapper && cursor.peek()? == '{' {
                cursor.expect('{')?;
                open_objects += 1;
            } else if name.is_none() && (key == self.name || key == "name") {
                name = Some(cursor.json_string()?);
            } else if earlier.is_none()
                && (key == self.arguments || key == "arguments" || key == "parameters")
            {
                match (&name, cursor.peek()?) {
                    (Some(name), c @ ('{' | '"')) => {
                        let arguments = if c == '"' {
                            cursor.skip(c);
                            Start::JsonString { open_objects }
                        } else {
                            Start::Json { open_objects }
                        };
                        return Ok(Begin {
                            len: cursor.at,
                            name: name.clone(),
                            id,
                            arguments,
                        });
                    }
                    _ => earlier = Some(complete_arguments(cursor.json_value()?)),
                }
            } else if !self.id.is_empty() && key == self.id && cursor.peek()? == '"' {
                id = Some(cursor.json_string()?);
            } else if !OTHER_KEYS.contains(&key.as_str()) {
                return Err(Doubt::No);
            } else {
                cursor.json_value()?;
            }
        }
    }
}

/// Arguments from a complete value: the JSON in a string, and no arguments for null.
fn complete_arguments(value: &str) -> String {
    let value = value.trim();
    if value == "null" {
        return "{}".into();
    }
    match serde_json::from_str::<String>(value) {
        Ok(text) if text.trim().is_empty() => "{}".into(),
        Ok(text) => text,
        Err(_) => value.to_owned(),
    }
}

fn name_as_key(cursor: &mut Cursor<'_>) -> Try<Begin> {
    cursor.expect('{')?;
    cursor.space();
    let name = cursor.json_string()?;
    cursor.space();
    cursor.expect(':')?;
    cursor.space();
    if cursor.peek()? != '{' {
        return Err(Doubt::No);
    }
    Ok(Begin {
        len: cursor.at,
        name,
        id: None,
        arguments: Start::Json { open_objects: 1 },
    })
}

/// Reads the rest of a call's object after its arguments: other fields, and the brackets that close it. Returns its
/// length.
pub fn object_end(text: &str, end: bool, mut open_objects: usize) -> Try<usize> {
    let mut cursor = Cursor::new(text, end);
    while open_objects > 0 {
        cursor.space();
        match cursor.peek()? {
            '}' => {
                cursor.skip('}');
                open_objects -= 1;
            }
            ',' => {
                cursor.skip(',');
                cursor.space();
                let key = cursor.json_string()?;
                if !OTHER_KEYS.contains(&key.as_str()) {
                    return Err(Doubt::No);
                }
                cursor.space();
                cursor.expect(':')?;
                cursor.space();
                cursor.json_value()?;
            }
            _ => return Err(Doubt::No),
        }
    }
    Ok(cursor.at)
}
