//! The methods of `str`.

use super::attributes::text_bounds;
use super::call::{CallArguments, given, to_index, to_text};
use super::compare::iterate;
use super::error::{Error, Result};
use super::value::Value;
use super::{meter, repr, str_format, strings};

/// Evaluates `text.name(arguments)`.
pub fn call(text: &str, name: &str, arguments: &CallArguments) -> Result<Value> {
    meter::scan(text.len())?;
    match name {
        "capitalize" | "casefold" | "lower" | "upper" | "title" | "swapcase" => {
            arguments.positional::<0>(name, 0)?;
            change_case(text, name)
        }
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = arguments.positional(name, 0)?;
            let chars = given(chars);
            let chars = chars
                .as_ref()
                .map(|chars| to_text(chars, name))
                .transpose()?;
            let stripped = strings::strip(text, chars, name != "rstrip", name != "lstrip");
            copy(stripped)
        }
        "split" | "rsplit" => split(text, name, arguments),
        "splitlines" => {
            let [keep] = arguments.bind(name, ["keepends"], 0)?;
            let keep = keep.map_or(Ok(0), |keep| to_index(&keep))? != 0;
            list_of(strings::split_lines(text, keep))
        }
        "partition" | "rpartition" => partition(text, name, arguments),
        "removeprefix" | "removesuffix" => {
            let [part] = arguments.positional(name, 1)?;
            let part = part.unwrap_or(Value::None);
            let part = to_text(&part, name)?;
            let rest = if name == "removeprefix" {
                text.strip_prefix(part)
            } else {
                text.strip_suffix(part)
            };
            copy(rest.unwrap_or(text))
        }
        "startswith" | "endswith" => starts_or_ends(text, name, arguments),
        "find" | "rfind" | "index" | "rindex" | "count" => find(text, name, arguments),
        "replace" => {
            let [old, new, count] = arguments.positional(name, 2)?;
            let (old, new) = (old.unwrap_or(Value::None), new.unwrap_or(Value::None));
            let count = count.map_or(Ok(-1), |count| to_index(&count))?;
            replace(text, to_text(&old, name)?, to_text(&new, name)?, count)
        }
        "join" => {
            let [items] = arguments.positional(name, 1)?;
            join(text, &items.unwrap_or(Value::None))
        }
        "center" | "ljust" | "rjust" => {
            let [width, fill] = arguments.positional(name, 1)?;
            let width = to_index(&width.unwrap_or(Value::None))?;
            let fill = fill.unwrap_or_else(|| Value::str(" "));
            let fill = to_text(&fill, name)?;
            if strings::length(fill) != 1 {
                return Err(Error::runtime(
                    "The fill character must be exactly one character long",
                ));
            }
            pad(text, name, width, fill)
        }
        "zfill" => {
            let [width] = arguments.positional(name, 1)?;
            let width = to_index(&width.unwrap_or(Value::None))?;
            let (sign, digits) = match text.as_bytes().first() {
                Some(b'+' | b'-') => text.split_at(1),
                _ => ("", text),
            };
            let missing = missing(text, width)?;
            Ok(Value::str(format!("{sign}{}{digits}", "0".repeat(missing))))
        }
        "expandtabs" => {
            let [size] = arguments.bind(name, ["tabsize"], 0)?;
            let size = size.map_or(Ok(8), |size| to_index(&size))?;
            expand_tabs(text, usize::try_from(size.max(0)).unwrap_or(usize::MAX))
        }
        "format" => str_format::format(text, arguments).map(Value::str),
        "format_map" => {
            let [Some(Value::Dict(dict))] = arguments.positional(name, 1)? else {
                return Err(Error::refused("`format_map` with anything but a dict"));
            };
            let named = dict
                .entries()
                .iter()
                .filter_map(|(key, value)| Some((key.as_str()?.into(), value.clone())));
            let arguments = CallArguments {
                positional: Vec::new(),
                named: named.collect(),
            };
            str_format::format(text, &arguments).map(Value::str)
        }
        _ if name.starts_with("is") => {
            arguments.positional::<0>(name, 0)?;
            is(text, name).map(Value::Bool)
        }
        other => Err(Error::refused(format!("the method `str.{other}`"))),
    }
}

fn copy(text: &str) -> Result<Value> {
    meter::reserve(text.len())?;
    Ok(Value::str(text))
}

fn list_of(parts: Vec<&str>) -> Result<Value> {
    meter::reserve(parts.iter().map(|part| part.len() + 80).sum())?;
    Value::list(parts.into_iter().map(Value::str).collect())
}

