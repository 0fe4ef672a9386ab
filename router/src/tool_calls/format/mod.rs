//! Description of how a model writes its reasoning and its tool calls. Found by rendering its chat template, read from
//! its files, or taken from the data file of named formats; parsing and grammars follow from it alone.
//!
//! Markers are compared word by word: white space around and inside them may be missing in an answer.

mod describe;
mod markers;

use serde::{Deserialize, Serialize};

/// How a model writes what is not plain text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Format {
    /// Source of the calls' format.
    #[serde(skip)]
    pub calls_from: Origin,
    /// Source of the reasoning's format.
    #[serde(skip)]
    pub reasoning_from: Origin,
    /// Text of a prompt after which the assistant's turn begins. The last occurrence counts.
    #[serde(default)]
    pub anchor: String,
    #[serde(flatten)]
    pub layout: Layout,
}

/// Source of a format.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Origin {
    /// Nothing was found.
    #[default]
    Nothing,
    /// `response_template` of tokenizer_config.json.
    ResponseTemplate,
    /// The rendered chat template.
    ChatTemplate,
    /// The tokenizer's own tokens.
    Tokens,
    /// A named format of the data file.
    Named(String),
}

/// Order of the parts of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// Plain text with marked regions.
    Regions(Box<Regions>),
    /// Messages, each with a header that says what it is.
    Channels(Channels),
}

impl From<Regions> for Layout {
    fn from(regions: Regions) -> Self {
        Layout::Regions(Box::new(regions))
    }
}

/// Marked regions in plain text.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Regions {
    #[serde(default)]
    pub reasoning: Option<Reasoning>,
    #[serde(default)]
    pub calls: Option<Calls>,
    /// Markers around the content, which are left out of it.
    #[serde(default)]
    pub content_markers: Vec<String>,
}

/// Markers of the reasoning.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Reasoning {
    pub open: String,
    pub close: String,
    /// True if reasoning may begin after content; otherwise only where no content has come yet, and after calls.
    #[serde(default)]
    pub anywhere: bool,
}

/// How calls are written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calls {
    /// Marker before the first of several calls; empty if there is none.
    #[serde(default)]
    pub section_open: String,
    /// Marker after the last call.
    #[serde(default)]
    pub section_close: String,
    /// True if the calls are the items of a list in brackets.
    #[serde(default)]
    pub list: bool,
    /// White space after the opening bracket of the list.
    #[serde(default)]
    pub list_open: String,
    /// White space before the closing bracket of the list.
    #[serde(default)]
    pub list_close: String,
    /// Marker before each call, up to its name or object.
    #[serde(default)]
    pub open: String,
    /// Marker after each call.
    #[serde(default)]
    pub close: String,
    /// Text between two calls. In a list that names none: `, `.
    #[serde(default)]
    pub separator: String,
    /// White space after all calls, before the turn's end.
    #[serde(default)]
    pub after: String,
    pub body: Body,
}

/// How a call's name and arguments are written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    /// A JSON object with the name and the arguments among its fields.
    Object {
        /// Key of the name.
        name: String,
        /// Key of the arguments.
        arguments: String,
        /// Key of the object that has both; empty if it is the object itself.
        #[serde(default)]
        wrapper: String,
        /// Key of the call's identifier; empty if there is none.
        #[serde(default)]
        id: String,
        /// True if the arguments are a string that contains JSON.
        #[serde(default)]
        arguments_in_string: bool,
        /// The object as the template spells it; empty: the keys above, in this order, with `, ` and `: `.
        #[serde(default)]
        spelling: Vec<Spelled>,
    },
    /// A JSON object whose only key is the name, and its value the arguments.
    NameAsKey,
    /// The name, then the arguments.
    Named {
        /// Marker between the call's identifier and its name; empty if no identifier comes before the name.
        #[serde(default)]
        name_open: String,
        /// Marker between the name and the arguments.
        #[serde(default)]
        name_close: String,
        /// Marker before the call's identifier, which comes between the name and the arguments; empty if there is none.
        #[serde(default)]
        id_open: String,
        /// Name written as `functions.NAME:NUMBER`, which is also the call's identifier.
        #[serde(default)]
        numbered: bool,
        arguments: Arguments,
    },
}

/// A part of a call's object as it is spelled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spelled {
    Text(String),
    /// The name, inside the quotes of a JSON string.
    Name,
    /// The call's identifier, inside the quotes of a JSON string.
    Id,
    /// The call's number, inside the quotes of a JSON string.
    Number,
    Arguments,
}

