//! Description of how a model writes its reasoning and its tool calls. Found by rendering its chat template, read from
//! its files, or taken from the data file of named formats; parsing and grammars follow from it alone.
//!
//! Markers are compared word by word: white space around and inside them may be missing in an answer.

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
    /// Marker before each call, up to its name or object.
    #[serde(default)]
    pub open: String,
    /// Marker after each call.
    #[serde(default)]
    pub close: String,
    /// Text between two calls.
    #[serde(default)]
    pub separator: String,
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

/// How arguments are written after a name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arguments {
    /// A JSON object.
    Json,
    /// One tagged region for each argument.
    Tagged(Tags),
    /// Python's keyword arguments in parentheses.
    Keywords,
    /// An object in braces with bare keys, and strings between `quote` and `quote`.
    BareKeys { quote: String },
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
                section_open: String::new(),
                section_close: String::new(),
                list: true,
                open: String::new(),
                close: String::new(),
                separator: String::new(),
                body: Body::Object {
                    name: "name".into(),
                    arguments: "arguments".into(),
                    wrapper: String::new(),
                    id: String::new(),
                    arguments_in_string: false,
                },
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

    /// Description of how calls are written, for logs and `/info`.
    pub fn describe_calls(&self) -> String {
        let how = match &self.layout {
            Layout::Channels(channels) => format!(
                "messages with `{}{}NAME` in their header",
                channels.recipient, channels.name_prefix
            ),
            Layout::Regions(regions) => match &regions.calls {
                None => return "none".into(),
                Some(calls) => calls.describe(),
            },
        };
        format!("{how} ({})", self.calls_from.describe())
    }

    /// Description of how reasoning is written, for logs and `/info`.
    pub fn describe_reasoning(&self) -> String {
        let how = match &self.layout {
            Layout::Channels(channels) => format!("the channel `{}`", channels.reasoning),
            Layout::Regions(regions) => match &regions.reasoning {
                None => return "none".into(),
                Some(reasoning) => format!("`{}…{}`", reasoning.open, reasoning.close),
            },
        };
        format!("{how} ({})", self.reasoning_from.describe())
    }

    /// Markers of the format; without those of calls unless `with_calls`. Special tokens among them must reach the
    /// parser.
    pub fn markers(&self, with_calls: bool) -> Vec<&str> {
        let mut markers: Vec<&str> = Vec::new();
        match &self.layout {
            Layout::Channels(channels) => {
                markers.extend([
                    channels.start.as_str(),
                    &channels.channel,
                    &channels.message,
                    // The type of a call's arguments, which is left out.
                    "<|constrain|>",
                ]);
                markers.extend(channels.ends.iter().map(String::as_str));
            }
            Layout::Regions(regions) => {
                markers.extend(regions.content_markers.iter().map(String::as_str));
                if let Some(reasoning) = &regions.reasoning {
                    markers.extend([reasoning.open.as_str(), &reasoning.close]);
                }
                if let Some(calls) = regions.calls.as_ref().filter(|_| with_calls) {
                    calls.add_markers(&mut markers);
                }
            }
        }
        markers.retain(|marker| !marker.trim().is_empty());
        markers
    }
}

impl Origin {
    fn describe(&self) -> String {
        match self {
            Self::Nothing => "not found".into(),
            Self::ResponseTemplate => "from `response_template` in tokenizer_config.json".into(),
            Self::ChatTemplate => "found by rendering the chat template".into(),
            Self::Tokens => "from the tokenizer's tokens".into(),
            Self::Named(name) => format!("the named format `{name}`"),
        }
    }
}

impl Calls {
    /// True if no marker tells that a call begins, so that only a known name does.
    pub fn is_bare(&self) -> bool {
        let marks = |marker: &str| {
            marker
                .chars()
                .any(|c| !c.is_whitespace() && !"[{(".contains(c))
        };
        !marks(&self.section_open) && !marks(&self.open)
    }

    fn describe(&self) -> String {
        let call = match &self.body {
            Body::Object {
                name,
                arguments,
                wrapper,
                ..
            } => {
                let object = format!("{{\"{name}\": NAME, \"{arguments}\": {{…}}}}");
                match wrapper.as_str() {
                    "" => object,
                    wrapper => format!("{{\"{wrapper}\": {object}}}"),
                }
            }
            Body::NameAsKey => "{NAME: {…}}".into(),
            Body::Named {
                name_close,
                arguments,
                ..
            } => format!("NAME{name_close}{}", arguments.describe()),
        };
        let bracket = |bracket| if self.list { bracket } else { "" };
        let text = [
            &self.section_open,
            bracket("["),
            &self.open,
            &call,
            &self.close,
            bracket("]"),
            &self.section_close,
        ];
        format!("`{}`", text.concat().replace('\n', "\\n"))
    }

    fn add_markers<'a>(&'a self, markers: &mut Vec<&'a str>) {
        markers.extend([
            self.section_open.as_str(),
            &self.section_close,
            &self.open,
            &self.close,
            &self.separator,
        ]);
        let Body::Named {
            name_open,
            name_close,
            id_open,
            arguments,
            numbered: _,
        } = &self.body
        else {
            return;
        };
        markers.extend([name_open.as_str(), name_close, id_open]);
        match arguments {
            Arguments::Json | Arguments::Keywords => {}
            Arguments::BareKeys { quote } => markers.push(quote),
            Arguments::Tagged(tags) => markers.extend([
                tags.open.as_str(),
                &tags.key_close,
                &tags.close,
                &tags.string_mark,
                &tags.json_mark,
            ]),
        }
    }
}

impl Arguments {
    fn describe(&self) -> String {
        match self {
            Self::Json => "{…}".into(),
            Self::Tagged(tags) => format!("{}KEY{}…{}", tags.open, tags.key_close, tags.close),
            Self::Keywords => "(KEY=…)".into(),
            Self::BareKeys { quote } => format!("{{KEY:{quote}…{quote}}}"),
        }
    }
}
