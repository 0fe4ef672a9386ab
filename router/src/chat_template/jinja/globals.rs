//! The functions that every template can call.

use std::cell::RefCell;
use std::rc::Rc;

use super::call::{CallArguments, to_index, to_text};
use super::compare::{collect, iterate};
use super::error::{Error, Result};
use super::value::{Cycler, Joiner, Namespace, Range, Value};
use super::{clock, meter, repr};

/// Maximum length of a range, as Jinja2's sandbox has it.
const MAX_RANGE: usize = 100_000;

const NAMES: [&str; 8] = [
    "range",
    "dict",
    "lipsum",
    "cycler",
    "joiner",
    "namespace",
    "raise_exception",
    "strftime_now",
];

/// Returns the global function of this name.
pub fn get(name: &str) -> Option<Value> {
    let known = NAMES.iter().find(|known| **known == name)?;
    Some(Value::Function(known))
}

/// Evaluates `name(arguments)`. `namespaces` receives each new namespace.
pub fn call(
    namespaces: &mut Vec<Rc<Namespace>>,
    name: &str,
    arguments: &CallArguments,
) -> Result<Value> {
    match name {
        "range" => range(arguments),
        "dict" => Value::dict(pairs(arguments)?),
        "namespace" => {
            let namespace = Rc::new(Namespace::default());
            for (key, value) in pairs(arguments)? {
                namespace.set(to_text(&key, "an attribute's name")?, value)?;
            }
            meter::made(128);
            namespaces.push(Rc::clone(&namespace));
            Ok(Value::Namespace(namespace))
        }
        "cycler" => {
            if !arguments.named.is_empty() {
                return Err(Error::runtime("cycler() takes no keyword arguments"));
            }
            if arguments.positional.is_empty() {
                return Err(Error::runtime("at least one item has to be provided"));
            }
            let items = Value::tuple(arguments.positional.clone())?;
            let items = items.as_items().cloned();
            let items = items.ok_or_else(|| Error::runtime("cycler() needs items"))?;
            Ok(Value::Cycler(Rc::new(Cycler {
                items,
                position: RefCell::new(0),
            })))
        }
        "joiner" => {
            let [separator] = arguments.bind(name, ["sep"], 0)?;
            Ok(Value::Joiner(Rc::new(Joiner {
                separator: separator.unwrap_or_else(|| Value::str(", ")),
                used: RefCell::new(false),
            })))
        }
        "raise_exception" => {
            let [message] = arguments.bind(name, ["message"], 1)?;
            let message = message.unwrap_or(Value::None);
            Err(Error::raised(repr::to_string(&message)?))
        }
        "strftime_now" => {
            let [format] = arguments.bind(name, ["format"], 1)?;
            let format = format.unwrap_or(Value::None);
            clock::strftime_now(to_text(&format, "the format of `strftime_now`")?).map(Value::str)
        }
        other => Err(Error::refused(format!("the function `{other}`"))),
    }
}

fn range(arguments: &CallArguments) -> Result<Value> {
    let numbers = arguments.positional::<3>("range", 1)?;
    let mut given = Vec::new();
    for number in numbers.into_iter().flatten() {
        let number = to_index(&number)?;
        if number.unsigned_abs() > 1 << 62 {
            return Err(Error::refused("a range of integers beyond 62 bits"));
        }
        given.push(number);
    }
    let (start, stop, step) = match given[..] {
        [stop] => (0, stop, 1),
        [start, stop] => (start, stop, 1),
        [start, stop, step, ..] => (start, stop, step),
        [] => (0, 0, 1),
    };
    if step == 0 {
        return Err(Error::runtime("range() arg 3 must not be zero"));
    }
    let range = Range { start, stop, step };
    if range.len() > MAX_RANGE {
        return Err(Error::runtime(format!(
            "Range too big. The sandbox blocks ranges larger than MAX_RANGE ({MAX_RANGE})."
        )));
    }
    Ok(Value::Range(range))
}

/// Returns the entries of `dict(…)`: those of one mapping or list of pairs, and the named ones.
fn pairs(arguments: &CallArguments) -> Result<Vec<(Value, Value)>> {
    let mut entries = Vec::new();
    match arguments.positional.as_slice() {
        [] => {}
        [Value::Dict(dict)] => {
            meter::spend(dict.entries().len() as u64)?;
            entries.extend_from_slice(dict.entries());
        }
        [Value::Namespace(_)] => return Err(Error::refused("a dict of a namespace")),
        [other] => {
            let mut iter = iterate(other)?;
            while let Some(pair) = iter.next()? {
                match collect(&pair)?.as_slice() {
                    [key, value] => entries.push((key.clone(), value.clone())),
                    _ => {
                        return Err(Error::runtime(
                            "a dict needs pairs, each of a key and a value",
                        ));
                    }
                }
            }
        }
        _ => {
            return Err(Error::runtime(format!(
                "dict expected at most 1 argument, got {}",
                arguments.positional.len()
            )));
        }
    }
    for (name, value) in &arguments.named {
        entries.push((Value::str(&**name), value.clone()));
    }
    Ok(entries)
}