/// How arguments are written after a name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arguments {
    /// A JSON object.
    Json,
    /// One tagged region for each argument.
    Tagged(Tags),
    /// Keyword arguments in parentheses, as in Python.
    Keywords {
        #[serde(default = "LiteralStyle::python")]
        style: LiteralStyle,
    },
    /// An object in braces with bare keys, and strings between `quote` and `quote`.
    BareKeys {
        quote: String,
        #[serde(default = "LiteralStyle::bare")]
        style: LiteralStyle,
    },
}

/// How values are written in arguments that are no JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiteralStyle {
    /// Text between two items.
    pub comma: String,
    /// Text between a key and its value inside an object.
    pub colon: String,
    /// Quote around keys inside an object; empty if they are bare.
    pub key_quote: String,
    /// Quote around strings.
    pub quote: String,
    pub true_word: String,
    pub false_word: String,
    pub null_word: String,
}

impl LiteralStyle {
    /// Python's literals, with strings as in JSON.
    pub fn python() -> Self {
        Self {
            comma: ", ".into(),
            colon: ": ".into(),
            key_quote: "\"".into(),
            quote: "\"".into(),
            true_word: "True".into(),
            false_word: "False".into(),
            null_word: "None".into(),
        }
    }

    /// Dense objects with bare keys.
    pub fn bare() -> Self {
        Self {
            comma: ",".into(),
            colon: ":".into(),
            key_quote: String::new(),
            quote: String::new(),
            true_word: "true".into(),
            false_word: "false".into(),
            null_word: "null".into(),
        }
    }
}

/// Markers of tagged arguments.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Tags {
    /// Marker before the key.
    pub open: String,
    /// Marker between the key and its value.
    pub key_close: String,
    /// Marker after the value.
    pub close: String,
    /// True if white space around the value is left out; otherwise only the markers' own.
    #[serde(default)]
    pub trim: bool,
    /// Attribute between `key_close` and the value that tells strings from JSON, such as ` string="true">`: what is
    /// written for a string.
    #[serde(default)]
    pub string_mark: String,
    /// Text written in place of `string_mark` for JSON.
    #[serde(default)]
    pub json_mark: String,
}

/// Messages with headers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Channels {
    /// Marker before the name of the role.
    pub start: String,
    /// Marker before the name of the channel.
    pub channel: String,
    /// Marker between a header and its text.
    pub message: String,
    /// Markers that end a message.
    pub ends: Vec<String>,
    /// Channel of the model's thoughts.
    pub reasoning: String,
    /// Text before the recipient of a call, and the prefix of its name.
    pub recipient: String,
    pub name_prefix: String,
}

impl Format {
    /// A format in which everything is content.
    pub fn plain() -> Self {
        Self {
            calls_from: Origin::Nothing,
            reasoning_from: Origin::Nothing,
            anchor: String::new(),
            layout: Layout::from(Regions::default()),
        }
    }

    /// This format, with calls as a list of objects in JSON.
    pub fn with_plain_calls(&self) -> Self {
        let mut format = self.clone();
        if let Layout::Regions(regions) = &mut format.layout {
            regions.calls = Some(Calls {
                list: true,
                ..Calls::without_markers(Body::object("name", "arguments"))
            });
        }
        format
    }

    /// True if calls can be found.
    pub fn has_calls(&self) -> bool {
        match &self.layout {
            Layout::Regions(regions) => regions.calls.is_some(),
            Layout::Channels(_) => true,
        }
    }

    /// True if reasoning can be found.
    pub fn has_reasoning(&self) -> bool {
        match &self.layout {
            Layout::Regions(regions) => regions.reasoning.is_some(),
            Layout::Channels(_) => true,
        }
    }
}

impl Calls {
    /// Calls without any text around them.
    pub fn without_markers(body: Body) -> Self {
        Self {
            section_open: String::new(),
            section_close: String::new(),
            list: false,
            list_open: String::new(),
            list_close: String::new(),
            open: String::new(),
            close: String::new(),
            separator: String::new(),
            after: String::new(),
            body,
        }
    }

    /// True if no marker tells that a call begins, so that only a known name does.
    pub fn is_bare(&self) -> bool {
        let marks = |marker: &str| {
            marker
                .chars()
                .any(|c| !c.is_whitespace() && !"[{(".contains(c))
        };
        !marks(&self.section_open) && !marks(&self.open)
    }
}

impl Body {
    /// An object with these keys of name and arguments.
    pub fn object(name: &str, arguments: &str) -> Self {
        Self::Object {
            name: name.to_owned(),
            arguments: arguments.to_owned(),
            wrapper: String::new(),
            id: String::new(),
            arguments_in_string: false,
            spelling: Vec::new(),
        }
    }
}
