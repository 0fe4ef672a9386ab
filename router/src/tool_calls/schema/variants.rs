//! The forms that a value may have, with references and unions resolved.

use serde_json::{Map, Value};

use super::{Kind, Unclear, constraints, referred};

/// Maximum depth of references and unions.
const MAX_DEPTH: usize = 32;

/// A form that a value may have.
#[derive(Debug, Clone, PartialEq)]
pub enum Variant {
    /// Any value.
    Any,
    /// Any of these values.
    Choices(Vec<Value>),
    /// A value of one kind, which its schema constrains. The schema has no references at its top.
    Of(Kind, Map<String, Value>),
}

/// The forms that a value of `schema` may have, exactly. `root`: the schema that references are resolved in.
///
/// # Errors
///
/// The schema combines constraints in a way that is not read.
pub fn variants(root: &Value, schema: &Value) -> Result<Vec<Variant>, Unclear> {
    let mut collector = Collector {
        root,
        exact: true,
        found: Vec::new(),
    };
    collector.collect(schema, 0)?;
    Ok(collector.found)
}

/// The forms that a value of `schema` may have, as far as they are understood; others may come in.
pub fn likely_variants(root: &Value, schema: &Value) -> Vec<Variant> {
    let mut collector = Collector {
        root,
        exact: false,
        found: Vec::new(),
    };
    // Fields that were found before an error count.
    let _ = collector.collect(schema, 0);
    collector.found
}

/// Collects the forms of a value.
struct Collector<'a> {
    root: &'a Value,
    /// True if a schema that is not understood is an error.
    exact: bool,
    found: Vec<Variant>,
}

impl Collector<'_> {
    fn collect(&mut self, schema: &Value, depth: usize) -> Result<(), Unclear> {
        if depth > MAX_DEPTH {
            return Err(Unclear::new("", "its references lead back to itself"));
        }
        let schema = match schema {
            Value::Bool(true) => {
                self.found.push(Variant::Any);
                return Ok(());
            }
            Value::Object(schema) => schema,
            _ => return Err(Unclear::new("", "it allows no value")),
        };
        if schema.get("nullable") == Some(&Value::Bool(true)) {
            self.found.push(Variant::Choices(vec![Value::Null]));
        }
        if let Some(reference) = schema.get("$ref") {
            self.alone(schema, "$ref")?;
            let target = reference
                .as_str()
                .and_then(|name| referred(self.root, name));
            let target = target
                .ok_or_else(|| Unclear::new(".$ref", format!("there is no schema {reference}")))?;
            return self.collect(target, depth + 1);
        }
        for union in ["anyOf", "oneOf", "allOf"] {
            if let Some(Value::Array(options)) = schema.get(union) {
                self.alone(schema, union)?;
                return self.union(union, options, depth);
            }
        }
        for key in ["not", "if", "$dynamicRef"] {
            if self.exact && schema.contains_key(key) {
                return Err(Unclear::new(format!(".{key}"), "it is not supported"));
            }
        }
        if let Some(choices) = choices(schema) {
            self.found.push(Variant::Choices(choices));
            return Ok(());
        }
        let kinds = kinds(schema)?;
        if kinds.is_empty() {
            self.found.push(Variant::Any);
        }
        self.found.extend(kinds.into_iter().map(|kind| {
            let mut own = schema.clone();
            let others: Vec<String> = constraints(schema)
                .filter(|key| !kind.constraints().contains(key))
                .map(str::to_owned)
                .collect();
            own.retain(|key, _| !others.contains(key));
            own.insert("type".into(), kind.name().into());
            Variant::Of(kind, own)
        }));
        Ok(())
    }

    fn union(&mut self, union: &str, options: &[Value], depth: usize) -> Result<(), Unclear> {
        if self.exact && union == "allOf" && options.len() > 1 {
            return Err(Unclear::new(".allOf", "it has more than one schema"));
        }
        for (index, option) in options.iter().enumerate() {
            let before = self.found.len();
            self.collect(option, depth + 1)
                .map_err(|error| error.below(&format!(".{union}[{index}]")))?;
            let (earlier, own) = self.found.split_at(before);
            let overlaps = own
                .iter()
                .any(|own| earlier.iter().any(|other| own.overlaps(other)));
            if self.exact && union == "oneOf" && overlaps {
                let reason = "its options may overlap; use `anyOf`";
                return Err(Unclear::new(".oneOf", reason));
            }
        }
        Ok(())
    }

    /// Refuses other constraints beside `key`.
    fn alone(&self, schema: &Map<String, Value>, key: &str) -> Result<(), Unclear> {
        let others = constraints(schema).filter(|other| *other != key && *other != "nullable");
        match others.into_iter().next() {
            Some(other) if self.exact => Err(Unclear::new(
                format!(".{other}"),
                format!("it stands beside `{key}`, and both constrain the value"),
            )),
            _ => Ok(()),
        }
    }
}

