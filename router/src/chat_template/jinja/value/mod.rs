//! Python's values. The sandbox of chat templates forbids changing lists and dicts, so they are shared.

mod objects;
mod scope;

use std::collections::HashMap;
use std::rc::Rc;

use super::error::{Error, Result};
use super::meter;
pub use objects::{BoundMacro, Cycler, Generator, Joiner, Method, Namespace, Range};
pub use scope::Scope;

/// Maximum depth of nested lists, tuples and dicts.
const MAX_NESTING: usize = 200;

#[derive(Debug, Clone)]
pub enum Value {
    Undefined(Rc<Undefined>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Text),
    /// A string that `escape` or `safe` marked.
    Markup(Text),
    List(Rc<Items>),
    Tuple(Rc<Items>),
    /// A pair that `groupby` gives. Its parts have the names `grouper` and `list`.
    Group(Rc<Items>),
    Dict(Rc<Dict>),
    View(View, Rc<Dict>),
    Range(Range),
    Generator(Rc<Generator>),
    Namespace(Rc<Namespace>),
    Macro(Rc<BoundMacro>),
    /// The `loop` of a running loop, by its number.
    Loop(usize),
    Cycler(Rc<Cycler>),
    Joiner(Rc<Joiner>),
    /// A global function.
    Function(&'static str),
    Method(Rc<Method>),
}

/// Value of a missing name or key. It can be tested and printed; other uses fail with `message`.
#[derive(Debug)]
pub struct Undefined {
    pub message: String,
}

impl Undefined {
    pub fn value(message: impl Into<String>) -> Value {
        Value::Undefined(Rc::new(Self {
            message: message.into(),
        }))
    }

    pub fn error(&self) -> Error {
        Error::runtime(self.message.clone())
    }
}

/// A string whose bytes the meter counts.
#[derive(Debug, Clone)]
pub struct Text(Rc<TextBuffer>);

#[derive(Debug)]
struct TextBuffer(Box<str>);

const TEXT_BYTES: usize = 48;

impl Text {
    fn new(text: String) -> Self {
        meter::made(text.len() + TEXT_BYTES);
        Self(Rc::new(TextBuffer(text.into_boxed_str())))
    }
}

impl std::ops::Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0.0
    }
}

impl Drop for TextBuffer {
    fn drop(&mut self) {
        meter::dropped(self.0.len() + TEXT_BYTES);
    }
}

/// The items of a list or tuple.
#[derive(Debug)]
pub struct Items {
    items: Vec<Value>,
    nesting: usize,
}

impl std::ops::Deref for Items {
    type Target = [Value];

    fn deref(&self) -> &[Value] {
        &self.items
    }
}

impl Items {
    fn new(items: Vec<Value>) -> Result<Rc<Self>> {
        let nesting = checked_nesting(items.iter())?;
        meter::made(items_bytes(items.len()));
        Ok(Rc::new(Self { items, nesting }))
    }
}

impl Drop for Items {
    fn drop(&mut self) {
        meter::dropped(items_bytes(self.items.len()));
    }
}

pub(super) const fn items_bytes(count: usize) -> usize {
    64 + count * size_of::<Value>()
}

fn checked_nesting<'a>(values: impl Iterator<Item = &'a Value>) -> Result<usize> {
    let nesting = 1 + values.map(Value::nesting).max().unwrap_or(0);
    if nesting > MAX_NESTING {
        return Err(Error::limit(format!(
            "lists and dicts are nested more than {MAX_NESTING} deep"
        )));
    }
    Ok(nesting)
}

/// A dict: its entries in order, and the index of each key.
#[derive(Debug)]
pub struct Dict {
    entries: Vec<(Value, Value)>,
    index: HashMap<Key, usize>,
    nesting: usize,
}

