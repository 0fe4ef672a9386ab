//! Descriptions of formats, for logs and `/info`.

use super::{Arguments, Body, Calls, Format, Layout, Origin};

impl Format {
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
}

impl Arguments {
    fn describe(&self) -> String {
        match self {
            Self::Json => "{…}".into(),
            Self::Tagged(tags) => format!("{}KEY{}…{}", tags.open, tags.key_close, tags.close),
            Self::Keywords { .. } => "(KEY=…)".into(),
            Self::BareKeys { quote, .. } => format!("{{KEY:{quote}…{quote}}}"),
        }
    }
}
