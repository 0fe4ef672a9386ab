//! Calls that are JSON objects.

use super::certain_call::{Begin, Start};
use super::cursor::{Cursor, Doubt, Try};

/// Keys of a call's object.
pub struct Keys<'a> {
    pub name: &'a str,
    pub arguments: &'a str,
    pub wrapper: &'a str,
    pub id: &'a str,
}

/// Keys besides name and arguments that a call may have, and whose values tell nothing.
const OTHER_KEYS: [&str; 5] = ["type", "id", "index", "tool_call_id", "call_id"];

impl Keys<'_> {
    /// Reads fields until both name and arguments are known.
    pub fn read(&self, cursor: &mut Cursor<'_>) -> Try<Begin> {
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

/// Reads an object whose only key is the name.
pub fn name_as_key(cursor: &mut Cursor<'_>) -> Try<Begin> {
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
