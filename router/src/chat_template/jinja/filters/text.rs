//! Filters of strings.

use crate::chat_template::jinja::call::{CallArguments, given, to_index, to_text};
use crate::chat_template::jinja::compare::{collect, iterate, length};
use crate::chat_template::jinja::error::{Error, Result};
use crate::chat_template::jinja::percent::{self, to_float};
use crate::chat_template::jinja::str_methods;
use crate::chat_template::jinja::value::Value;
use crate::chat_template::jinja::{meter, repr, strings};

pub fn call(name: &str, value: &Value, arguments: &CallArguments) -> Result<Value> {
    if matches!(value, Value::Markup(_))
        && !matches!(
            name,
            "e" | "escape" | "forceescape" | "safe" | "string" | "wordcount" | "urlencode"
        )
    {
        return Err(Error::refused(format!(
            "the filter `{name}` on an escaped string"
        )));
    }
    match name {
        "string" => {
            arguments.bind::<0>(name, [], 0)?;
            match value {
                Value::Str(_) | Value::Markup(_) => Ok(value.clone()),
                other => repr::to_string(other).map(Value::str),
            }
        }
        "safe" => {
            arguments.bind::<0>(name, [], 0)?;
            repr::to_string(value).map(Value::markup)
        }
        "e" | "escape" | "forceescape" => {
            arguments.bind::<0>(name, [], 0)?;
            if name != "forceescape" && matches!(value, Value::Markup(_)) {
                return Ok(value.clone());
            }
            escape(&repr::to_string(value)?).map(Value::markup)
        }
        "indent" => indent(value, arguments),
        "truncate" => truncate(value, arguments),
        "filesizeformat" => file_size(value, arguments),
        "urlencode" => {
            arguments.bind::<0>(name, [], 0)?;
            url_encode(value)
        }
        "xmlattr" => xml_attributes(value, arguments),
        "wordwrap" => word_wrap(value, arguments),
        _ => of_text(name, &repr::to_string(value)?, arguments),
    }
}

/// Applies filters that take the text of any value.
fn of_text(name: &str, text: &str, arguments: &CallArguments) -> Result<Value> {
    meter::reserve(2 * text.len())?;
    match name {
        "upper" | "lower" | "capitalize" => {
            arguments.bind::<0>(name, [], 0)?;
            str_methods::call(text, name, &CallArguments::default())
        }
        "title" => {
            arguments.bind::<0>(name, [], 0)?;
            title(text)
        }
        "trim" => {
            let [chars] = arguments.bind(name, ["chars"], 0)?;
            let chars = given(chars);
            let chars = chars
                .as_ref()
                .map(|chars| to_text(chars, name))
                .transpose()?;
            Ok(Value::str(strings::strip(text, chars, true, true)))
        }
        "center" => {
            let [width] = arguments.bind(name, ["width"], 0)?;
            let width = width.map_or(Ok(80), |width| to_index(&width))?;
            str_methods::pad(text, name, width, " ")
        }
        "replace" => {
            let [old, new, count] = arguments.bind(name, ["old", "new", "count"], 2)?;
            for side in [&old, &new].into_iter().flatten() {
                if matches!(side, Value::Markup(_)) {
                    return Err(Error::refused(
                        "the filter `replace` with an escaped string",
                    ));
                }
            }
            let part = |part: Option<Value>| repr::to_string(&part.unwrap_or(Value::None));
            let count = given(count).map_or(Ok(-1), |count| to_index(&count))?;
            str_methods::replace(text, &part(old)?, &part(new)?, count)
        }
        "format" => {
            if arguments.named.is_empty() {
                let values = Value::tuple(arguments.positional.clone())?;
                return percent::format(text, &values).map(Value::str);
            }
            if !arguments.positional.is_empty() {
                return Err(Error::runtime(
                    "can't handle positional and keyword arguments at the same time",
                ));
            }
            let named = arguments.named.iter();
            let values =
                Value::dict(named.map(|(name, value)| (Value::str(&**name), value.clone())))?;
            percent::format(text, &values).map(Value::str)
        }
        "wordcount" => {
            arguments.bind::<0>(name, [], 0)?;
            let mut count = 0;
            let mut within = false;
            for c in text.chars() {
                let belongs = c == '_' || c.is_numeric() || strings::is_letter(c)?;
                count += i128::from(belongs && !within);
                within = belongs;
            }
            Ok(Value::Int(count))
        }
        _ => strip_tags(text).map(Value::str),
    }
}

