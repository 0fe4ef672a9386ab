//! Schemas of arguments, as far as formats that are no JSON need them: what kinds of values a property may have.

mod pattern;
mod text;
mod variants;

pub use pattern::escaped;
pub use text::text_rules;
pub use variants::{Variant, likely_variants, variants};

use serde_json::{Map, Value, json};

/// Keys that constrain values of any kind. Unknown keys mean nothing.
const OF_ALL: [&str; 13] = [
    "$ref",
    "$dynamicRef",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "then",
    "else",
    "type",
    "nullable",
    "enum",
    "const",
];
const OF_STRINGS: [&str; 4] = ["pattern", "format", "minLength", "maxLength"];
const OF_NUMBERS: [&str; 5] = [
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
];
const OF_OBJECTS: [&str; 10] = [
    "properties",
    "required",
    "additionalProperties",
    "patternProperties",
    "propertyNames",
    "minProperties",
    "maxProperties",
    "dependentRequired",
    "dependentSchemas",
    "unevaluatedProperties",
];
const OF_ARRAYS: [&str; 8] = [
    "items",
    "prefixItems",
    "additionalItems",
    "minItems",
    "maxItems",
    "uniqueItems",
    "contains",
    "unevaluatedItems",
];

/// Kind of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    String,
    Integer,
    Number,
    Boolean,
    Null,
    Object,
    Array,
}

impl Kind {
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "string" => Self::String,
            "integer" => Self::Integer,
            "number" => Self::Number,
            "boolean" => Self::Boolean,
            "null" => Self::Null,
            "object" => Self::Object,
            "array" => Self::Array,
            _ => return None,
        })
    }

    /// Keys that constrain values of this kind alone.
    fn constraints(self) -> &'static [&'static str] {
        match self {
            Self::String => &OF_STRINGS,
            Self::Integer | Self::Number => &OF_NUMBERS,
            Self::Object => &OF_OBJECTS,
            Self::Array => &OF_ARRAYS,
            Self::Boolean | Self::Null => &[],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
            Self::Null => "null",
            Self::Object => "object",
            Self::Array => "array",
        }
    }

    /// Kind of a value.
    pub fn of(value: &Value) -> Self {
        match value {
            Value::String(_) => Self::String,
            Value::Number(number) if number.is_f64() => Self::Number,
            Value::Number(_) => Self::Integer,
            Value::Bool(_) => Self::Boolean,
            Value::Null => Self::Null,
            Value::Object(_) => Self::Object,
            Value::Array(_) => Self::Array,
        }
    }
}

/// A constraint that cannot be followed, and the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unclear {
    /// Place in the schema, such as `.anyOf[0].pattern`.
    pub path: String,
    pub reason: String,
}

impl Unclear {
    pub fn new(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            reason: reason.into(),
        }
    }

    /// With a path before its own.
    pub fn below(self, path: &str) -> Self {
        Self {
            path: format!("{path}{}", self.path),
            ..self
        }
    }
}

/// Keys of `schema` that constrain a value.
pub fn constraints(schema: &Map<String, Value>) -> impl Iterator<Item = &str> {
    let lists: [&[&str]; 5] = [&OF_ALL, &OF_STRINGS, &OF_NUMBERS, &OF_OBJECTS, &OF_ARRAYS];
    let keys = schema.keys().map(String::as_str);
    keys.filter(move |key| lists.iter().any(|list| list.contains(key)))
}

/// `schema` with the definitions that it may refer to.
pub fn with_definitions(root: &Value, schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Some(own) = schema.as_object_mut() {
        for definitions in ["$defs", "definitions"] {
            if let Some(shared) = root.get(definitions) {
                own.entry(definitions).or_insert_with(|| shared.clone());
            }
        }
    }
    schema
}

/// The schema that a reference names.
pub fn referred<'v>(root: &'v Value, reference: &str) -> Option<&'v Value> {
    root.pointer(reference.strip_prefix('#')?)
}

/// A schema that allows any object.
pub fn any_object() -> Value {
    json!({"type": "object"})
}