fn change_case(text: &str, name: &str) -> Result<Value> {
    meter::reserve(2 * text.len())?;
    Ok(Value::str(match name {
        "capitalize" => strings::capitalize(text)?,
        "title" => strings::title(text)?,
        "swapcase" => strings::swap_case(text)?,
        "upper" => strings::upper(text),
        "casefold" if !text.is_ascii() => {
            return Err(Error::refused("`casefold` of a text beyond ASCII"));
        }
        _ => strings::lower(text),
    }))
}

fn split(text: &str, name: &str, arguments: &CallArguments) -> Result<Value> {
    let [separator, most] = arguments.bind(name, ["sep", "maxsplit"], 0)?;
    let most = most.map_or(Ok(-1), |most| to_index(&most))?;
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let from_left = name == "split";
    let Some(separator) = given(separator) else {
        return list_of(if from_left {
            split_words(text, most)
        } else {
            rsplit_words(text, most)
        });
    };
    let separator = to_text(&separator, name)?;
    if separator.is_empty() {
        return Err(Error::runtime("empty separator"));
    }
    let pieces = most.saturating_add(1);
    list_of(if from_left {
        text.splitn(pieces, separator).collect()
    } else {
        let mut parts: Vec<&str> = text.rsplitn(pieces, separator).collect();
        parts.reverse();
        parts
    })
}

fn split_words(text: &str, most: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_start_matches(strings::is_space);
    while !rest.is_empty() {
        if parts.len() == most {
            parts.push(rest);
            break;
        }
        let end = rest.find(strings::is_space).unwrap_or(rest.len());
        parts.push(&rest[..end]);
        rest = rest[end..].trim_start_matches(strings::is_space);
    }
    parts
}

fn rsplit_words(text: &str, most: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_end_matches(strings::is_space);
    while !rest.is_empty() {
        if parts.len() == most {
            parts.push(rest);
            break;
        }
        let start = rest
            .char_indices()
            .rev()
            .find(|(_, c)| strings::is_space(*c))
            .map_or(0, |(at, c)| at + c.len_utf8());
        parts.push(&rest[start..]);
        rest = rest[..start].trim_end_matches(strings::is_space);
    }
    parts.reverse();
    parts
}

fn partition(text: &str, name: &str, arguments: &CallArguments) -> Result<Value> {
    let [separator] = arguments.positional(name, 1)?;
    let separator = separator.unwrap_or(Value::None);
    let separator = to_text(&separator, name)?;
    if separator.is_empty() {
        return Err(Error::runtime("empty separator"));
    }
    let parts = if name == "partition" {
        text.split_once(separator)
            .map_or((text, "", ""), |(before, after)| (before, separator, after))
    } else {
        text.rsplit_once(separator)
            .map_or(("", "", text), |(before, after)| (before, separator, after))
    };
    meter::reserve(text.len())?;
    let (before, separator, after) = parts;
    Value::tuple([before, separator, after].map(Value::str).to_vec())
}

fn starts_or_ends(text: &str, name: &str, arguments: &CallArguments) -> Result<Value> {
    let [part, start, end] = arguments.positional(name, 1)?;
    let length = strings::length(text);
    let (start, end) = text_bounds(&[start, end], length)?;
    let fits = |part: &Value| -> Result<bool> {
        let part = to_text(part, name)?;
        if start > end {
            return Ok(false);
        }
        let text = strings::slice(text, start, end);
        Ok(if name == "startswith" {
            text.starts_with(part)
        } else {
            text.ends_with(part)
        })
    };
    match part.unwrap_or(Value::None) {
        Value::Tuple(parts) => {
            for part in parts.iter() {
                if fits(part)? {
                    return Ok(Value::Bool(true));
                }
            }
            Ok(Value::Bool(false))
        }
        part => fits(&part).map(Value::Bool),
    }
}

fn find(text: &str, name: &str, arguments: &CallArguments) -> Result<Value> {
    let [part, start, end] = arguments.positional(name, 1)?;
    let part = part.unwrap_or(Value::None);
    let part = to_text(&part, name)?;
    let length = strings::length(text);
    let (start, end) = text_bounds(&[start, end], length)?;
    let inside = strings::slice(text, start, end);
    let fits = start <= end;
    if name == "count" {
        let count = match (fits, part.is_empty()) {
            (false, _) => 0,
            (true, true) => end - start + 1,
            (true, false) => inside.matches(part).count(),
        };
        return Ok(Value::Int(count as i128));
    }
    let found = if name.starts_with('r') {
        inside.rfind(part)
    } else {
        inside.find(part)
    };
    match found.filter(|_| fits) {
        Some(at) => Ok(Value::Int((start + strings::length(&inside[..at])) as i128)),
        None if name.ends_with("index") => Err(Error::runtime("substring not found")),
        None => Ok(Value::Int(-1)),
    }
}

