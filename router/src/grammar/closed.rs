//! Objects without keys that their schema does not name. Small models otherwise write keys of their own until the limit
//! of tokens; vLLM, llama.cpp and TGI close objects too. All that a closed schema allows, the schema itself allows.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::tightened::{OF_DATA, OF_MAP};

/// Keywords of one schema each, or of a list, which constrain the value that the schema around them constrains too.
const COMPOSING: [&str; 9] = [
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "then",
    "else",
    "$ref",
    "dependentSchemas",
];

/// Keywords that say which further keys an object may have.
const ABOUT_FURTHER_KEYS: [&str; 5] = [
    "additionalProperties",
    "unevaluatedProperties",
    "patternProperties",
    "propertyNames",
    "maxProperties",
];

/// Keywords that ask for keys.
const OF_KEYS: [&str; 4] = [
    "properties",
    "required",
    "minProperties",
    "dependentRequired",
];

/// Keywords under which a closed schema could exclude what the whole allows, or allow what it excludes.
const ENTANGLED: [&str; 6] = ["oneOf", "not", "if", "then", "else", "dependentSchemas"];

/// Keywords by which references lead to other places than a path names.
const OTHER_PLACES: [&str; 5] = [
    "$id",
    "$anchor",
    "$dynamicRef",
    "$dynamicAnchor",
    "$recursiveRef",
];

/// Keywords of definitions, which constrain nothing where they stand.
const DEFINITIONS: [&str; 2] = ["$defs", "definitions"];

/// The schema, in which an object with `properties` and without a word on further keys has none.
///
/// Schemas that constrain a value together with others stay as they are, since one may name keys that another does not;
/// so do all schemas where references lead elsewhere than to a path.
pub fn closed(mut schema: Value) -> Value {
    let mut shared = Shared::default();
    shared.find(&schema, &schema, false);
    if !shared.is_known {
        return schema;
    }
    close(&mut schema, "", false, &shared.places);
    schema
}

/// Places of schemas that others refer to beside further constraints.
struct Shared {
    /// JSON pointers.
    places: BTreeSet<String>,
    /// False if a reference leads to a place that is not found here.
    is_known: bool,
}

impl Default for Shared {
    fn default() -> Self {
        Shared {
            places: BTreeSet::new(),
            is_known: true,
        }
    }
}

impl Shared {
    /// Finds the places to which `part` refers. `is_shared`: it constrains a value together with other schemas.
    fn find(&mut self, part: &Value, root: &Value, is_shared: bool) {
        match part {
            Value::Object(schema) => {
                if OTHER_PLACES.iter().any(|key| schema.contains_key(*key)) {
                    self.is_known = false;
                    return;
                }
                let inside = is_shared || constrains_together(schema);
                if let Some(reference) = schema.get("$ref") {
                    self.refer(reference, root, inside);
                }
                for (key, part) in schema {
                    let is_shared = is_shared_below(key, inside);
                    match part {
                        _ if OF_DATA.contains(&key.as_str()) => {}
                        Value::Object(named) if OF_MAP.contains(&key.as_str()) => {
                            for part in named.values() {
                                self.find(part, root, is_shared);
                            }
                        }
                        part => self.find(part, root, is_shared),
                    }
                }
            }
            Value::Array(parts) => {
                for part in parts {
                    self.find(part, root, is_shared);
                }
            }
            _ => {}
        }
    }

    fn refer(&mut self, reference: &Value, root: &Value, is_shared: bool) {
        let pointer = reference.as_str().and_then(|text| text.strip_prefix('#'));
        let target = pointer.and_then(|pointer| Some((pointer, root.pointer(pointer)?)));
        let Some((pointer, target)) = target else {
            self.is_known = false;
            return;
        };
        if is_shared && self.places.insert(pointer.to_owned()) {
            self.find(target, root, true);
        }
    }
}

/// True if parts of this schema constrain one value together.
fn constrains_together(schema: &Map<String, Value>) -> bool {
    let has = |key: &&&str| schema.contains_key(**key);
    let composing = COMPOSING.iter().filter(has).count();
    let all = schema
        .get("allOf")
        .and_then(Value::as_array)
        .map_or(0, Vec::len);
    let of_keys = OF_KEYS
        .iter()
        .chain(&ABOUT_FURTHER_KEYS)
        .filter(has)
        .count();
    composing > 1 || all > 1 || composing == 1 && of_keys > 0
}

/// `inside`: what is below a schema constrains a value together with other schemas.
fn is_shared_below(key: &str, inside: bool) -> bool {
    inside && !DEFINITIONS.contains(&key) || ENTANGLED.contains(&key)
}

fn close(part: &mut Value, place: &str, is_shared: bool, shared: &BTreeSet<String>) {
    let is_shared = is_shared || shared.contains(place);
    match part {
        Value::Object(schema) => {
            let inside = is_shared || constrains_together(schema);
            if !inside && names_all_its_keys(schema) {
                schema.insert("additionalProperties".to_owned(), false.into());
            }
            for (key, part) in schema {
                let is_shared = is_shared_below(key, inside);
                let place = below(place, key);
                match part {
                    _ if OF_DATA.contains(&key.as_str()) => {}
                    Value::Object(named) if OF_MAP.contains(&key.as_str()) => {
                        for (name, part) in named {
                            close(part, &below(&place, name), is_shared, shared);
                        }
                    }
                    part => close(part, &place, is_shared, shared),
                }
            }
        }
        Value::Array(parts) => {
            for (index, part) in parts.iter_mut().enumerate() {
                close(part, &format!("{place}/{index}"), is_shared, shared);
            }
        }
        _ => {}
    }
}

