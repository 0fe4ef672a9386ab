//! Finds how a template writes the arguments after a name.

use serde_json::Value;

use super::conversation::{INNER, KEYS, NUMBER, VALUES};
use super::lexemes::{common_prefix, common_suffix};
use crate::tool_calls::format::{Arguments, LiteralStyle, Tags};

/// Turns with one call.
#[derive(Debug)]
pub struct Probes<'t> {
    /// With the first key.
    pub one: &'t str,
    /// With both keys.
    pub pair: Option<&'t str>,
    /// With a number as the first key's value.
    pub number: Option<&'t str>,
    /// With an object that has a list as the first key's value.
    pub nested: Option<&'t str>,
}

/// Arguments, and the text between the name and them.
#[derive(Debug)]
pub struct ArgumentsFound {
    pub name_close: String,
    pub arguments: Arguments,
}

/// Finds the form of the arguments after `name`.
pub fn find(probes: &Probes<'_>, name: &str) -> Option<ArgumentsFound> {
    let (_, rest) = probes.one.split_once(name)?;
    if let Some((start, _)) = json_object(rest) {
        return Some(ArgumentsFound {
            name_close: rest.get(..start)?.to_owned(),
            arguments: Arguments::Json,
        });
    }
    let style = || literal_style(probes.nested?);
    let (gap, after_key) = rest.split_once(KEYS[0])?;
    let (between, _) = after_key.split_once(VALUES[0])?;
    if gap.trim().starts_with('(') && between.trim().starts_with('=') {
        return Some(ArgumentsFound {
            name_close: String::new(),
            arguments: Arguments::Keywords {
                style: LiteralStyle {
                    quote: between.trim_start_matches(['=', ' ']).to_owned(),
                    ..style().unwrap_or_else(LiteralStyle::python)
                },
            },
        });
    }
    if let Some(name_close) = gap.trim_end().strip_suffix('{')
        && let Some(quote) = between.trim_start().strip_prefix(':')
    {
        return Some(ArgumentsFound {
            name_close: name_close.to_owned(),
            arguments: Arguments::BareKeys {
                quote: quote.trim().to_owned(),
                style: style().unwrap_or_else(LiteralStyle::bare),
            },
        });
    }
    tagged(probes, name, between)
}

/// How an object, a list, constants and a string are written, from a turn with nested arguments.
fn literal_style(text: &str) -> Option<LiteralStyle> {
    let (before, rest) = text.split_once(INNER)?;
    let is_quote = |c: &char| matches!(c, '"' | '\'');
    let key_quote = before.chars().last().filter(is_quote);
    let key_quote = key_quote.map(String::from).unwrap_or_default();
    let (colon, rest) = rest.strip_prefix(key_quote.as_str())?.split_once('[')?;
    let word = |text: &str| {
        let end = text.find(|c: char| !c.is_alphabetic())?;
        Some((text.get(..end)?.to_owned(), text.get(end..)?.to_owned()))
    };
    let (true_word, rest) = word(rest)?;
    let comma = rest.get(..rest.find(char::is_alphabetic)?)?;
    let (null_word, rest) = word(rest.get(comma.len()..)?)?;
    let (quote, _) = rest.strip_prefix(comma)?.split_once(VALUES[0])?;
    let false_word = match true_word.as_str() {
        "True" => "False",
        "true" => "false",
        _ => return None,
    };
    Some(LiteralStyle {
        comma: comma.to_owned(),
        colon: colon.to_owned(),
        key_quote,
        quote: quote.to_owned(),
        false_word: false_word.to_owned(),
        true_word,
        null_word,
    })
}

fn tagged(probes: &Probes<'_>, name: &str, key_close: &str) -> Option<ArgumentsFound> {
    let (_, rest) = probes.pair?.split_once(name)?;
    let (first, rest) = rest.split_once(KEYS[0])?;
    let (_, rest) = rest.split_once(VALUES[0])?;
    let (second, rest) = rest.split_once(KEYS[1])?;
    let (_, last) = rest.split_once(VALUES[1])?;
    let open = common_suffix(first, second);
    let open_text = first.get(first.len() - open..)?.trim_start();
    let close = common_prefix(second, last);
    let close_text = second.get(..close)?;
    let holds_key = KEYS.iter().any(|key| close_text.contains(key));
    if open_text.is_empty() || close_text.trim().is_empty() || holds_key {
        return None;
    }
    let mut tags = Tags {
        open: open_text.to_owned(),
        key_close: key_close.to_owned(),
        close: close_text.to_owned(),
        ..Tags::default()
    };
    let with_number = probes.number.and_then(|number| {
        let (_, rest) = number.split_once(KEYS[0])?;
        Some(rest.split_once(NUMBER)?.0)
    });
    if let Some(with_number) = with_number.filter(|other| *other != key_close) {
        let pairs = key_close.char_indices().zip(with_number.chars());
        let shared = pairs.take_while(|((_, a), b)| a == b);
        let shared = shared.last().map_or(0, |((at, c), _)| at + c.len_utf8());
        tags.key_close = key_close.get(..shared)?.to_owned();
        tags.string_mark = key_close.get(shared..)?.to_owned();
        tags.json_mark = with_number.get(shared..)?.to_owned();
    }
    let name_close = first.get(..first.len() - open_text.len())?;
    Some(ArgumentsFound {
        name_close: name_close.to_owned(),
        arguments: Arguments::Tagged(tags),
    })
}

/// The first JSON object in `text` that has one of the keys: beginning and end.
fn json_object(text: &str) -> Option<(usize, usize)> {
    text.match_indices('{').find_map(|(start, _)| {
        let mut values =
            serde_json::Deserializer::from_str(text.get(start..)?).into_iter::<Value>();
        let value = values.next()?.ok()?;
        let known = KEYS.iter().any(|key| value.get(key).is_some());
        known.then(|| (start, start + values.byte_offset()))
    })
}

impl ArgumentsFound {
    /// End of the arguments in the text after a call's name.
    pub fn arguments_end(&self, rest: &str) -> Option<usize> {
        let after_value = |text: &str| {
            VALUES
                .iter()
                .filter_map(|value| Some(text.find(value)? + value.len()))
                .min()
        };
        match &self.arguments {
            Arguments::Json => json_object(rest).map(|(_, end)| end),
            Arguments::Keywords { .. } => {
                let value = after_value(rest)?;
                Some(value + rest.get(value..)?.find(')')? + 1)
            }
            Arguments::BareKeys { .. } => {
                let value = after_value(rest)?;
                Some(value + rest.get(value..)?.find('}')? + 1)
            }
            Arguments::Tagged(tags) => {
                let value = after_value(rest)?;
                let close = rest.get(value..)?;
                close
                    .starts_with(&tags.close)
                    .then(|| value + tags.close.len())
            }
        }
    }
}
