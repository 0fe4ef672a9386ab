//! Answers that consist of messages with headers.

use super::terminal::regex;
use super::{ANY, Wanted, Writer};
use crate::tool_calls::format::Channels;
use crate::tool_calls::plan::Tool;
use crate::tool_calls::schema::escaped;

/// Token before the type of a message's text.
const CONSTRAIN: &str = "<|constrain|>";

impl Writer<'_> {
    pub(super) fn channels(
        &mut self,
        channels: &Channels,
        tools: &[(usize, &Tool)],
        wanted: Wanted<'_>,
    ) {
        if wanted == Wanted::Optional {
            return self.free_channels(channels, tools);
        }
        let thought = format!(
            "{}{}{}",
            channels.channel, channels.reasoning, channels.message
        );
        let thought = self.literal(&thought);
        let end = channels.ends.first().map_or("", String::as_str);
        let thought_end = self.text_until(end);
        let next = self.literal(&format!("{}assistant", channels.start));
        let mut names = Vec::new();
        for (index, tool) in tools {
            let Channels {
                channel,
                recipient,
                name_prefix,
                message,
                ..
            } = channels;
            let to = format!("{recipient}{name_prefix}{}", tool.name);
            // The model names the recipient in its channel, the template before.
            let headers = [
                format!("{channel}commentary{to} {CONSTRAIN}json{message}"),
                format!("{to}{channel}commentary {CONSTRAIN}json{message}"),
                format!("{to}{channel}commentary json{message}"),
            ];
            let headers: Vec<String> = headers.iter().map(|text| self.literal(text)).collect();
            let arguments = self.json((*index, tool));
            let call = format!("({}) {arguments}", headers.join(" | "));
            names.push(self.new_rule("call", &call));
        }
        if let Wanted::Content(content) = wanted {
            let header = format!("{}final{}", channels.channel, channels.message);
            names.push(format!("{} @{content}", self.literal(&header)));
        }
        self.rule("call", &names.join(" | "));
        self.rule("start", &format!("({thought} {thought_end} {next})? call"));
    }

    /// Any messages, in which the arguments of strict tools follow their schema.
    fn free_channels(&mut self, channels: &Channels, tools: &[(usize, &Tool)]) {
        let strict = tools.iter().filter(|(_, tool)| self.is_enforced(tool));
        let strict: Vec<(usize, &Tool)> = strict.copied().collect();
        let to = |tool: &Tool| {
            let recipient = channels.recipient.trim();
            let prefix = escaped(&channels.name_prefix);
            // Models leave the prefix out at times.
            format!("{}({prefix})?{}", escaped(recipient), escaped(&tool.name))
        };
        let markers = [&channels.channel, &channels.message];
        let first = markers.iter().filter_map(|marker| marker.chars().next());
        let outside: String = first.map(|c| escaped(&c.to_string())).collect();
        let text = format!(r"[^{outside}]*");
        let names: Vec<String> = strict.iter().map(|(_, tool)| to(tool)).collect();
        let any_strict = format!(r"(?s:.*)({})(\s(?s:.*))?", names.join("|"));
        let plain = format!("({} & ~{})", regex(&text), regex(&any_strict));
        let plain = self.new_rule("HEADER", &plain);
        let channel = self.literal(&channels.channel);
        let constrain = self.literal(CONSTRAIN);
        let message = self.literal(&channels.message);
        // A header has texts before its channel, in its channel, and after the mark of a type.
        let free = format!("{plain}? ({channel} {plain}?)? ({constrain} {plain}?)? {message}");
        let free = self.new_rule("header", &free);
        let mut options = Vec::new();
        for (index, tool) in &strict {
            let own = format!(r"({text}{}(\s{text})?)", to(tool));
            let own = self.new_rule("HEADER", &regex(&own));
            let before = format!("{own} ({channel} {plain}?)?");
            let inside = format!("{plain}? {channel} {own}");
            let header = format!("({before} | {inside}) ({constrain} {plain}?)? {message}");
            let arguments = self.json((*index, tool));
            options.push(self.new_rule("call", &format!("{header} {arguments}")));
        }
        let end = channels.ends.first().map_or("", String::as_str);
        let (end_text, start) = (self.text_until(end), self.literal(&channels.start));
        let end = self.literal(end);
        options.push(format!("{free} {ANY}"));
        self.rule("last", &options.join(" | "));
        let called: Vec<String> = options
            .iter()
            .take(strict.len())
            .map(|call| format!("{call} {end}"))
            .collect();
        let mut ended = called;
        ended.push(format!("{free} {end_text}"));
        self.rule("ended", &format!("({}) {start}", ended.join(" | ")));
        self.rule("start", "ended* last");
    }
}