impl Variant {
    /// True if a value may have both forms.
    fn overlaps(&self, other: &Self) -> bool {
        let is_of = |kind: &Kind, value: &Value| {
            let own = Kind::of(value);
            own == *kind || (own == Kind::Integer && *kind == Kind::Number)
        };
        match (self, other) {
            (Self::Any, _) | (_, Self::Any) => true,
            (Self::Choices(a), Self::Choices(b)) => a.iter().any(|value| b.contains(value)),
            (Self::Of(kind, _), Self::Choices(values))
            | (Self::Choices(values), Self::Of(kind, _)) => {
                values.iter().any(|value| is_of(kind, value))
            }
            (Self::Of(a, _), Self::Of(b, _)) => {
                let number = |kind: &Kind| matches!(kind, Kind::Integer | Kind::Number);
                a == b || (number(a) && number(b))
            }
        }
    }
}

/// The values of `enum` or `const` that fit the schema's types.
fn choices(schema: &Map<String, Value>) -> Option<Vec<Value>> {
    let mut choices = match (schema.get("enum"), schema.get("const")) {
        (Some(Value::Array(choices)), _) => choices.clone(),
        (_, Some(only)) => vec![only.clone()],
        _ => return None,
    };
    let kinds = declared(schema);
    let fits = |value: &Value| {
        let kind = Kind::of(value);
        kinds.contains(&kind) || (kind == Kind::Integer && kinds.contains(&Kind::Number))
    };
    choices.retain(|value| kinds.is_empty() || fits(value));
    Some(choices)
}

fn declared(schema: &Map<String, Value>) -> Vec<Kind> {
    match schema.get("type") {
        Some(Value::String(kind)) => Kind::from_name(kind).into_iter().collect(),
        Some(Value::Array(kinds)) => {
            let names = kinds.iter().filter_map(Value::as_str);
            names.filter_map(Kind::from_name).collect()
        }
        _ => Vec::new(),
    }
}

/// The kinds of a schema's values: declared, or those that its constraints are about.
fn kinds(schema: &Map<String, Value>) -> Result<Vec<Kind>, Unclear> {
    let kinds = declared(schema);
    if !kinds.is_empty() {
        return Ok(kinds);
    }
    if schema.contains_key("type") {
        return Err(Unclear::new(".type", "it names no type of JSON Schema"));
    }
    let of = [Kind::Object, Kind::Array, Kind::String, Kind::Number];
    let about = |kind: &Kind| {
        kind.constraints()
            .iter()
            .any(|key| schema.contains_key(*key))
    };
    Ok(of.into_iter().find(about).into_iter().collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kinds_of(schema: &Value) -> Vec<Option<Kind>> {
        let found = variants(schema, schema).unwrap();
        found
            .iter()
            .map(|variant| match variant {
                Variant::Of(kind, _) => Some(*kind),
                Variant::Any | Variant::Choices(_) => None,
            })
            .collect()
    }

    #[test]
    fn unions_and_references_are_followed() {
        let (text, number) = (Some(Kind::String), Some(Kind::Integer));
        for (schema, kinds) in [
            (json!({"type": ["string", "integer"]}), vec![text, number]),
            (
                json!({"anyOf": [{"type": "string"}, {"oneOf": [{"type": "integer"}]}]}),
                vec![text, number],
            ),
            (
                json!({"$ref": "#/$defs/a", "$defs": {"a": {"type": "string"}}}),
                vec![text],
            ),
            (
                json!({"allOf": [{"type": "string"}], "title": "t"}),
                vec![text],
            ),
            (
                json!({"type": "integer", "nullable": true}),
                vec![None, number],
            ),
            (json!({"maxLength": 3}), vec![text]),
            (json!({}), vec![None]),
        ] {
            assert_eq!(kinds_of(&schema), kinds, "{schema}");
        }
        let mixed = json!({"type": ["string", "null"], "enum": ["a", null, 5]});
        assert_eq!(
            variants(&mixed, &mixed),
            Ok(vec![Variant::Choices(vec![json!("a"), Value::Null])])
        );
    }

    #[test]
    fn what_is_not_read_is_named() {
        for (schema, path) in [
            (json!({"not": {}}), ".not"),
            (json!({"$ref": "#/$defs/none"}), ".$ref"),
            (json!({"$ref": "#"}), ""),
            (
                json!({"oneOf": [{"type": "number"}, {"enum": ["a", 5]}]}),
                ".oneOf",
            ),
            (
                json!({"anyOf": [{"type": "string"}], "pattern": "a"}),
                ".pattern",
            ),
            (json!({"anyOf": [{}, {"if": {}}]}), ".anyOf[1].if"),
            (json!({"allOf": [{}, {}]}), ".allOf"),
            (json!({"type": "text"}), ".type"),
            (json!(false), ""),
        ] {
            let error = variants(&schema, &schema).unwrap_err();
            assert_eq!(error.path, path, "{schema}");
        }
    }
}
