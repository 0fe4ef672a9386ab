//! The beginning of a call, up to its arguments. Nothing of it is taken before its name is certain.

use super::certain_call::{Begin, Start};
use super::cursor::{Cursor, Doubt, Marker, Try};
use super::literal::Literal;
use super::markers::{ArgumentMarkers, BodyMarkers, CallMarkers};
use super::object::{Keys, name_as_key};
use crate::tool_calls::plan::Plan;

/// Longest name that is taken for a function's, in bytes.
const MAX_NAME_BYTES: usize = 256;

impl CallMarkers {
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
                if cursor.sees(&tags.open)? || self.ends_here(cursor)? {
                    Start::Tagged
                } else if closed && cursor.peek()? == '{' {
                    // Some models write JSON in place of the tags.
                    Start::Json { open_objects: 0 }
                } else {
                    return Err(Doubt::No);
                }
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