fn below(place: &str, key: &str) -> String {
    format!("{place}/{}", key.replace('~', "~0").replace('/', "~1"))
}

/// True for the schema of an object that can be written with the keys of `properties` alone.
fn names_all_its_keys(schema: &Map<String, Value>) -> bool {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        return false;
    };
    let required = schema.get("required").and_then(Value::as_array);
    let are_named = required.into_iter().flatten().all(|name| {
        name.as_str()
            .is_some_and(|name| properties.contains_key(name))
    });
    let least = schema
        .get("minProperties")
        .and_then(Value::as_u64)
        .unwrap_or(0);
    are_named
        && least <= properties.len() as u64
        && !COMPOSING
            .iter()
            .chain(&ABOUT_FURTHER_KEYS)
            .any(|key| schema.contains_key(*key))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Places that are closed, by the schema's own keys.
    fn places(schema: &Value) -> Vec<String> {
        fn collect(before: &Value, after: &Value, place: &str, found: &mut Vec<String>) {
            if let (Value::Object(before), Value::Object(after)) = (before, after) {
                if before.len() != after.len() {
                    found.push(place.to_owned());
                }
                for (key, part) in before {
                    collect(part, &after[key], &below(place, key), found);
                }
            }
            if let (Value::Array(before), Value::Array(after)) = (before, after) {
                for (index, (before, after)) in before.iter().zip(after).enumerate() {
                    collect(before, after, &format!("{place}/{index}"), found);
                }
            }
        }
        let mut found = Vec::new();
        collect(schema, &closed(schema.clone()), "", &mut found);
        found
    }

    #[test]
    fn objects_that_name_their_keys_are_closed() {
        let pet = json!({"properties": {"a": {}}, "required": ["a"]});
        let schema = json!({"type": "object", "properties": {"pet": {"$ref": "#/$defs/Pet"}, "list": {"items": pet},
                            "choice": {"anyOf": [pet, {"type": "null"}]}, "one": {"allOf": [pet]}},
                            "$defs": {"Pet": pet}});
        let expected = [
            "",
            "/$defs/Pet",
            "/properties/choice/anyOf/0",
            "/properties/list/items",
            "/properties/one/allOf/0",
        ];
        let mut found = places(&schema);
        found.sort();
        assert_eq!(found, expected);
        assert_eq!(closed(pet)["additionalProperties"], json!(false));
        assert_eq!(places(&json!({"type": "object", "properties": {}})), [""]);
        // Names of properties are no keywords.
        let schema = json!({"properties": {"allOf": {}, "oneOf": {"properties": {"$id": {}}}}});
        assert_eq!(places(&schema), ["", "/properties/oneOf"]);
    }

    #[test]
    fn objects_whose_keys_are_free_on_purpose_stay_open() {
        for schema in [
            json!({"type": "object"}),
            json!({"properties": {"a": {}}, "additionalProperties": true}),
            json!({"properties": {"a": {}}, "additionalProperties": {"type": "string"}}),
            json!({"properties": {"a": {}}, "patternProperties": {"^x": {}}}),
            json!({"properties": {"a": {}}, "unevaluatedProperties": {}}),
            json!({"properties": {"a": {}}, "required": ["b"]}),
            json!({"properties": {"a": {}}, "minProperties": 2}),
            json!({"items": {"const": {"properties": {}}, "default": {"properties": {}}}}),
        ] {
            assert_eq!(closed(schema.clone()), schema);
        }
    }

    #[test]
    fn schemas_that_hold_together_stay_open() {
        let a = json!({"properties": {"a": {"properties": {"x": {}}}}});
        let b = json!({"properties": {"b": {}}});
        for schema in [
            json!({"allOf": [a, b]}),
            json!({"allOf": [a], "properties": {"b": {}}}),
            json!({"anyOf": [a, b], "properties": {"c": {}}}),
            json!({"oneOf": [a, b]}),
            json!({"$ref": "#/$defs/a", "anyOf": [b], "$defs": {"a": a}}),
            json!({"allOf": [{"$ref": "#/$defs/a"}, b], "$defs": {"a": a}}),
            json!({"allOf": [{"$ref": "#/$defs/a"}, b],
                   "$defs": {"a": {"items": {"$ref": "#/$defs/deep"}}, "deep": {"properties": {"x": {}}}}}),
            json!({"allOf": [b], "required": ["c"]}),
            json!({"not": a}),
            json!({"$id": "x", "properties": {"a": {}}}),
            json!({"properties": {"a": {"$ref": "other.json"}}}),
        ] {
            assert_eq!(closed(schema.clone()), schema);
        }
        // The whole refers to itself beside a constraint.
        let schema = json!({"properties": {"a": {"allOf": [{"$ref": "#"}, b]}}});
        assert_eq!(closed(schema.clone()), schema);
    }
}
