//! The markers of a format.

use super::{Arguments, Body, Calls, Format, Layout};

impl Format {
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

impl Calls {
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
            Arguments::Json | Arguments::Keywords { .. } => {}
            Arguments::BareKeys { quote, .. } => markers.push(quote),
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