impl Dict {
    /// Makes a dict. Of equal keys, the first is kept with the last value.
    pub fn new(entries: impl IntoIterator<Item = (Value, Value)>) -> Result<Rc<Self>> {
        let mut kept: Vec<(Value, Value)> = Vec::new();
        let mut index: HashMap<Key, usize> = HashMap::new();
        for (key, value) in entries {
            match index.entry(Key::of(&key)?) {
                std::collections::hash_map::Entry::Occupied(at) => kept[*at.get()].1 = value,
                std::collections::hash_map::Entry::Vacant(free) => {
                    free.insert(kept.len());
                    kept.push((key, value));
                }
            }
        }
        let nesting = checked_nesting(kept.iter().flat_map(|(key, value)| [key, value]))?;
        meter::made(dict_bytes(kept.len()));
        Ok(Rc::new(Self {
            entries: kept,
            index,
            nesting,
        }))
    }

    pub fn entries(&self) -> &[(Value, Value)] {
        &self.entries
    }

    pub fn get(&self, key: &Value) -> Result<Option<&Value>> {
        let at = self.index.get(&Key::of(key)?);
        Ok(at.map(|at| &self.entries[*at].1))
    }

    pub fn get_str(&self, key: &str) -> Option<&Value> {
        // Allocating a key would cost more than scanning the few keys that messages have.
        if self.entries.len() <= 16 {
            let entry = self
                .entries
                .iter()
                .find(|(k, _)| matches!(k, Value::Str(k) if **k == *key));
            return entry.map(|(_, value)| value);
        }
        let at = self.index.get(&Key::Str(key.into()));
        at.map(|at| &self.entries[*at].1)
    }
}

impl Drop for Dict {
    fn drop(&mut self) {
        meter::dropped(dict_bytes(self.entries.len()));
    }
}

const fn dict_bytes(count: usize) -> usize {
    128 + count * (2 * size_of::<Value>() + 96)
}

/// The part of a key that Python compares: `1`, `1.0` and `True` are equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Key {
    None,
    Int(i128),
    Float(u64),
    Str(Box<str>),
    Tuple(Vec<Key>),
}

