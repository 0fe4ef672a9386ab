//! Constraints of a string as regular expressions of its whole text.

use serde_json::{Map, Value};

use super::{Unclear, constraints, pattern};

/// Formats of strings, and their expressions.
const FORMATS: [(&str, &str); 9] = [
    ("date", DATE),
    ("time", TIME),
    ("date-time", ""),
    ("uuid", "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"),
    (
        "email",
        r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*@[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*",
    ),
    (
        "hostname",
        r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*",
    ),
    (
        "ipv4",
        r"((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])",
    ),
    (
        "uri",
        r"[A-Za-z][A-Za-z0-9+.-]*:([A-Za-z0-9._~:/?#@!$&'()*+,;=-]|%[0-9A-Fa-f]{2}|\[[0-9A-Fa-f:.]+\])*",
    ),
    (
        "duration",
        r"P([0-9]+W|([0-9]+Y)?([0-9]+M)?[0-9]+D(T[0-9]+[HMS])?|([0-9]+Y)?[0-9]+M|[0-9]+Y|T(([0-9]+H)?([0-9]+M)?[0-9]+S|([0-9]+H)?[0-9]+M|[0-9]+H))",
    ),
];

const DATE: &str = "[0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-9]))";
const TIME: &str = r"([01][0-9]|2[0-3]):[0-5][0-9]:([0-5][0-9]|60)(\.[0-9]+)?([zZ]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])";

/// Regular expressions that a string of this schema matches as a whole, all of them.
///
/// # Errors
///
/// A constraint that has no such expression.
pub fn text_rules(schema: &Map<String, Value>) -> Result<Vec<String>, Unclear> {
    let mut patterns = Vec::new();
    for key in constraints(schema) {
        let place = format!(".{key}");
        match (key, schema.get(key)) {
            ("pattern", Some(Value::String(pattern))) => {
                let whole = pattern::whole(pattern).ok_or_else(|| {
                    let reason =
                        "anchors and word boundaries are supported only at the ends of a pattern";
                    Unclear::new(&place, reason)
                })?;
                patterns.push(whole);
            }
            ("format", Some(Value::String(format))) => {
                let expression = expression(format).ok_or_else(|| {
                    Unclear::new(&place, format!("the format {format:?} is not supported"))
                })?;
                patterns.push(expression);
            }
            _ => {}
        }
    }
    let length = |key: &str| match schema.get(key) {
        None => Ok(None),
        Some(value) => {
            let wrong = || Unclear::new(format!(".{key}"), "it must be a whole number from 0 on");
            value.as_u64().map(Some).ok_or_else(wrong)
        }
    };
    let (min, max) = (length("minLength")?.unwrap_or(0), length("maxLength")?);
    if max.is_some_and(|max| max < min) {
        return Err(Unclear::new(".maxLength", "it is less than `minLength`"));
    }
    if min > 0 || max.is_some() {
        let max = max.map(|max| max.to_string()).unwrap_or_default();
        patterns.push(format!("(?s:.{{{min},{max}}})"));
    }
    Ok(patterns)
}

fn expression(format: &str) -> Option<String> {
    let (_, expression) = FORMATS.iter().find(|(name, _)| *name == format)?;
    Some(match format {
        "date-time" => format!("({DATE})[tT]({TIME})"),
        _ => format!("({expression})"),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn constraints_become_expressions_and_others_are_named() {
        let rules = |schema: Value| text_rules(schema.as_object().unwrap());
        let patterns = rules(json!({"type": "string", "minLength": 2, "title": "t"})).unwrap();
        assert_eq!(patterns, ["(?s:.{2,})"]);
        let all = json!({"pattern": "^a", "format": "date-time", "maxLength": 30});
        assert_eq!(rules(all).unwrap().len(), 3);
        for (schema, path) in [
            (json!({"pattern": "a^b"}), ".pattern"),
            (json!({"format": "iri"}), ".format"),
            (json!({"minLength": 3, "maxLength": 2}), ".maxLength"),
            (json!({"minLength": -1}), ".minLength"),
        ] {
            assert_eq!(rules(schema.clone()).unwrap_err().path, path, "{schema}");
        }
    }
}