/// Jinja2's `title` looks at the text between white space, dashes and opening brackets.
fn title(text: &str) -> Result<Value> {
    if text.contains('Σ') {
        return Err(Error::refused("`title` of a text with a capital sigma"));
    }
    let mut result = String::with_capacity(text.len());
    let mut begins = true;
    for c in text.chars() {
        if strings::is_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<') {
            begins = true;
            result.push(c);
        } else if begins {
            begins = false;
            result.extend(c.to_uppercase());
        } else {
            result.extend(c.to_lowercase());
        }
    }
    Ok(Value::str(result))
}

fn indent(value: &Value, arguments: &CallArguments) -> Result<Value> {
    let [width, first, blank] = arguments.bind("indent", ["width", "first", "blank"], 0)?;
    let flag = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let text = to_text(value, "the operand of `indent`")?;
    let indention = match width.unwrap_or(Value::Int(4)) {
        Value::Str(text) => text.to_string(),
        width => {
            let spaces = usize::try_from(to_index(&width)?.max(0)).unwrap_or(usize::MAX);
            meter::reserve(spaces)?;
            " ".repeat(spaces)
        }
    };
    let (first, blank) = (flag(first), flag(blank));
    let mut text = text.to_owned();
    text.push('\n');
    let mut out = repr::Out::default();
    if first {
        out.push(&indention)?;
    }
    for (at, line) in strings::split_lines(&text, false).into_iter().enumerate() {
        if at > 0 {
            out.push("\n")?;
            if blank || !line.is_empty() {
                out.push(&indention)?;
            }
        }
        out.push(line)?;
    }
    Ok(Value::str(out.take()))
}

fn truncate(value: &Value, arguments: &CallArguments) -> Result<Value> {
    let names = ["length", "killwords", "end", "leeway"];
    let [most, kill_words, end, leeway] = arguments.bind("truncate", names, 0)?;
    let most = most.map_or(Ok(255), |most| to_index(&most))?;
    let end = end.unwrap_or_else(|| Value::str("..."));
    let end = to_text(&end, "`end` of `truncate`")?;
    let leeway = given(leeway).map_or(Ok(5), |leeway| to_index(&leeway))?;
    let end_length = strings::length(end) as i128;
    if most < end_length || leeway < 0 {
        return Err(Error::runtime(format!(
            "expected length >= {end_length} and leeway >= 0, got {most} and {leeway}"
        )));
    }
    if length(value)? as i128 <= most + leeway {
        return Ok(value.clone());
    }
    let text = to_text(value, "the operand of `truncate`")?;
    let kept = strings::slice(text, 0, (most - end_length) as usize);
    let kept = if kill_words.is_some_and(|kill| kill.is_true()) {
        kept
    } else {
        kept.rsplit_once(' ').map_or(kept, |(before, _)| before)
    };
    Ok(Value::str(format!("{kept}{end}")))
}

fn file_size(value: &Value, arguments: &CallArguments) -> Result<Value> {
    let [binary] = arguments.bind("filesizeformat", ["binary"], 0)?;
    let binary = binary.is_some_and(|binary| binary.is_true());
    let bytes = to_float(value)?;
    let base: f64 = if binary { 1024.0 } else { 1000.0 };
    if bytes == 1.0 {
        return Ok(Value::str("1 Byte"));
    }
    if bytes < base {
        let whole = crate::chat_template::jinja::numbers::truncate(bytes)?;
        return Ok(Value::str(format!("{whole} Bytes")));
    }
    let prefixes = if binary {
        ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"]
    } else {
        ["kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"]
    };
    let mut text = String::new();
    for (at, prefix) in prefixes.iter().enumerate() {
        let unit = base.powi(at as i32 + 2);
        text = format!("{:.1} {prefix}", base * bytes / unit);
        if bytes < unit {
            break;
        }
    }
    Ok(Value::str(text))
}

fn escape(text: &str) -> Result<String> {
    let mut out = repr::Out::default();
    let mut rest = text;
    while let Some(at) = rest.find(['&', '<', '>', '\'', '"']) {
        out.push(&rest[..at])?;
        out.push(match rest.as_bytes()[at] {
            b'&' => "&amp;",
            b'<' => "&lt;",
            b'>' => "&gt;",
            b'\'' => "&#39;",
            _ => "&#34;",
        })?;
        rest = &rest[at + 1..];
    }
    out.push(rest)?;
    Ok(out.take())
}