impl Key {
    pub fn of(value: &Value) -> Result<Self> {
        meter::spend(1)?;
        Ok(match value {
            Value::None => Self::None,
            Value::Bool(flag) => Self::Int(i128::from(*flag)),
            Value::Int(number) => Self::Int(*number),
            Value::Float(number) => match super::numbers::exact_int(*number) {
                Some(whole) => Self::Int(whole),
                None if number.is_nan() => return Err(Error::refused("a NaN as a key")),
                None => Self::Float(number.to_bits()),
            },
            Value::Str(text) | Value::Markup(text) => {
                meter::scan(text.len())?;
                Self::Str((**text).into())
            }
            Value::Tuple(items) | Value::Group(items) => {
                Self::Tuple(items.iter().map(Self::of).collect::<Result<_>>()?)
            }
            Value::List(_) | Value::Dict(_) | Value::View(View::Keys | View::Items, _) => {
                return Err(Error::runtime(format!(
                    "unhashable type: '{}'",
                    value.type_name()
                )));
            }
            other => {
                return Err(Error::refused(format!(
                    "a key of type {}",
                    other.type_name()
                )));
            }
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    Keys,
    Values,
    Items,
}

impl Value {
    pub fn str(text: impl Into<String>) -> Self {
        Self::Str(Text::new(text.into()))
    }

    pub fn markup(text: impl Into<String>) -> Self {
        Self::Markup(Text::new(text.into()))
    }

    pub fn list(items: Vec<Self>) -> Result<Self> {
        Items::new(items).map(Self::List)
    }

    pub fn tuple(items: Vec<Self>) -> Result<Self> {
        Items::new(items).map(Self::Tuple)
    }

    pub fn group(items: Vec<Self>) -> Result<Self> {
        Items::new(items).map(Self::Group)
    }

    pub fn dict(entries: impl IntoIterator<Item = (Self, Self)>) -> Result<Self> {
        Dict::new(entries).map(Self::Dict)
    }

    /// Converts JSON to the value that Python's `json` would read.
    pub fn from_json(json: &serde_json::Value) -> Result<Self> {
        meter::spend(1)?;
        Ok(match json {
            serde_json::Value::Null => Self::None,
            serde_json::Value::Bool(flag) => Self::Bool(*flag),
            serde_json::Value::Number(number) => {
                let whole = number.as_i64().map(i128::from);
                match whole.or_else(|| number.as_u64().map(i128::from)) {
                    Some(whole) => Self::Int(whole),
                    None => Self::Float(number.as_f64().unwrap_or(f64::INFINITY)),
                }
            }
            serde_json::Value::String(text) => {
                meter::reserve(text.len())?;
                Self::str(text.as_str())
            }
            serde_json::Value::Array(items) => {
                Self::list(items.iter().map(Self::from_json).collect::<Result<_>>()?)?
            }
            serde_json::Value::Object(map) => {
                let entry = |(key, value): (&String, &serde_json::Value)| {
                    Ok((Self::str(key.as_str()), Self::from_json(value)?))
                };
                Self::dict(map.iter().map(entry).collect::<Result<Vec<_>>>()?)?
            }
        })
    }

    fn nesting(&self) -> usize {
        match self {
            Self::List(items) | Self::Tuple(items) | Self::Group(items) => items.nesting,
            Self::Dict(dict) | Self::View(_, dict) => dict.nesting,
            Self::Generator(generator) => {
                let rest = generator.rest.borrow();
                1 + rest
                    .iter()
                    .flatten()
                    .map(Self::nesting)
                    .max()
                    .unwrap_or_default()
            }
            Self::Cycler(cycler) => 1 + cycler.items.nesting,
            Self::Joiner(joiner) => 1 + joiner.separator.nesting(),
            Self::Method(method) => 1 + method.owner.nesting(),
            _ => 0,
        }
    }

    /// Evaluates `bool(value)`.
    pub fn is_true(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(flag) => *flag,
            Self::Int(number) => *number != 0,
            Self::Float(number) => *number != 0.0,
            Self::Str(text) | Self::Markup(text) => !text.is_empty(),
            Self::List(items) | Self::Tuple(items) | Self::Group(items) => !items.is_empty(),
            Self::Dict(dict) | Self::View(_, dict) => !dict.entries.is_empty(),
            Self::Range(range) => range.len() > 0,
            _ => true,
        }
    }

    /// True if `reversed(value)` is possible.
    pub fn is_reversible(&self) -> bool {
        matches!(
            self,
            Self::Undefined(_)
                | Self::Str(_)
                | Self::Markup(_)
                | Self::List(_)
                | Self::Tuple(_)
                | Self::Group(_)
                | Self::Dict(_)
                | Self::View(..)
                | Self::Range(_)
        )
    }

    /// Returns `type(value).__name__`.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) => "str",
            Self::Markup(_) => "Markup",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Group(_) => "_GroupTuple",
            Self::Dict(_) => "dict",
            Self::View(View::Keys, _) => "dict_keys",
            Self::View(View::Values, _) => "dict_values",
            Self::View(View::Items, _) => "dict_items",
            Self::Range(_) => "range",
            Self::Generator(generator) => generator.type_name,
            Self::Namespace(_) => "TemplateNamespace",
            Self::Macro(_) => "Macro",
            Self::Loop(_) => "LoopContext",
            Self::Cycler(_) => "Cycler",
            Self::Joiner(_) => "Joiner",
            Self::Function(_) => "function",
            Self::Method(_) => "builtin_function_or_method",
        }
    }

    /// Returns the text of a string, marked as safe or not.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) | Self::Markup(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the value of an `int` or a `bool`.
    pub fn as_int(&self) -> Option<i128> {
        match self {
            Self::Int(number) => Some(*number),
            Self::Bool(flag) => Some(i128::from(*flag)),
            _ => None,
        }
    }

    /// Returns the items of a list or tuple.
    pub fn as_items(&self) -> Option<&Rc<Items>> {
        match self {
            Self::List(items) | Self::Tuple(items) | Self::Group(items) => Some(items),
            _ => None,
        }
    }
}
