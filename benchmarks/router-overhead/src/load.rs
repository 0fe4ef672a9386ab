//! Streaming clients on plain TCP. They do as little work as possible between receiving the router's bytes and
//! counting them.

use std::io;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// First token of the first client's prompt. Each client adds its number, so that the shard can tell the prompts
/// apart.
pub const FIRST_PROMPT_TOKEN: u32 = 2_000;

const PROMPT_TOKENS: usize = 32;

/// One answer as its client received it.
pub struct Answer {
    pub started: Instant,
    /// Arrival times of the tokens' events. One read may bring several.
    pub arrivals: Vec<Instant>,
}

/// Sends one streaming completion of `num_tokens` tokens and reads it to its end.
///
/// Fails when the router's status is not 200, or when the number of events differs from the number of tokens.
pub async fn stream_once(port: u16, client: u32, num_tokens: usize) -> io::Result<Answer> {
    let mut prompt = vec![(FIRST_PROMPT_TOKEN + client).to_string()];
    prompt.resize(PROMPT_TOKENS, "500".into());
    let body = format!(
        r#"{{"prompt":[{}],"max_tokens":{num_tokens},"temperature":0,"stream":true,"ignore_eos":true}}"#,
        prompt.join(",")
    );
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    let mut connection = TcpStream::connect(("127.0.0.1", port)).await?;
    connection.set_nodelay(true)?;
    let started = Instant::now();
    connection
        .write_all(format!("{head}{body}").as_bytes())
        .await?;

    let mut counter = EventCounter::default();
    let mut arrivals = Vec::with_capacity(num_tokens + 2);
    let mut buffer = vec![0; 16 * 1024];
    let mut beginning = Vec::new();
    loop {
        let length = connection.read(&mut buffer).await?;
        if length == 0 {
            break;
        }
        if beginning.len() < 12 {
            beginning.extend_from_slice(&buffer[..length.min(400)]);
            if beginning.len() >= 12 && !beginning.starts_with(b"HTTP/1.1 200") {
                return Err(io::Error::other(
                    String::from_utf8_lossy(&beginning).into_owned(),
                ));
            }
        }
        let events = counter.count(&buffer[..length]);
        if events > 0 {
            arrivals.extend(std::iter::repeat_n(Instant::now(), events));
        }
    }
    // The last event is `[DONE]`.
    arrivals.pop();
    if arrivals.len() != num_tokens {
        return Err(io::Error::other(format!(
            "{} events for {num_tokens} tokens",
            arrivals.len()
        )));
    }
    Ok(Answer { started, arrivals })
}

/// Counts the ends of server-sent events (an empty line) in a stream that is cut anywhere.
#[derive(Default)]
struct EventCounter {
    after_newline: bool,
}

impl EventCounter {
    fn count(&mut self, bytes: &[u8]) -> usize {
        let mut events = 0;
        for &byte in bytes {
            let newline = byte == b'\n';
            if newline && self.after_newline {
                events += 1;
                self.after_newline = false;
            } else {
                self.after_newline = newline;
            }
        }
        events
    }
}

/// Runs `clients` clients at the same time. Each requests `requests` answers of `num_tokens` tokens, one after
/// another.
pub async fn run_clients(
    port: u16,
    clients: u32,
    requests: usize,
    num_tokens: usize,
) -> io::Result<(Duration, Vec<Vec<Answer>>)> {
    let started = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            tokio::spawn(async move {
                let mut answers = Vec::with_capacity(requests);
                for _ in 0..requests {
                    answers.push(stream_once(port, client, num_tokens).await?);
                }
                io::Result::Ok(answers)
            })
        })
        .collect();
    let mut all = Vec::with_capacity(tasks.len());
    for task in tasks {
        all.push(task.await.map_err(io::Error::other)??);
    }
    Ok((started.elapsed(), all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_counted_wherever_the_stream_is_cut() {
        let stream = b"data: {}\n\n\r\n17\r\ndata: {\"a\":1}\n\n\r\ndata: [DONE]\n\n";
        for cut in 0..stream.len() {
            let mut counter = EventCounter::default();
            assert_eq!(
                counter.count(&stream[..cut]) + counter.count(&stream[cut..]),
                3,
                "cut at {cut}"
            );
        }
    }
}