fn xml_attributes(value: &Value, arguments: &CallArguments) -> Result<Value> {
    let [space] = arguments.bind("xmlattr", ["autospace"], 0)?;
    let space = space.is_none_or(|space| space.is_true());
    let Value::Dict(dict) = value else {
        return Err(Error::runtime("xmlattr needs a dict"));
    };
    let mut parts = Vec::new();
    for (key, value) in dict.entries() {
        if matches!(value, Value::None | Value::Undefined(_)) {
            continue;
        }
        let key = to_text(key, "an attribute's name")?;
        if key.contains(|c: char| matches!(c, ' ' | '\t'..='\r' | '/' | '>' | '=')) {
            return Err(Error::runtime(format!(
                "Invalid character in attribute name: {}",
                repr::quote(key)
            )));
        }
        let value = match value {
            Value::Markup(text) => text.to_string(),
            other => escape(&repr::to_string(other)?)?,
        };
        parts.push(format!("{}=\"{value}\"", escape(key)?));
    }
    let text = parts.join(" ");
    let space = if space && !text.is_empty() { " " } else { "" };
    Ok(Value::str(format!("{space}{text}")))
}

fn url_encode(value: &Value) -> Result<Value> {
    let pairs = match value {
        Value::Str(_) | Value::Markup(_) => return quote(value, "/").map(Value::str),
        Value::Dict(dict) => dict.entries().to_vec(),
        other => match iterate(other) {
            Ok(_) => collect(other)?
                .iter()
                .map(|pair| match collect(pair)?.as_slice() {
                    [key, value] => Ok((key.clone(), value.clone())),
                    _ => Err(Error::runtime("urlencode needs pairs")),
                })
                .collect::<Result<_>>()?,
            Err(_) => return quote(other, "/").map(Value::str),
        },
    };
    let mut parts = Vec::new();
    for (key, value) in pairs {
        let encoded = |part: &Value| Ok::<_, Error>(quote(part, "")?.replace("%20", "+"));
        parts.push(format!("{}={}", encoded(&key)?, encoded(&value)?));
    }
    Ok(Value::str(parts.join("&")))
}

fn quote(value: &Value, safe: &str) -> Result<String> {
    let text = repr::to_string(value)?;
    meter::reserve(3 * text.len())?;
    let mut quoted = String::with_capacity(text.len());
    for byte in text.bytes() {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || "_.-~".contains(c) || safe.contains(c) {
            quoted.push(c);
        } else {
            quoted.push_str(&format!("%{byte:02X}"));
        }
    }
    Ok(quoted)
}

/// Removes comments and tags, and replaces each run of white space by one space.
fn strip_tags(text: &str) -> Result<String> {
    if text.contains('&') {
        return Err(Error::refused("the filter `striptags` on a text with `&`"));
    }
    let mut kept = text.to_owned();
    while let Some(start) = kept.find("<!--") {
        meter::scan(kept.len())?;
        let Some(end) = kept[start..].find("-->") else {
            break;
        };
        kept.replace_range(start..start + end + 3, "");
    }
    while let Some(start) = kept.find('<') {
        meter::scan(kept.len())?;
        let Some(end) = kept[start..].find('>') else {
            break;
        };
        kept.replace_range(start..=start + end, "");
    }
    let words: Vec<&str> = kept
        .split(strings::is_space)
        .filter(|word| !word.is_empty())
        .collect();
    Ok(words.join(" "))
}

/// Keeps lines that fit, and refuses others, which Python breaks by rules of its own.
fn word_wrap(value: &Value, arguments: &CallArguments) -> Result<Value> {
    let names = [
        "width",
        "break_long_words",
        "wrapstring",
        "break_on_hyphens",
    ];
    let [width, _, separator, _] = arguments.bind("wordwrap", names, 0)?;
    let width = width.map_or(Ok(79), |width| to_index(&width))?;
    let separator = given(separator).unwrap_or_else(|| Value::str("\n"));
    let separator = to_text(&separator, "`wrapstring`")?;
    let text = to_text(value, "the operand of `wordwrap`")?;
    let lines = strings::split_lines(text, false);
    let fits = |line: &&str| {
        strings::length(line) as i128 <= width
            && !line.contains(|c| strings::is_space(c) && c != ' ')
            && !line.ends_with(' ')
    };
    if !lines.iter().all(fits) {
        return Err(Error::refused(
            "the filter `wordwrap` on lines beyond its width",
        ));
    }
    meter::reserve(text.len() + lines.len().saturating_mul(separator.len()))?;
    Ok(Value::str(lines.join(separator)))
}