/// Evaluates `text.replace(old, new, count)`.
pub fn replace(text: &str, old: &str, new: &str, count: i128) -> Result<Value> {
    let most = usize::try_from(count).unwrap_or(usize::MAX);
    let matches = if old.is_empty() {
        strings::length(text) + 1
    } else {
        text.matches(old).count()
    };
    let matches = matches.min(most);
    meter::reserve(text.len().saturating_add(matches.saturating_mul(new.len())))?;
    Ok(Value::str(text.replacen(old, new, matches)))
}

/// Evaluates `text.join(items)`.
fn join(text: &str, items: &Value) -> Result<Value> {
    let mut iter = iterate(items).map_err(|_| Error::runtime("can only join an iterable"))?;
    let mut out = repr::Out::default();
    let mut at = 0;
    while let Some(item) = iter.next()? {
        if at > 0 {
            out.push(text)?;
        }
        match &item {
            Value::Str(part) => out.push(part)?,
            Value::Markup(_) => return Err(Error::refused("`join` with an escaped string")),
            other => {
                return Err(Error::runtime(format!(
                    "sequence item {at}: expected str instance, {} found",
                    other.type_name()
                )));
            }
        }
        at += 1;
    }
    Ok(Value::str(out.take()))
}

/// Returns the number of characters that `text` lacks for `width`.
fn missing(text: &str, width: i128) -> Result<usize> {
    let width = usize::try_from(width.max(0)).unwrap_or(usize::MAX);
    let missing = width.saturating_sub(strings::length(text));
    meter::reserve(text.len().saturating_add(missing.saturating_mul(4)))?;
    Ok(missing)
}

/// Evaluates `text.center(width, fill)`, `ljust` and `rjust`.
pub fn pad(text: &str, name: &str, width: i128, fill: &str) -> Result<Value> {
    let missing = missing(text, width)?;
    let left = match name {
        "center" => missing / 2 + (missing & width as usize & 1),
        "rjust" => missing,
        _ => 0,
    };
    Ok(Value::str(format!(
        "{}{text}{}",
        fill.repeat(left),
        fill.repeat(missing - left)
    )))
}

fn expand_tabs(text: &str, size: usize) -> Result<Value> {
    meter::reserve(
        text.len()
            .saturating_add(text.matches('\t').count().saturating_mul(size)),
    )?;
    let mut result = String::with_capacity(text.len());
    let mut column = 0;
    for c in text.chars() {
        match c {
            '\t' if size == 0 => {}
            '\t' => {
                let spaces = size - column % size;
                result.push_str(&" ".repeat(spaces));
                column += spaces;
            }
            c => {
                result.push(c);
                column = if matches!(c, '\n' | '\r') {
                    0
                } else {
                    column + 1
                };
            }
        }
    }
    Ok(Value::str(result))
}

/// Evaluates `text.isalpha()` and similar methods.
fn is(text: &str, name: &str) -> Result<bool> {
    let all = |test: fn(char) -> bool| !text.is_empty() && text.chars().all(test);
    match name {
        "isascii" => return Ok(text.is_ascii()),
        "isspace" => return Ok(all(strings::is_space)),
        "isprintable" => return Ok(text.chars().all(strings::is_printable)),
        "islower" => return Ok(strings::is_all(text, char::is_lowercase)),
        "isupper" => return Ok(strings::is_all(text, char::is_uppercase)),
        _ => {}
    }
    if matches!(name, "isalpha" | "isalnum") {
        for c in text.chars() {
            if !(strings::is_letter(c)? || name == "isalnum" && c.is_numeric()) {
                return Ok(false);
            }
        }
        return Ok(!text.is_empty());
    }
    // Python's and Rust's tables differ in the digits beyond ASCII.
    if !text.is_ascii() {
        return Err(Error::refused(format!(
            "the method `str.{name}` of a text beyond ASCII"
        )));
    }
    Ok(match name {
        "isdigit" | "isdecimal" | "isnumeric" => all(|c| c.is_ascii_digit()),
        "isidentifier" => {
            all(|c| c.is_ascii_alphanumeric() || c == '_')
                && !text.starts_with(|c: char| c.is_ascii_digit())
        }
        "istitle" => {
            let mut cased = false;
            let mut after_cased = false;
            for c in text.chars() {
                if c.is_ascii_alphabetic() {
                    if c.is_ascii_uppercase() == after_cased {
                        return Ok(false);
                    }
                    cased = true;
                }
                after_cased = c.is_ascii_alphabetic();
            }
            cased
        }
        other => return Err(Error::refused(format!("the method `str.{other}`"))),
    })
}
