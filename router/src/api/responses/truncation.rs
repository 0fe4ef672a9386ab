//! Leaves out the oldest parts of a conversation that does not fit into the context (`truncation: "auto"`).

use crate::api::openai::ChatRequest;
use crate::api::openai::chat::{Chat, ChatForm};
use crate::chat_template::Message;
use crate::error::ApiError;
use crate::state::AppState;

/// Share of the context that is left for the answer of a conversation which is cut, unless it asks for less.
const ANSWER_SHARE: usize = 4;

/// The conversation, without its oldest parts if it is too long.
pub async fn fitted(
    state: &AppState,
    mut chat: ChatRequest,
    form: &ChatForm,
) -> Result<ChatRequest, ApiError> {
    let limit = state.max_input_tokens()?;
    if num_tokens(state, &chat, form).await? <= limit {
        return Ok(chat);
    }
    let wanted = chat
        .max_completion_tokens
        .map_or(usize::MAX, |tokens| tokens as usize);
    let for_answer = wanted.min(limit / ANSWER_SHARE);
    let parts = Parts::of(std::mem::take(&mut chat.messages));
    // The number of parts to leave out is searched for: each try renders and tokenizes the conversation.
    let (mut too_few, mut enough) = (0, parts.num_removable());
    while too_few + 1 < enough {
        let middle = too_few.midpoint(enough);
        chat.messages = parts.without(middle);
        if num_tokens(state, &chat, form).await? <= limit - for_answer {
            enough = middle;
        } else {
            too_few = middle;
        }
    }
    chat.messages = parts.without(enough);
    Ok(chat)
}

async fn num_tokens(
    state: &AppState,
    chat: &ChatRequest,
    form: &ChatForm,
) -> Result<usize, ApiError> {
    let chat = Chat::new(state, chat.clone(), form)?;
    Ok(chat.tokens(state).await?.1.len())
}

/// The messages of a conversation, divided into parts that are left out as a whole.
#[derive(Debug)]
struct Parts {
    messages: Vec<Message>,
    /// Part of each message, the oldest first; `None`: it always stays.
    part: Vec<Option<usize>>,
}

impl Parts {
    /// A turn is a part: from a message of the user up to the next one. Of the last turn, each of the assistant's messages
    /// with the results of its calls is a part; the user's message and the last part stay. Instructions stay.
    fn of(messages: Vec<Message>) -> Self {
        let last_turn = messages.iter().rposition(|message| message.role == "user");
        let mut part = Vec::with_capacity(messages.len());
        let (mut current, mut is_open) = (0, false);
        for (index, message) in messages.iter().enumerate() {
            let begins = match message.role.as_str() {
                "system" | "developer" => {
                    part.push(None);
                    continue;
                }
                "user" if Some(index) == last_turn => {
                    part.push(None);
                    current += usize::from(std::mem::take(&mut is_open));
                    continue;
                }
                "user" => true,
                "assistant" => last_turn.is_none_or(|last| index > last),
                _ => false,
            };
            if begins && is_open {
                current += 1;
            }
            is_open = true;
            part.push(Some(current));
        }
        // The last message stays, unless that is the user's message.
        let newest = part.iter().flatten().max().copied();
        let ends_with_user = last_turn.is_some_and(|last| part[last..].iter().all(Option::is_none));
        for of_message in &mut part {
            if *of_message == newest && !ends_with_user {
                *of_message = None;
            }
        }
        Self { messages, part }
    }

    fn num_removable(&self) -> usize {
        self.part.iter().flatten().max().map_or(0, |last| last + 1)
    }

    /// The messages without the `count` oldest parts.
    fn without(&self, count: usize) -> Vec<Message> {
        let kept = |part: &Option<usize>| part.is_none_or(|part| part >= count);
        let messages = self.messages.iter().zip(&self.part);
        messages
            .filter(|(_, part)| kept(part))
            .map(|(message, _)| message.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages of these roles, by their first letters: system, user, assistant, tool.
    fn parts(roles: &str) -> Parts {
        let message = |(index, letter): (usize, char)| {
            let role = match letter {
                's' => "system",
                'u' => "user",
                'a' => "assistant",
                _ => "tool",
            };
            let json = serde_json::json!({"role": role, "content": format!("{letter}{index}")});
            serde_json::from_value(json).expect("a message")
        };
        Parts::of(roles.chars().enumerate().map(message).collect())
    }

    /// The rest without the oldest parts, as the numbers of the messages, for each number of parts.
    fn left(roles: &str) -> Vec<String> {
        let parts = parts(roles);
        let number = |message: &Message| {
            let at = parts.messages.iter().position(|other| other == message);
            at.expect("a message").to_string()
        };
        (0..=parts.num_removable())
            .map(|count| parts.without(count).iter().map(number).collect())
            .collect()
    }

    #[test]
    fn whole_turns_go_and_instructions_and_the_last_turn_stay() {
        assert_eq!(left("suauau"), ["012345", "0345", "05"]);
        assert_eq!(left("uasuatau"), ["01234567", "234567", "27"]);
        assert_eq!(left("u"), ["0"]);
        assert_eq!(left("s"), ["0"]);
    }

    #[test]
    fn a_call_goes_with_its_results_in_the_last_turn_too() {
        assert_eq!(left("suatattat"), ["012345678", "0145678", "0178"]);
        assert_eq!(left("uauatat"), ["0123456", "23456", "256"]);
    }

    #[test]
    fn a_conversation_that_the_assistant_begins_loses_that_first() {
        assert_eq!(left("auau"), ["0123", "123", "3"]);
        assert_eq!(left("ata"), ["012", "2"]);
    }
}
